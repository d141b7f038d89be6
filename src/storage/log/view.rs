//! What a partition's writer and its readers share.
//!
//! Invariants:
//! - the view's lock is held for look-ups and clones only, never during I/O, a wake or a free;
//! - segments ascend without overlap; the tail is contiguous and holds everything that is not in a
//!   file;
//! - log start and log end only grow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::record::Batch;
use crate::storage::log::cache::cost;
use crate::storage::log::damage::{Damage, DamagedRange};
use crate::storage::log::segment::Segment;
use crate::storage::log::state::SegmentState;
use crate::storage::log::store::{Home, count};
use crate::storage::log::waiters::Waiters;
use crate::types::Offset;

/// A partition as its writer and its readers see it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) home: Arc<Home>,
    log_start: AtomicI64,
    log_end: AtomicI64,
    /// Bytes of all segments, what is not yet in a file included.
    pub(super) size_bytes: AtomicU64,
    is_deleted: AtomicBool,
    pub(super) waiters: Waiters,
    pub(super) damage: Damage,
    pub(super) view: Mutex<View>,
}

#[derive(Debug, Default)]
pub(super) struct View {
    /// By base offset; the last may be active.
    pub(super) segments: Vec<Entry>,
    /// The newest batches.
    pub(super) tail: VecDeque<Batch>,
}

/// A segment and what its file holds: `state.len` bytes up to `state.next_offset`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) segment: Arc<Segment>,
    pub(super) state: SegmentState,
}

impl Shared {
    pub(super) fn new(home: Arc<Home>, start: Offset, end: Offset) -> Arc<Self> {
        Arc::new(Self {
            home,
            log_start: AtomicI64::new(start.get()),
            log_end: AtomicI64::new(end.get()),
            size_bytes: AtomicU64::new(0),
            is_deleted: AtomicBool::new(false),
            waiters: Waiters::default(),
            damage: Damage::default(),
            view: Mutex::default(),
        })
    }

    pub(super) fn log_start(&self) -> Offset {
        Offset::new(self.log_start.load(Ordering::SeqCst)).unwrap_or_default()
    }

    pub(super) fn log_end(&self) -> Offset {
        Offset::new(self.log_end.load(Ordering::SeqCst)).unwrap_or_default()
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::SeqCst)
    }

    /// Lets readers see everything before `end` and wakes those who wait.
    pub(super) fn publish(&self, end: Offset) {
        self.log_end.store(end.get(), Ordering::SeqCst);
        self.waiters.wake();
    }

    /// Moves the log start up and takes out the segments that end at or before `whole_below`.
    pub(super) fn advance(&self, start: Offset, whole_below: Offset) -> Vec<Entry> {
        let mut view = self.view.lock();
        self.log_start.store(start.get(), Ordering::SeqCst);
        let live = view.segments.partition_point(|entry| entry.segment.name.base < whole_below);
        let gone = view.segments.drain(..live).collect();
        let evicted = view.take_tail(whole_below, usize::MAX);
        drop(view);
        self.home.store.cache.removed(evicted.iter().map(cost).sum());
        self.damage.forget_below(start);
        gone
    }

    /// Ends the partition for its readers, and frees its memory.
    pub(super) fn delete(&self) -> Vec<Entry> {
        self.is_deleted.store(true, Ordering::SeqCst);
        let view = std::mem::take(&mut *self.view.lock());
        self.home.store.cache.removed(view.tail.iter().map(cost).sum());
        self.waiters.wake();
        view.segments
    }

    /// Evicts flushed batches before `until`, oldest first, up to about `bytes`.
    pub(super) fn evict(&self, until: Offset, bytes: usize) {
        let evicted = self.view.lock().take_tail(until, bytes);
        self.home.store.cache.removed(evicted.iter().map(cost).sum());
    }

    /// Returns whether a batch before `until` is in memory.
    pub(super) fn holds_before(&self, until: Offset) -> bool {
        self.view.lock().tail.front().is_some_and(|front| front.next_offset() <= until)
    }

    /// Remembers that a range cannot be read from this disk.
    pub(super) fn mark_damaged(&self, from: Offset, to: Offset) {
        if self.damage.mark(DamagedRange { from, to }) {
            count(&self.home.store.counts.damaged_ranges, 1);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let tail = std::mem::take(&mut self.view.get_mut().tail);
        self.home.store.cache.removed(tail.iter().map(cost).sum());
    }
}

impl View {
    /// Takes batches that end at or before `until` from the tail's front, for the caller to free
    /// after the lock.
    fn take_tail(&mut self, until: Offset, bytes: usize) -> Vec<Batch> {
        let mut taken = Vec::new();
        let mut taken_bytes = 0;
        while taken_bytes < bytes
            && self.tail.front().is_some_and(|front| front.next_offset() <= until)
            && let Some(batch) = self.tail.pop_front()
        {
            taken_bytes += cost(&batch);
            taken.push(batch);
        }
        if self.tail.is_empty() {
            // An idle partition keeps no buffer.
            self.tail = VecDeque::new();
        }
        taken
    }

    /// Returns the segment that `offset` is in, or would be if it were there.
    pub(super) fn segment_at(&self, offset: Offset) -> Option<&Entry> {
        let after = self.segments.partition_point(|entry| entry.segment.name.base <= offset);
        after.checked_sub(1).and_then(|found| self.segments.get(found))
    }
}
