//! The tail cache's budget: which flushed batches leave memory when there are too many.
//!
//! Batches live in their partition's view; this file only counts them and remembers, one note per
//! flush, in which order they became evictable. That costs the append one atomic addition and the
//! flush one short lock.
//!
//! Invariants:
//! - only batches that are in their file are evicted, oldest flush first, so memory is bounded by
//!   the budget plus what is not yet flushed;
//! - a note keeps no partition alive, and notes of partitions that are gone are swept before they
//!   outnumber the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::record::Batch;
use crate::storage::log::view::Shared;
use crate::types::Offset;

/// What a batch costs beside its bytes: its place in the tail and its reference count.
const BATCH_OVERHEAD_BYTES: usize = 256;

/// Notes that are kept before the first sweep.
const SWEEP_NOTES_MIN: usize = 1024;

/// The budget over all partitions of a node.
#[derive(Debug)]
pub(super) struct TailCache {
    budget_bytes: usize,
    used_bytes: AtomicUsize,
    flushed: Mutex<Flushed>,
}

#[derive(Debug)]
struct Flushed {
    notes: VecDeque<Note>,
    sweep_at: usize,
}

/// "This partition's batches before `until` are in the file."
#[derive(Debug)]
struct Note {
    partition: Weak<Shared>,
    until: Offset,
}

/// Returns the bytes by which a batch counts.
pub(super) fn cost(batch: &Batch) -> usize {
    batch.total_bytes() + BATCH_OVERHEAD_BYTES
}

impl TailCache {
    pub(super) fn new(budget_bytes: usize) -> Self {
        let flushed = Flushed { notes: VecDeque::new(), sweep_at: SWEEP_NOTES_MIN };
        Self { budget_bytes, used_bytes: AtomicUsize::new(0), flushed: Mutex::new(flushed) }
    }

    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Counts a batch that joined a tail.
    pub(super) fn added(&self, bytes: usize) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts batches that left a tail.
    pub(super) fn removed(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that a partition's batches before `until` may be evicted, and evicts the oldest while
    /// the budget is exceeded. The caller holds no partition's lock.
    pub(super) fn flushed(&self, partition: &Arc<Shared>, until: Offset) {
        let note = Note { partition: Arc::downgrade(partition), until };
        {
            let mut flushed = self.flushed.lock();
            flushed.notes.push_back(note);
            if flushed.notes.len() >= flushed.sweep_at {
                flushed.notes.retain(|note| {
                    note.partition.upgrade().is_some_and(|shared| shared.holds_before(note.until))
                });
                flushed.sweep_at = SWEEP_NOTES_MIN.max(flushed.notes.len() * 2);
            }
        }
        self.shrink();
    }

    fn shrink(&self) {
        while let Some(excess) = self.excess() {
            let Some(note) = self.flushed.lock().notes.pop_front() else {
                return;
            };
            let Some(shared) = note.partition.upgrade() else {
                continue;
            };
            shared.evict(note.until, excess);
            if self.excess().is_none() && shared.holds_before(note.until) {
                self.flushed.lock().notes.push_front(note);
            }
        }
    }

    fn excess(&self) -> Option<usize> {
        self.used_bytes().checked_sub(self.budget_bytes).filter(|excess| *excess > 0)
    }
}
