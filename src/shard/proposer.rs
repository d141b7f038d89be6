//! The proposer of a shard: drains all accumulators that have something into one Raft entry.
//!
//! It never sleeps to collect: batching comes from what piles up while earlier entries are being
//! synced. Two entries are in flight at most, and the second only when as much has piled up as is
//! in flight already: a small second entry would cost a sync of its own and keep the next one small
//! too. So half of what clients have outstanding is on its way to the disk while the other half
//! collects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::SharedClock;
use crate::metrics::ShardMetrics;
use crate::raft::{Command, Group, ProposeError};
use crate::shard::accumulator::{OpenBatch, Partition};
use crate::shard::command::encode_append;
use crate::shard::error::{AppendError, EnqueueError};
use crate::shard::pending::Waiter;
use crate::types::TimestampType;
use crate::types::limits::{ACCUMULATOR_BYTES_MAX, ENTRIES_IN_FLIGHT_MAX, ENTRY_BYTES_TARGET};

/// What writers and the proposer's task share.
#[derive(Debug)]
pub(crate) struct Proposer {
    /// Partitions with something to take, each once.
    dirty: Mutex<Vec<Arc<Partition>>>,
    /// Bytes in all accumulators of the shard; bounded by [`ACCUMULATOR_BYTES_MAX`].
    queued_bytes: AtomicUsize,
    in_flight: AtomicUsize,
    /// Bytes of the newest entry: what must pile up for a second one.
    entry_bytes: AtomicUsize,
    work: Notify,
    room: Notify,
    /// Told when no entry is in flight any more.
    idle: Notify,
    /// Written by the group: whether this node leads the shard.
    leads: Arc<AtomicBool>,
    closed: AtomicBool,
    storage_full: Arc<AtomicBool>,
    /// Whether the last attempt found no room for a segment, or for a checkpoint. The disk may say
    /// that it has room all the same: inodes, a quota, descriptors.
    no_room: [AtomicBool; 2],
}

/// What of a shard found no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Records cannot be written to their segments, and stay in memory.
    Segments,
    /// No checkpoint can be written, and the log cannot be freed.
    Checkpoint,
}

/// The waiters of an entry, batch by batch; travels inside the entry as its local part.
#[derive(Debug)]
pub(crate) struct Waiters {
    batches: Mutex<Vec<Vec<Waiter>>>,
    /// Dropped when the entry is applied or lost: makes room for the next one.
    place: Mutex<Option<Place>>,
}

/// One of the places in flight.
#[derive(Debug)]
struct Place(Arc<Proposer>);

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
        self.0.work.notify_one();
    }
}

impl Waiters {
    /// Takes the waiters of all batches, in the order of the entry's batches.
    pub(crate) fn take(&self) -> Vec<Vec<Waiter>> {
        std::mem::take(&mut *self.batches.lock())
    }

    /// Says that the entry is applied.
    pub(crate) fn finish(&self) {
        drop(self.place.lock().take());
    }
}

impl Proposer {
    pub(crate) fn new(leads: Arc<AtomicBool>, storage_full: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            dirty: Mutex::new(Vec::new()),
            queued_bytes: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            entry_bytes: AtomicUsize::new(0),
            work: Notify::new(),
            room: Notify::new(),
            idle: Notify::new(),
            leads,
            closed: AtomicBool::new(false),
            storage_full,
            no_room: [AtomicBool::new(false), AtomicBool::new(false)],
        })
    }

    /// Notes whether there is room. While there is none for anything, records are refused: what was
    /// taken before is all that stays in memory.
    pub(crate) fn set_no_room(&self, of: NoRoom, is_full: bool) {
        let [segments, checkpoint] = &self.no_room;
        let place = match of {
            NoRoom::Segments => segments,
            NoRoom::Checkpoint => checkpoint,
        };
        if place.swap(is_full, Ordering::AcqRel) != is_full {
            tracing::warn!(?of, is_full, "room for what was accepted changed");
        }
    }

    /// Returns whether something of the shard found no room when it was last written.
    pub(crate) fn has_no_room(&self) -> bool {
        self.no_room.iter().any(|place| place.load(Ordering::Acquire))
    }

    /// Checks whether records may be queued.
    pub(crate) fn check_open(&self) -> Result<(), EnqueueError> {
        if self.closed.load(Ordering::Acquire) || !self.leads.load(Ordering::Acquire) {
            return Err(EnqueueError::NotLeader);
        }
        if self.storage_full.load(Ordering::Acquire) || self.has_no_room() {
            return Err(EnqueueError::StorageFull);
        }
        if self.queued_bytes() >= ACCUMULATOR_BYTES_MAX {
            return Err(EnqueueError::Overloaded);
        }
        Ok(())
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Waits while full queues are why nothing may be queued: what is refused for another reason,
    /// because the shard stops or this node leads it no more, is refused at once.
    pub(crate) async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            if self.check_open() != Err(EnqueueError::Overloaded) {
                return;
            }
            room.await;
        }
    }

    /// Waits until everything that was queued has been applied, or was lost.
    pub(crate) async fn wait_until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.queued_bytes() == 0 && self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Counts bytes that joined an accumulator.
    pub(crate) fn count_in(&self, bytes: usize) {
        let before = self.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        let enough = self.entry_bytes.load(Ordering::Acquire);
        if before < enough && before.saturating_add(bytes) >= enough {
            self.work.notify_one();
        }
    }

    /// Puts a partition that got something to take on the list. Wakes the proposer if it is idle;
    /// otherwise the entry in flight does when it is applied.
    pub(crate) fn list(&self, partition: Arc<Partition>) {
        self.dirty.lock().push(partition);
        if self.in_flight.load(Ordering::SeqCst) == 0 {
            self.work.notify_one();
        }
    }

    /// Refuses records from now on: the shard stops.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.notify_waiters();
    }

    /// Takes what is queued, up to an entry's size; partitions that have more go to the back.
    fn drain(&self) -> Vec<(Arc<Partition>, OpenBatch)> {
        let mut drained = Vec::new();
        let mut taken = Vec::new();
        let mut bytes = 0;
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let mut left = Vec::new();
        for partition in dirty {
            if bytes >= ENTRY_BYTES_TARGET {
                left.push(partition);
                continue;
            }
            let more = partition.take_batches(ENTRY_BYTES_TARGET - bytes, &mut taken);
            for batch in taken.drain(..) {
                bytes += batch.builder.bytes();
                drained.push((Arc::clone(&partition), batch));
            }
            if more {
                left.push(partition);
            }
        }
        if !left.is_empty() {
            let mut dirty = self.dirty.lock();
            left.append(&mut dirty);
            *dirty = left;
        }
        drained
    }

    fn has_work(&self) -> bool {
        !self.dirty.lock().is_empty()
    }

    fn release(&self, bytes: usize) {
        let before = self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
        if before >= ACCUMULATOR_BYTES_MAX {
            self.room.notify_waiters();
        }
    }

    fn claim_place(self: &Arc<Self>) -> Option<Place> {
        let in_flight = self.in_flight();
        let enough = self.entry_bytes.load(Ordering::Acquire);
        if in_flight >= ENTRIES_IN_FLIGHT_MAX || (in_flight > 0 && self.queued_bytes() < enough) {
            return None;
        }
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        Some(Place(Arc::clone(self)))
    }
}

/// Proposes until the group's core ends. Runs on the shard's own thread.
pub(crate) async fn run(
    proposer: Arc<Proposer>,
    group: Group,
    clock: SharedClock,
    metrics: ShardMetrics,
) {
    loop {
        let work = proposer.work.notified();
        while proposer.has_work()
            && let Some(place) = proposer.claim_place()
        {
            // Lets every connection that is ready join this entry before it is cut.
            tokio::task::yield_now().await;
            let drained = proposer.drain();
            propose(&proposer, &group, place, drained, (&clock, &metrics)).await;
        }
        if !group.status().running {
            // What is queued stays so: nobody may wait for it to go.
            proposer.close();
            return;
        }
        work.await;
    }
}

async fn propose(
    proposer: &Proposer,
    group: &Group,
    place: Place,
    drained: Vec<(Arc<Partition>, OpenBatch)>,
    (clock, metrics): (&SharedClock, &ShardMetrics),
) {
    let mut batches = Vec::with_capacity(drained.len());
    let mut waiters = Vec::with_capacity(drained.len());
    let mut bytes = 0;
    for (partition, batch) in drained {
        bytes += batch.counted_bytes;
        let records = batch.builder.count();
        let sealed = batch.builder.seal(TimestampType::CreateTime);
        metrics.batch_records.observe(u64::from(records));
        metrics.batch_bytes.observe(sealed.len() as u64);
        batches.push((partition.id(), sealed));
        waiters.push(batch.waiters);
    }
    proposer.entry_bytes.store(bytes, Ordering::Release);
    proposer.release(bytes);
    metrics.entry_bytes.observe(bytes as u64);
    let waiters = Waiters { batches: Mutex::new(waiters), place: Mutex::new(Some(place)) };
    let parts = encode_append(clock.now(), batches);
    let waiters = Arc::new(waiters);
    let command = Command::new(parts, Some(Box::new(Arc::clone(&waiters))));
    if let Err(error) = group.propose(command).await {
        let error = match error {
            ProposeError::NotLeader { .. } => AppendError::NotLeader,
            ProposeError::OutcomeUnknown => AppendError::OutcomeUnknown,
        };
        for waiter in waiters.take().into_iter().flatten() {
            waiter.failed(error);
        }
        waiters.finish();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn full() -> (Arc<AtomicBool>, Arc<Proposer>) {
        let leads = Arc::new(AtomicBool::new(true));
        let proposer = Proposer::new(Arc::clone(&leads), Arc::new(AtomicBool::new(false)));
        proposer.count_in(ACCUMULATOR_BYTES_MAX);
        assert_eq!(proposer.check_open(), Err(EnqueueError::Overloaded));
        (leads, proposer)
    }

    #[tokio::test]
    async fn who_waits_for_room_learns_that_there_will_be_none() {
        let (_, proposer) = full();
        let mut room = Box::pin(proposer.wait_for_room());
        assert!(room.as_mut().now_or_never().is_none());
        proposer.close();
        assert!(room.as_mut().now_or_never().is_some(), "it stops");
        assert_eq!(proposer.check_open(), Err(EnqueueError::NotLeader));

        let (leads, proposer) = full();
        let mut room = Box::pin(proposer.wait_for_room());
        assert!(room.as_mut().now_or_never().is_none());
        leads.store(false, Ordering::Release);
        // What was queued is lost, piece by piece, and the queue is still full after the first.
        proposer.count_in(2);
        proposer.release(1);
        assert!(room.as_mut().now_or_never().is_some(), "it leads no more");
        assert!(proposer.wait_for_room().now_or_never().is_some());

        let (_, proposer) = full();
        let mut room = Box::pin(proposer.wait_for_room());
        assert!(room.as_mut().now_or_never().is_none());
        proposer.release(1);
        assert!(room.as_mut().now_or_never().is_some(), "there is room");
    }
}
