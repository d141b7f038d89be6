//! Reading without a group: from given offsets, over some partitions, with bounds and a long poll.
//!
//! Every call takes its caller and may wait and fail, also where this node answers from memory: a
//! partition whose replicas are on other nodes is read through the same calls.
//!
//! Invariants:
//! - files are read on the pool for blocking work, records are visited where the caller runs;
//! - no more than [`PACE_BYTES`] and one chunk are visited before other requests get their turn.

use std::future::poll_fn;
use std::sync::Arc;

use crate::broker::topics::Placed;
use crate::broker::watch::Watcher;
use crate::broker::{Broker, ReadError, Topic};
use crate::record::{Batch, DecompressLimit, Record, partition_for_key};
use crate::storage::log::{self, Chunk, LogReader};
use crate::types::{Offset, PartitionId, Principal, Timestamp};

/// Bytes that a turn of one partition reads at the least, so that small pages need one read.
const CHUNK_BYTES_MIN: usize = 16 * 1024;
/// Bytes that a turn of one partition reads at the most, so that partitions take turns.
const CHUNK_BYTES_MAX: usize = 512 * 1024;
/// Bytes of records that are visited before other requests of the thread get their turn.
const PACE_BYTES: u64 = 256 * 1024;
/// What a record is guessed to take, until some were seen.
const RECORD_BYTES_GUESS: usize = 256;
/// A compressed batch may grow to this; `max.message.bytes` bounds what it was made from.
const DECOMPRESSED_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Where a read starts when the client names no offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The log start.
    Earliest,
    /// The log end: only what is written from now on.
    Latest,
    /// The first record, in offset order, that is not older than this.
    Timestamp(Timestamp),
}

/// What [`Broker::start_offsets`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Where to start.
    pub start: Start,
    /// With [`OnDamage::Skip`] a search by time goes on behind what is damaged.
    pub on_damage: OnDamage,
}

/// What a read covers. The lists are in ascending order of partition, without repeats.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// Next offset to read, of each partition that is read.
    pub positions: Vec<(PartitionId, Offset)>,
    /// Stop after this many taken records.
    pub records_max: u32,
    /// Stop when the taken records' keys, values and headers have this many bytes; one record is
    /// always taken.
    pub bytes_max: u64,
    /// Stop when this many bytes of records were looked at, taken or not; bounds filtered scans.
    pub scan_bytes_max: u64,
    /// What to do where the bytes on disk fail their checksum.
    pub on_damage: OnDamage,
}

/// What a read does with a damaged range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    /// It fails there, once everything before was answered.
    Fail,
    /// It goes on after the range and reports it as a gap.
    Skip,
}

/// What the visitor did with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// It is part of the answer and counts towards the bounds.
    Taken,
    /// A filter left it out.
    Skipped,
    /// It is not part of the answer and not passed either: the read ends before it.
    Stop,
}

/// Where a read ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadEnd {
    /// Next offset to read, of each partition of the request, past everything that was looked at.
    pub next: Vec<(PartitionId, Offset)>,
    /// Log end offset of each partition of the request, as it was at the start of the read.
    pub end_offsets: Vec<(PartitionId, Offset)>,
    /// Offsets that the request asked for and that are not there any more.
    pub gaps: Vec<Gap>,
}

/// Offsets `from..=to` that cannot be read: retention took them, or they are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The partition.
    pub partition: PartitionId,
    /// First missing offset.
    pub from: Offset,
    /// Last missing offset.
    pub to: Offset,
    /// Why they are missing.
    pub reason: GapReason,
}

/// Why offsets cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// They lie below the log start.
    Retention,
    /// Their bytes on disk fail the checksum.
    Damaged,
}

impl Broker {
    /// Finds where each of `partitions` starts, in the order given. May read index and segment
    /// files.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn start_offsets(
        &self,
        principal: &Principal,
        topic: &Arc<Topic>,
        partitions: &[PartitionId],
        search: Search,
    ) -> Result<Vec<(PartitionId, Offset)>, ReadError> {
        let Search { start, on_damage } = search;
        let timestamp = match start {
            Start::Timestamp(timestamp) => timestamp,
            Start::Earliest | Start::Latest => {
                let mut offsets = Vec::with_capacity(partitions.len());
                for partition in partitions {
                    let (log_start, log_end) = self.bounds(principal, topic, *partition).await?;
                    let offset = if start == Start::Latest { log_end } else { log_start };
                    offsets.push((*partition, offset));
                }
                return Ok(offsets);
            }
        };
        let topic = Arc::clone(topic);
        let partitions = partitions.to_vec();
        let search = move || {
            let offset = |partition: &PartitionId| {
                let placed = placed(&topic, *partition)?;
                let reader = placed.partition.reader();
                let end = reader.log_end();
                let found = find_timestamp(reader, timestamp, on_damage);
                let found = found.map_err(|error| failed(*partition, error))?;
                Ok((*partition, found.unwrap_or(end)))
            };
            partitions.iter().map(offset).collect()
        };
        let searched = tokio::task::spawn_blocking(search).await;
        searched.map_err(|error| ReadError::Internal(error.to_string()))?
    }

    /// Returns log start and log end of a partition.
    ///
    /// # Errors
    /// [`ReadError::TopicDeleted`], [`ReadError::PartitionNotFound`], [`ReadError::Unavailable`].
    pub async fn bounds(
        &self,
        _principal: &Principal,
        topic: &Topic,
        partition: PartitionId,
    ) -> Result<(Offset, Offset), ReadError> {
        let placed = placed(topic, partition)?;
        let reader = placed.partition.reader();
        Ok((reader.log_start(), reader.log_end()))
    }

    /// Reads records and hands each to `visit`, partitions taking turns, until a bound is reached
    /// or every partition is at its end. A position below the log start goes on there and is
    /// reported as a gap; one above the log end reads nothing.
    ///
    /// # Errors
    /// [`ReadError`], when it is met before any record was visited; later the read ends there and
    /// the next one meets it.
    ///
    /// # Cancel safety
    /// Nothing is changed when the future is dropped.
    pub async fn read(
        &self,
        principal: &Principal,
        topic: &Arc<Topic>,
        request: &ReadRequest,
        visit: &mut (dyn FnMut(PartitionId, &Record<'_>) -> Visit + Send),
    ) -> Result<ReadEnd, ReadError> {
        let read = self.read_all(principal, topic, request, visit).await?;
        count(topic, u64::from(read.taken), read.taken_bytes);
        Ok(read.end())
    }

    /// Reads like [`Broker::read`] what many readers may share: whoever is given the records counts
    /// them with [`Broker::count_read`].
    ///
    /// # Errors
    /// As [`Broker::read`].
    pub async fn read_shared(
        &self,
        principal: &Principal,
        topic: &Arc<Topic>,
        request: &ReadRequest,
        visit: &mut (dyn FnMut(PartitionId, &Record<'_>) -> Visit + Send),
    ) -> Result<ReadEnd, ReadError> {
        Ok(self.read_all(principal, topic, request, visit).await?.end())
    }

    /// Counts records of a topic that a reader was given, and the bytes of their keys and values.
    pub fn count_read(&self, topic: &Topic, records: u64, bytes: u64) {
        count(topic, records, bytes);
    }

    /// Returns the leader epoch in which a partition's next record is written, as far as this node
    /// knows. It only grows, unless data was lost.
    ///
    /// # Errors
    /// [`ReadError::TopicDeleted`], [`ReadError::PartitionNotFound`].
    pub fn leader_epoch(&self, topic: &Topic, partition: PartitionId) -> Result<i32, ReadError> {
        Ok(placed(topic, partition)?.shard.status().term.leader_epoch())
    }

    async fn read_all<'r>(
        &self,
        principal: &Principal,
        topic: &Arc<Topic>,
        request: &'r ReadRequest,
        visit: &mut (dyn FnMut(PartitionId, &Record<'_>) -> Visit + Send),
    ) -> Result<Read<'r>, ReadError> {
        let mut end_offsets = Vec::with_capacity(request.positions.len());
        for (partition, _) in &request.positions {
            let (_, log_end) = self.bounds(principal, topic, *partition).await?;
            end_offsets.push((*partition, log_end));
        }
        let mut read = Read::start(request, end_offsets);
        let mut paced_at = 0;
        while let Some(turn) = read.next_turn() {
            match read.take_turn(topic, turn, visit).await {
                Ok(()) => {}
                Err(_later) if read.visited > 0 => break,
                Err(error) => return Err(error),
            }
            if read.visited_bytes >= paced_at + PACE_BYTES {
                paced_at = read.visited_bytes;
                tokio::task::yield_now().await;
            }
        }
        Ok(read)
    }

    /// Waits until a partition has a record at or above its position.
    ///
    /// # Errors
    /// [`ReadError::TopicDeleted`] when the topic is deleted, now or while waiting;
    /// [`ReadError::PartitionNotFound`]; [`ReadError::Unavailable`].
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn wait_for_records(
        &self,
        _principal: &Principal,
        topic: &Arc<Topic>,
        positions: &[(PartitionId, Offset)],
    ) -> Result<(), ReadError> {
        let mut watcher = Watcher::new(Arc::clone(topic));
        poll_fn(|context| watcher.poll_changed(context, positions.iter().copied())).await
    }
}

fn count(topic: &Topic, records: u64, bytes: u64) {
    topic.metrics().records_out.add(records);
    topic.metrics().bytes_out.add(bytes);
}

/// A read in progress.
struct Read<'r> {
    request: &'r ReadRequest,
    next: Vec<(PartitionId, Offset)>,
    end_offsets: Vec<(PartitionId, Offset)>,
    gaps: Vec<Gap>,
    /// Which entry of `next` has its turn.
    turn: usize,
    taken: u32,
    taken_bytes: u64,
    visited: u64,
    visited_bytes: u64,
    /// The visitor wants no more.
    stopped: bool,
}

/// Returns which partition has the first turn. A page can be full before all had theirs: were it
/// always the same one, a busy partition would starve the others. It follows from the positions
/// alone, so that a read that is repeated gives the same page.
fn first_turn(positions: &[(PartitionId, Offset)]) -> usize {
    let sum = positions.iter().fold(0_i64, |sum, (_, offset)| sum.wrapping_add(offset.get()));
    let count = u32::try_from(positions.len()).unwrap_or(u32::MAX);
    partition_for_key(&sum.to_be_bytes(), count).index()
}

impl<'r> Read<'r> {
    fn start(request: &'r ReadRequest, end_offsets: Vec<(PartitionId, Offset)>) -> Self {
        Self {
            request,
            next: request.positions.clone(),
            end_offsets,
            gaps: Vec::new(),
            turn: first_turn(&request.positions),
            taken: 0,
            taken_bytes: 0,
            visited: 0,
            visited_bytes: 0,
            stopped: false,
        }
    }

    fn end(self) -> ReadEnd {
        ReadEnd { next: self.next, end_offsets: self.end_offsets, gaps: self.gaps }
    }

    fn is_full(&self) -> bool {
        self.stopped
            || self.taken >= self.request.records_max
            || (self.taken > 0 && self.taken_bytes >= self.request.bytes_max)
            || (self.visited > 0 && self.visited_bytes >= self.request.scan_bytes_max)
    }

    /// Returns the next partition that has something left, by its place in the request.
    fn next_turn(&mut self) -> Option<usize> {
        if self.is_full() {
            return None;
        }
        for _ in 0..self.next.len() {
            let turn = self.turn % self.next.len();
            self.turn = turn + 1;
            let has_more = match (self.next.get(turn), self.end_offsets.get(turn)) {
                (Some((_, next)), Some((_, end))) => next < end,
                _ => false,
            };
            if has_more {
                return Some(turn);
            }
        }
        None
    }

    /// Guesses how many bytes the rest of the page takes.
    fn chunk_bytes(&self) -> usize {
        let per_record = match usize::try_from(self.visited_bytes / self.visited.max(1)) {
            Ok(average) if self.visited > 0 => average.saturating_add(24),
            _ => RECORD_BYTES_GUESS,
        };
        let records = self.request.records_max.saturating_sub(self.taken);
        let by_records = usize::try_from(records).unwrap_or(usize::MAX).saturating_mul(per_record);
        let bytes_left = self.request.bytes_max.saturating_sub(self.taken_bytes);
        let by_bytes = usize::try_from(bytes_left).unwrap_or(usize::MAX);
        by_records.min(by_bytes).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
    }

    async fn take_turn(
        &mut self,
        topic: &Topic,
        turn: usize,
        visit: &mut (dyn FnMut(PartitionId, &Record<'_>) -> Visit + Send),
    ) -> Result<(), ReadError> {
        let Some((partition, from)) = self.next.get(turn).copied() else { return Ok(()) };
        match fetch(placed(topic, partition)?, from, self.chunk_bytes()).await? {
            Ok(chunk) => {
                for batch in &chunk.batches {
                    self.take_batch(turn, partition, batch, visit)?;
                    if self.is_full() {
                        return Ok(());
                    }
                }
                if chunk.batches.is_empty() {
                    self.move_to(turn, self.end_offsets.get(turn).map_or(from, |(_, end)| *end));
                }
                Ok(())
            }
            Err(log::ReadError::OutOfRange { start, .. }) if from < start => {
                self.note_gap(turn, (from, start), GapReason::Retention);
                Ok(())
            }
            Err(log::ReadError::Damaged { from: damaged, to })
                if self.request.on_damage == OnDamage::Skip =>
            {
                self.note_gap(turn, (damaged.max(from), to), GapReason::Damaged);
                Ok(())
            }
            Err(error) => Err(failed(partition, error)),
        }
    }

    fn take_batch(
        &mut self,
        turn: usize,
        partition: PartitionId,
        batch: &Batch,
        visit: &mut (dyn FnMut(PartitionId, &Record<'_>) -> Visit + Send),
    ) -> Result<(), ReadError> {
        let damaged = |_error| {
            let (from, to) = (batch.base_offset(), batch.next_offset());
            ReadError::Damaged { partition, from, to }
        };
        let from = self.next.get(turn).map_or(Offset::ZERO, |(_, from)| *from);
        let limit = DecompressLimit::new(DECOMPRESSED_BYTES_MAX);
        let records = batch.records(limit).map_err(damaged)?;
        for record in records.iter() {
            let record = record.map_err(damaged)?;
            if record.offset < from {
                continue;
            }
            let bytes = record.key.map_or(0, <[u8]>::len)
                + record.value.map_or(0, <[u8]>::len)
                + record.headers.len_bytes();
            self.visited += 1;
            self.visited_bytes += bytes as u64;
            match visit(partition, &record) {
                Visit::Taken => {
                    self.taken += 1;
                    self.taken_bytes += bytes as u64;
                }
                Visit::Skipped => {}
                Visit::Stop => {
                    self.stopped = true;
                    return Ok(());
                }
            }
            self.move_to(turn, record.offset.saturating_add(1));
            if self.is_full() {
                return Ok(());
            }
        }
        // Offsets that compaction or a control batch left empty are passed with their batch.
        self.move_to(turn, batch.next_offset());
        Ok(())
    }

    fn move_to(&mut self, turn: usize, next: Offset) {
        if let Some(position) = self.next.get_mut(turn) {
            position.1 = next;
        }
    }

    /// Notes that the offsets `from..next` are not there and goes on behind them.
    fn note_gap(&mut self, turn: usize, (from, next): (Offset, Offset), reason: GapReason) {
        let partition = self.next.get(turn).map(|(partition, _)| *partition);
        let to = Offset::new(next.get() - 1).filter(|to| *to >= from);
        if let (Some(partition), Some(to)) = (partition, to) {
            self.gaps.push(Gap { partition, from, to, reason });
        }
        self.move_to(turn, next);
    }
}

/// Reads a chunk where it stays when it is in memory, else on the pool for blocking work.
///
/// # Errors
/// [`ReadError::Internal`] when the pool is gone; the log's own error is part of the answer.
async fn fetch(
    placed: &Placed,
    from: Offset,
    bytes_max: usize,
) -> Result<Result<Chunk, log::ReadError>, ReadError> {
    let reader = placed.partition.reader();
    if reader.is_in_memory(from) {
        return Ok(reader.read(from, bytes_max));
    }
    let partition = Arc::clone(&placed.partition);
    tokio::task::spawn_blocking(move || partition.reader().read(from, bytes_max))
        .await
        .map_err(|error| ReadError::Internal(error.to_string()))
}

fn find_timestamp(
    reader: &LogReader,
    timestamp: Timestamp,
    on_damage: OnDamage,
) -> Result<Option<Offset>, log::ReadError> {
    let mut from = reader.log_start();
    loop {
        match reader.find_timestamp(from, timestamp) {
            Err(log::ReadError::Damaged { to, .. }) if on_damage == OnDamage::Skip && to > from => {
                from = to;
            }
            found => return found,
        }
    }
}

/// Finds a partition of a topic that was not deleted.
pub(in crate::broker) fn placed(
    topic: &Topic,
    partition: PartitionId,
) -> Result<&Placed, ReadError> {
    let name = || topic.summary().name.clone();
    let placed = topic.placed(partition);
    let placed = placed.ok_or_else(|| ReadError::PartitionNotFound { topic: name(), partition })?;
    if placed.partition.is_deleted() { Err(ReadError::TopicDeleted) } else { Ok(placed) }
}

pub(in crate::broker) fn failed(partition: PartitionId, error: log::ReadError) -> ReadError {
    match error {
        log::ReadError::OutOfRange { start, end } => {
            ReadError::OffsetOutOfRange { partition, offset: end, log_start: start, log_end: end }
        }
        log::ReadError::Damaged { from, to } => ReadError::Damaged { partition, from, to },
        log::ReadError::Deleted => ReadError::TopicDeleted,
        error => {
            tracing::error!(%partition, %error, "read failed");
            ReadError::Internal("the partition's files cannot be read".to_owned())
        }
    }
}
