//! What is known of one replica's log in memory: where its entries lie, its terms, its marks.
//!
//! Invariants:
//! - `slots` and then `queued` hold the entries from `first` on without a gap;
//! - `terms` has the first index of each run of equal terms over exactly these entries.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::storage::wal::{Entry, LogId, ReplicaState, Vote};
use crate::types::{RaftIndex, Term};

/// Where an entry's frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) position: u64,
    /// The file's sequence; sequences stop at this type's end.
    pub(super) file: u32,
    /// Of the whole frame.
    pub(super) length: u32,
}

/// A group of entries that were appended together, shared by the queue and the readers.
pub(super) type Batch = Arc<[Entry]>;

/// An entry that is not known to be on disk yet.
#[derive(Debug, Clone)]
struct Queued {
    batch: Batch,
    at: usize,
    /// Tells it from an entry with the same index that was truncated while it was being written.
    ticket: u64,
}

#[derive(Debug, Default)]
pub(super) struct ReplicaLog {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    purged: Option<LogId>,
    first: u64,
    slots: VecDeque<Slot>,
    queued: VecDeque<Queued>,
    terms: VecDeque<(u64, Term)>,
}

/// Where to get an entry from.
#[derive(Debug)]
pub(super) enum Source {
    Disk { slot: Slot, id: LogId },
    Memory { batch: Batch, at: usize },
}

impl ReplicaLog {
    fn count(&self) -> u64 {
        u64::try_from(self.slots.len() + self.queued.len()).unwrap_or(u64::MAX)
    }

    /// Returns the index after the last entry; meaningless while there is none.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.count())
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.queued.is_empty()
    }

    pub(super) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// Returns the first index that can be read.
    pub(super) fn first(&self) -> Option<RaftIndex> {
        (!self.is_empty()).then_some(RaftIndex::new(self.first))
    }

    pub(super) fn last(&self) -> Option<LogId> {
        if self.is_empty() {
            return self.purged;
        }
        let index = self.end().saturating_sub(1);
        let (_, term) = self.terms.back()?;
        Some(LogId { term: *term, index: RaftIndex::new(index) })
    }

    pub(super) fn state(&self) -> ReplicaState {
        ReplicaState {
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
            first: self.first(),
            last: self.last(),
        }
    }

    /// Returns the entry's term, or the purged one's.
    pub(super) fn term_of(&self, index: RaftIndex) -> Option<Term> {
        if let Some(purged) = self.purged.filter(|purged| purged.index == index) {
            return Some(purged.term);
        }
        let raw = index.get();
        if self.is_empty() || raw < self.first || raw >= self.end() {
            return None;
        }
        let runs = self.terms.partition_point(|(from, _)| *from <= raw);
        self.terms.get(runs.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Returns the last entry of each term.
    pub(super) fn key_log_ids(&self) -> Vec<LogId> {
        let next_starts = self.terms.iter().skip(1).map(|(index, _)| *index);
        let ends = next_starts.map(|start| start.saturating_sub(1));
        let last = self.last().map(|last| last.index.get());
        let terms = self.terms.iter().map(|(_, term)| *term);
        let id = |(term, end)| LogId { term, index: RaftIndex::new(end) };
        terms.zip(ends.chain(last)).map(id).collect()
    }

    /// Returns whether an entry may follow: it is the next one, of no lower term.
    pub(super) fn accepts(&self, id: LogId) -> bool {
        match (self.is_empty(), self.last()) {
            (_, Some(last)) => id.index == last.index.next() && id.term >= last.term,
            (_, None) => true,
        }
    }

    /// Like `accepts`, for recovery: the entries between the purged one and the log's first may
    /// have been in files that are gone.
    pub(super) fn accepts_recovered(&self, id: LogId) -> bool {
        if self.is_empty() {
            self.purged.is_none_or(|purged| id.index > purged.index)
        } else {
            self.accepts(id)
        }
    }

    fn begin_at(&mut self, id: LogId) {
        if self.is_empty() {
            self.first = id.index.get();
            self.terms.clear();
        }
        if self.terms.back().is_none_or(|(_, term)| *term != id.term) {
            self.terms.push_back((id.index.get(), id.term));
        }
    }

    /// Adds an entry that is on disk.
    pub(super) fn push_slot(&mut self, id: LogId, slot: Slot) {
        self.begin_at(id);
        self.slots.push_back(slot);
    }

    /// Returns where an entry lies, if that is known.
    pub(super) fn slot(&self, index: RaftIndex) -> Option<Slot> {
        let at = usize::try_from(index.get().checked_sub(self.first)?).ok()?;
        self.slots.get(at).copied()
    }

    /// Learns that an entry, if it is still there, was copied.
    pub(super) fn moved(&mut self, index: RaftIndex, to: Slot) {
        let at = index.get().checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(slot) = at.and_then(|at| self.slots.get_mut(at)) {
            *slot = to;
        }
    }

    /// Adds entries that are only queued; `ticket` names them for [`ReplicaLog::written`].
    pub(super) fn push_queued(&mut self, batch: &Batch, ticket: u64) {
        for (at, entry) in batch.iter().enumerate() {
            self.begin_at(entry.id());
            self.queued.push_back(Queued { batch: Arc::clone(batch), at, ticket });
        }
    }

    /// Learns where the oldest queued entry of `ticket` was written; it may be truncated by now.
    pub(super) fn written(&mut self, index: RaftIndex, ticket: u64, slot: Slot) {
        let next = self.first.saturating_add(u64::try_from(self.slots.len()).unwrap_or(u64::MAX));
        let front = self.queued.front();
        if next == index.get() && front.is_some_and(|queued| queued.ticket == ticket) {
            self.queued.pop_front();
            self.slots.push_back(slot);
        }
    }

    /// Forgets the entries after `keep`, or all.
    pub(super) fn truncate_after(&mut self, keep: Option<RaftIndex>) {
        let end = keep.map_or(0, |index| index.next().get());
        let kept = usize::try_from(end.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.queued.truncate(kept.saturating_sub(self.slots.len()));
        self.slots.truncate(kept);
        while self.terms.back().is_some_and(|(from, _)| *from >= end) {
            self.terms.pop_back();
        }
    }

    /// Forgets the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        let first = upto.index.next().get();
        let gone = usize::try_from(first.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if !self.is_empty() && first > self.first {
            let from_slots = gone.min(self.slots.len());
            self.slots.drain(..from_slots);
            let from_queued = (gone - from_slots).min(self.queued.len());
            self.queued.drain(..from_queued);
            self.first = first;
        }
        self.purged = Some(upto);
        if self.is_empty() {
            self.terms.clear();
            return;
        }
        let runs = self.terms.partition_point(|(from, _)| *from <= first);
        self.terms.drain(..runs.saturating_sub(1));
        if let Some(run) = self.terms.front_mut() {
            run.0 = run.0.max(first);
        }
    }

    /// Lists the sources of the entries in `range` until their frames have `max_bytes`; the first
    /// entry is always among them.
    ///
    /// `None` when the range begins before the log does.
    pub(super) fn sources(&self, range: Range<RaftIndex>, max_bytes: u64) -> Option<Vec<Source>> {
        let mut found = Vec::new();
        if self.is_empty() {
            let gone = self.purged.is_some_and(|purged| range.start <= purged.index);
            return if gone { None } else { Some(found) };
        }
        let start = usize::try_from(range.start.get().checked_sub(self.first)?).ok()?;
        let mut bytes = 0_u64;
        for (at, raw) in (start..).zip(range.start.get()..range.end.get().min(self.end())) {
            let (source, length) = self.source(RaftIndex::new(raw), at)?;
            bytes = bytes.saturating_add(length);
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(source);
        }
        Some(found)
    }

    fn source(&self, index: RaftIndex, at: usize) -> Option<(Source, u64)> {
        if let Some(slot) = self.slots.get(at) {
            let id = LogId { term: self.term_of(index)?, index };
            return Some((Source::Disk { slot: *slot, id }, u64::from(slot.length)));
        }
        let queued = self.queued.get(at.checked_sub(self.slots.len())?)?;
        let bytes = queued.batch.get(queued.at)?.payload_bytes();
        let source = Source::Memory { batch: Arc::clone(&queued.batch), at: queued.at };
        Some((source, u64::try_from(bytes).unwrap_or(u64::MAX)))
    }
}
