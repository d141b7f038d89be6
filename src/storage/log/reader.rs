//! The readers' side of a partition's log.
//!
//! A read is answered from the tail in memory when its offset is there, else by one read of the
//! segment's file from where the index points. Batches are slices of one buffer, never copied.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use bytes::Bytes;

use crate::record::{Batch, DecompressLimit};
use crate::storage::log::ReadError;
use crate::storage::log::damage::DamagedRange;
use crate::storage::log::disk::{self, Place, Wanted};
use crate::storage::log::index::Index;
use crate::storage::log::names::FileKind;
use crate::storage::log::removal::{Pinned, PinnedFile};
use crate::storage::log::segment::Origin;
use crate::storage::log::state::PartitionState;
use crate::storage::log::store::count;
use crate::storage::log::view::{Entry, Shared};
use crate::storage::log::waiters::Registration;
use crate::types::{Offset, Timestamp, TopicPartition};

/// What a search by time reads at once.
const SEARCH_BYTES: usize = 64 * 1024;

/// Most that a compressed batch may become while a search by time looks into it.
const SEARCH_DECOMPRESSED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A reader of one partition. Clones read the same log.
#[derive(Debug, Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

/// What a read found.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Whole batches in offset order; the first may start before the offset that was asked for.
    pub batches: Vec<Batch>,
    /// Offset after the last batch, from which the next read goes on.
    pub next: Offset,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns which partition it reads.
    pub fn id(&self) -> TopicPartition {
        self.shared.home.id
    }

    /// Returns the first readable offset.
    pub fn log_start(&self) -> Offset {
        self.shared.log_start()
    }

    /// Returns the offset that the next record gets.
    pub fn log_end(&self) -> Offset {
        self.shared.log_end()
    }

    /// Returns whether the partition was deleted.
    pub fn is_deleted(&self) -> bool {
        self.shared.is_deleted()
    }

    /// Returns the bytes of all segments, what is not yet in a file included.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of segments.
    pub fn segment_count(&self) -> usize {
        self.shared.view.lock().segments.len()
    }

    /// Lists what is known to be damaged on this disk.
    pub fn damaged_ranges(&self) -> Vec<DamagedRange> {
        self.shared.damage.ranges()
    }

    /// Returns whether a read at `from` would need no file.
    pub fn is_in_memory(&self, from: Offset) -> bool {
        if from < self.log_start() || from >= self.log_end() {
            return true;
        }
        let view = self.shared.view.lock();
        view.tail.front().is_some_and(|front| front.base_offset() <= from)
    }

    /// Has `waker` woken when the log end moves or the partition is deleted, once. Register first,
    /// then look at the log end again: nothing is missed then.
    pub fn register(&self, waker: &Waker) -> Registration {
        Registration::new(Arc::clone(&self.shared), waker)
    }

    /// Reads batches from the one that holds `from`, about `max_bytes` of them and at least one;
    /// none only at the log end. May read a file: see [`LogReader::is_in_memory`].
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`]; [`ReadError::Damaged`] when `from` cannot be read from this disk,
    /// go on at `to`; [`ReadError::Deleted`]; [`ReadError::Io`].
    pub fn read(&self, from: Offset, max_bytes: usize) -> Result<Chunk, ReadError> {
        let shared = &self.shared;
        let (start, end) = (shared.log_start(), shared.log_end());
        if shared.is_deleted() {
            return Err(ReadError::Deleted);
        }
        if from < start || from > end {
            return Err(ReadError::OutOfRange { start, end });
        }
        if from == end {
            return Ok(Chunk { batches: Vec::new(), next: from });
        }
        if let Some(DamagedRange { from, to }) = shared.damage.at(from) {
            return Err(ReadError::Damaged { from, to: to.min(end) });
        }
        let wanted = Wanted { from, max_bytes, log_end: end };
        let counts = &shared.home.store.counts;
        let entry = {
            let view = shared.view.lock();
            if view.tail.front().is_some_and(|front| front.base_offset() <= from) {
                let batches = from_tail(&view.tail, wanted);
                drop(view);
                count(&counts.tail_hits, 1);
                return Ok(chunk(batches, from));
            }
            view.segment_at(from).cloned()
        };
        count(&counts.tail_misses, 1);
        match entry {
            Some(entry) if from < entry.state.next_offset => self.read_file(&entry, wanted),
            _ => Err(self.not_there(from)),
        }
    }

    /// Finds the first record, in offset order and at or above `from`, that is not older than
    /// `timestamp`. May read files.
    ///
    /// # Errors
    /// As [`LogReader::read`], but never [`ReadError::OutOfRange`]: where retention moves the log
    /// start meanwhile, the search goes on from there.
    pub fn find_timestamp(
        &self,
        from: Offset,
        timestamp: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let end = self.log_end();
        let lowest = from.max(self.log_start());
        let mut from = lowest;
        while from < end {
            let (first, until) = self.candidates(from, timestamp, end)?;
            from = first;
            while from < until {
                let chunk = match self.read(from, SEARCH_BYTES) {
                    Err(ReadError::OutOfRange { start, .. }) if start > from => {
                        from = start;
                        continue;
                    }
                    read => read?,
                };
                let not_older = |batch: &&Batch| batch.max_timestamp() >= timestamp;
                for batch in chunk.batches.iter().filter(not_older) {
                    if let Some(found) = self.find_record(batch, lowest, timestamp)? {
                        return Ok(Some(found));
                    }
                }
                from = chunk.next;
            }
        }
        Ok(None)
    }

    /// Pins the files that hold the offsets before `end`, as they are now.
    pub(super) fn pin(&self, log_start: Offset, end: Offset) -> Pinned {
        let view = self.shared.view.lock();
        let with_bytes = view.segments.iter().filter(|entry| entry.state.len > 0);
        let files: Vec<_> = with_bytes
            .map(|entry| PinnedFile::new(Arc::clone(&entry.segment), entry.state))
            .collect();
        let segments = files.iter().map(|file| *file.state()).collect();
        let state = PartitionState { log_start, end, segments, extra: Bytes::new() };
        Pinned { state, files }
    }

    /// Returns a range of offsets, at or after `from`, that has to be searched for a timestamp;
    /// everything between `from` and it is older.
    fn candidates(
        &self,
        from: Offset,
        timestamp: Timestamp,
        end: Offset,
    ) -> Result<(Offset, Offset), ReadError> {
        let (entry, flushed_end) = {
            let view = self.shared.view.lock();
            let candidate = view.segments.iter().find(|entry| {
                entry.state.next_offset > from && entry.state.max_timestamp >= timestamp
            });
            // A segment that nothing was written of yet says nothing about those before it.
            let in_files = view.segments.iter().rev().find(|entry| entry.state.len > 0);
            let flushed_end = in_files.map_or(from, |entry| entry.state.next_offset);
            (candidate.cloned(), flushed_end)
        };
        let Some(Entry { segment, state }) = entry else {
            return Ok((from.max(flushed_end.min(end)), end));
        };
        let look = || {
            let older = |index: &Index| index.older_until(state.base, timestamp);
            segment.with_index_of(&state, |_| false, older)
        };
        let (mut older, origin) = look()?;
        if let Some(claim) = older
            && origin == Origin::Files
            && claim.0 > from
            && !self.is_true(claim)
        {
            segment.reindex(&state)?;
            let (again, origin) = look()?;
            // Where the log is damaged, too, nothing says what may be passed over.
            older = again.filter(|_| origin == Origin::Log);
        }
        let older_below = older.map_or(state.base, |(last, _)| last);
        Ok((from.max(older_below).max(state.base), state.next_offset.min(end)))
    }

    /// Checks that a batch ends with this offset and has this largest timestamp, as an entry of a
    /// time index says.
    fn is_true(&self, (last, timestamp): (Offset, Timestamp)) -> bool {
        let Ok(chunk) = self.read(last, 1) else { return false };
        let is_named =
            |batch: &Batch| batch.last_offset() == last && batch.max_timestamp() == timestamp;
        chunk.batches.first().is_some_and(is_named)
    }

    fn find_record(
        &self,
        batch: &Batch,
        lowest: Offset,
        timestamp: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let damaged = |_| ReadError::Damaged { from: batch.base_offset(), to: batch.next_offset() };
        let limit = DecompressLimit::new(SEARCH_DECOMPRESSED_BYTES_MAX);
        let start = lowest.max(self.log_start());
        for record in &batch.records(limit).map_err(damaged)? {
            let record = record.map_err(damaged)?;
            if record.timestamp >= timestamp && record.offset >= start {
                return Ok(Some(record.offset));
            }
        }
        Ok(None)
    }

    /// Says why no segment holds `from`, which was in range before the view was looked at.
    fn not_there(&self, from: Offset) -> ReadError {
        let (start, end) = (self.log_start(), self.log_end());
        if self.shared.is_deleted() {
            ReadError::Deleted
        } else if from < start {
            ReadError::OutOfRange { start, end }
        } else {
            // Cannot happen: what is neither in memory nor in a file is marked at the start.
            let view = self.shared.view.lock();
            let bases = view.segments.iter().map(|entry| entry.state.base);
            let to = bases.filter(|base| *base > from).min().unwrap_or(end);
            ReadError::Damaged { from, to }
        }
    }

    fn read_file(&self, entry: &Entry, wanted: Wanted) -> Result<Chunk, ReadError> {
        let (segment, state) = (&entry.segment, &entry.state);
        let failed =
            |source| ReadError::Io { action: "read", path: segment.path(FileKind::Log), source };
        let look_up = || {
            segment.with_index_of(
                state,
                |index| index.covers(state.base, wanted.from),
                |index| index.position(state.base, wanted.from),
            )
        };
        let at = |indexed| Place::indexed(indexed, state.base);
        let (indexed, mut origin) = look_up()?;
        let mut start = at(indexed);
        loop {
            let found = disk::read_batches(entry, wanted, start).map_err(failed)?;
            let bad = match found.bad {
                Some(bad) if found.batches.is_empty() => bad,
                _ => return Ok(chunk(found.batches, wanted.from)),
            };
            let Some(missing) = bad.offset else {
                // Either the log is damaged there or the index is wrong; the log tells. If it is
                // the log, only a walk from before tells which offsets are missing.
                if origin == Origin::Files {
                    segment.reindex(state)?;
                    origin = Origin::Log;
                    start = at(look_up()?.0);
                } else {
                    let before = |index: &Index| index.position_before(state.base, bad.position);
                    start = at(segment.with_index_of(state, |_| false, before)?.0);
                }
                continue;
            };
            let behind = |index: &Index| disk::batches_after(index, state.base, bad.position);
            let (behind, _) = segment.with_index_of(state, |_| false, behind)?;
            let good = disk::next_good(entry, &behind, bad.position, missing).map_err(failed)?;
            let to = good.map_or(state.next_offset, |(_, offset)| offset);
            self.shared.mark_damaged(missing, to);
            match good {
                Some((position, offset)) if offset <= wanted.from => {
                    start = Place::at(position, offset);
                }
                _ => {
                    return Err(ReadError::Damaged { from: missing, to: to.min(wanted.log_end) });
                }
            }
        }
    }
}

fn chunk(batches: Vec<Batch>, from: Offset) -> Chunk {
    let next = batches.last().map_or(from, Batch::next_offset);
    Chunk { batches, next }
}

/// Takes batches from a tail that holds `from`.
fn from_tail(tail: &VecDeque<Batch>, wanted: Wanted) -> Vec<Batch> {
    let first = tail.partition_point(|batch| batch.next_offset() <= wanted.from);
    let mut bytes = 0_usize;
    let wanted_batches = tail.range(first..).take_while(|batch| {
        let is_first = bytes == 0;
        bytes = bytes.saturating_add(batch.total_bytes());
        (is_first || bytes <= wanted.max_bytes) && batch.next_offset() <= wanted.log_end
    });
    wanted_batches.cloned().collect()
}
