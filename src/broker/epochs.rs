//! How far a partition goes up to a leader epoch, for readers that come back.

use std::sync::Arc;

use crate::broker::read::{failed, placed};
use crate::broker::{Broker, ReadError, Topic};
use crate::storage::log::{self, LogReader};
use crate::types::{Offset, PartitionId, Principal};

impl Broker {
    /// Finds where the records end that were written up to a leader epoch: at the first record of a
    /// later one, or at the log end. Whoever has read further at that epoch has read records that
    /// were lost and whose offsets others have by now. May read files.
    ///
    /// # Errors
    /// [`ReadError`]; what is damaged is passed over.
    pub async fn end_of_epoch(
        &self,
        _principal: &Principal,
        topic: &Arc<Topic>,
        partition: PartitionId,
        epoch: i32,
    ) -> Result<Offset, ReadError> {
        let of = Arc::clone(&placed(topic, partition)?.partition);
        let search = move || end_of_epoch(of.reader(), epoch);
        let searched = tokio::task::spawn_blocking(search).await;
        let searched = searched.map_err(|error| ReadError::Internal(error.to_string()))?;
        searched.map_err(|error| failed(partition, error))
    }
}

/// Epochs only grow along a log, so it is cut in halves.
fn end_of_epoch(reader: &LogReader, epoch: i32) -> Result<Offset, log::ReadError> {
    let log_end = reader.log_end();
    // All below `low` is known to be of the epoch or before, all from `high` on of a later one.
    let (mut low, mut high) = (reader.log_start(), log_end);
    // Most have read to the end, or nearly.
    let mut probe = log_end.get().saturating_sub(1);
    while low < high {
        let from = Offset::new(probe).unwrap_or(low).max(low);
        match reader.read(from, 1) {
            Ok(chunk) => match chunk.batches.first() {
                Some(batch) if batch.header().leader_epoch <= epoch => low = batch.next_offset(),
                Some(batch) => high = batch.base_offset().max(low),
                None => high = from,
            },
            Err(log::ReadError::OutOfRange { start, .. }) if from < start => low = start,
            // Nobody knows what it was.
            Err(log::ReadError::Damaged { to, .. }) if to > from => low = to,
            Err(error) => return Err(error),
        }
        probe = low.get() + (high.get() - low.get()) / 2;
    }
    Ok(high.max(low).min(log_end))
}
