//! Reading batches from a segment's file, trusting nothing that is found there.
//!
//! Invariants:
//! - a batch is returned only if its header fits the place where it is and its CRC is right;
//! - one read serves a request, a second only when the first batch is larger than what was asked
//!   for;
//! - what a header says about lengths allocates nothing before it was checked against the
//!   segment's.

use std::io;

use bytes::Bytes;

use crate::record::{Batch, BatchHeader, HEADER_BYTES};
use crate::storage::fs::File;
use crate::storage::log::BATCH_BYTES_MAX;
use crate::storage::log::index::{Index, Indexed};
use crate::storage::log::state::SegmentState;
use crate::storage::log::store::count;
use crate::storage::log::view::Entry;
use crate::types::Offset;

/// Least that is read from a file at once: an index interval and some batches behind it.
const READ_BYTES_MIN: usize = 16 * 1024;

/// Most that is read at once, unless a single batch is larger.
const READ_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Index entries that are tried when good batches are looked for behind a damaged one.
const RESUME_TRIES_MAX: usize = 4096;

/// What a reader is after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The batch that holds this offset comes first.
    pub(super) from: Offset,
    /// Bytes of batches; one batch comes in any case.
    pub(super) max_bytes: usize,
    /// Batches at or beyond this offset are not visible.
    pub(super) log_end: Offset,
}

/// Batches read from a file, and where they end for a bad reason.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) batches: Vec<Batch>,
    /// Where the next batch should be and is not.
    pub(super) bad: Option<Place>,
}

/// A place in a file where a batch starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) position: u64,
    /// The offset that the batch starts with, `None` where only the index says that there is one.
    pub(super) offset: Option<Offset>,
    /// The batch's last offset, where the index says that there is one. The checksum covers how
    /// many offsets a batch has, and not where they start: this does.
    pub(super) last: Option<Offset>,
}

impl Place {
    /// A place where a batch must start with `offset`.
    pub(super) fn at(position: u64, offset: Offset) -> Self {
        Self { position, offset: Some(offset), last: None }
    }

    /// A place that the index of a segment with this base names.
    pub(super) fn indexed(indexed: Indexed, base: Offset) -> Self {
        let Indexed { position, last } = indexed;
        Self { position, offset: last.is_none().then_some(base), last }
    }
}

/// How far a walk over a segment has got.
struct Walk<'a> {
    state: &'a SegmentState,
    wanted: Wanted,
    position: u64,
    /// Offset that the batch at `position` has to start with, as in [`Place`].
    expected: Option<Offset>,
    /// Last offset that it has to have, as in [`Place`].
    last: Option<Offset>,
    batches: Vec<Batch>,
    taken_bytes: usize,
}

/// What a walk over one window of the file came to.
enum Step {
    Enough,
    /// The next batch needs this many bytes from the present position.
    More(usize),
    Bad,
}

/// Reads batches from `start` on and returns those from `wanted.from` on.
pub(super) fn read_batches(entry: &Entry, wanted: Wanted, start: Place) -> io::Result<Found> {
    let state = &entry.state;
    let file = entry.segment.file()?;
    let Place { position, offset: expected, last } = start;
    let batches = Vec::new();
    let mut walk = Walk { state, wanted, position, expected, last, batches, taken_bytes: 0 };
    let mut want = wanted.max_bytes.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
    while walk.position < state.len {
        let (window, is_short) = read_window(entry, file.as_ref(), walk.position, want)?;
        match walk.over(window, is_short) {
            Step::More(bytes) if walk.batches.is_empty() => want = want.max(bytes),
            Step::Enough | Step::More(_) => return Ok(Found { batches: walk.batches, bad: None }),
            Step::Bad => return Ok(walk.stopped()),
        }
    }
    // Without batches the walk came to the end before an offset that is recorded to be there.
    if walk.batches.is_empty() {
        Ok(walk.stopped())
    } else {
        Ok(Found { batches: walk.batches, bad: None })
    }
}

/// Lists batches behind a position, with the last offset of each.
pub(super) fn batches_after(index: &Index, base: Offset, position: u64) -> Vec<(u64, Offset)> {
    index.batches_after(base, position).take(RESUME_TRIES_MAX).collect()
}

/// Finds the first good batch behind a place where the batch that starts with `missing` should be,
/// `None` when the segment has none. `indexed` are batches behind it to try.
pub(super) fn next_good(
    entry: &Entry,
    indexed: &[(u64, Offset)],
    position: u64,
    missing: Offset,
) -> io::Result<Option<(u64, Offset)>> {
    let file = entry.segment.file()?;
    // Where only the records are damaged, the header still says where the next batch is.
    let neighbour = header_at(entry, file.as_ref(), position)?
        .and_then(|header| position.checked_add(u64::try_from(header.total_bytes()).ok()?));
    let neighbour = neighbour.map(|position| (position, None));
    let indexed = indexed.iter().map(|(position, last)| (*position, Some(*last)));
    for (position, last) in neighbour.into_iter().chain(indexed) {
        let Some(header) = header_at(entry, file.as_ref(), position)? else { continue };
        let is_other = last.is_some_and(|last| last != header.last_offset());
        if is_other || header.base_offset <= missing {
            continue;
        }
        let (bytes, _) = read_window(entry, file.as_ref(), position, header.total_bytes())?;
        if checked(bytes).is_some() {
            return Ok(Some((position, header.base_offset)));
        }
    }
    Ok(None)
}

impl Walk<'_> {
    /// Takes the batches in a window that starts at the present position. `is_short` tells that the
    /// file ends in it, before its recorded length.
    fn over(&mut self, window: Bytes, is_short: bool) -> Step {
        let mut rest = window;
        loop {
            if self.position >= self.state.len {
                return Step::More(0);
            }
            if rest.len() < HEADER_BYTES {
                return if is_short { Step::Bad } else { Step::More(HEADER_BYTES) };
            }
            let Some(header) = self.fitting_header(&rest) else {
                return Step::Bad;
            };
            let total = header.total_bytes();
            if rest.len() < total {
                return if is_short { Step::Bad } else { Step::More(total) };
            }
            // Batches that are only passed are checked as well: a wrong length in one would make
            // good batches behind it look damaged.
            let Some(batch) = checked(rest.split_to(total)) else { return Step::Bad };
            if header.next_offset() > self.wanted.from {
                let is_full = self.taken_bytes.saturating_add(total) > self.wanted.max_bytes;
                let is_hidden = header.next_offset() > self.wanted.log_end;
                if is_hidden || (is_full && !self.batches.is_empty()) {
                    return Step::Enough;
                }
                self.batches.push(batch);
                self.taken_bytes += total;
            }
            self.position += u64::try_from(total).unwrap_or(u64::MAX);
            self.expected = Some(header.next_offset());
            self.last = None;
        }
    }

    fn stopped(self) -> Found {
        let bad = Place { position: self.position, offset: self.expected, last: self.last };
        Found { batches: self.batches, bad: Some(bad) }
    }

    /// Parses the header at the present position; `None` when it is not that of a batch which may
    /// be here.
    fn fitting_header(&self, bytes: &[u8]) -> Option<BatchHeader> {
        let header = BatchHeader::parse(bytes).ok()?;
        let follows = match self.expected {
            // Segments as first written have no gaps, rewritten ones may.
            Some(expected) if self.state.generation == 0 => header.base_offset == expected,
            Some(expected) => header.base_offset >= expected,
            None => header.base_offset <= self.wanted.from,
        };
        let follows = follows && self.last.is_none_or(|last| header.last_offset() == last);
        (follows && fits(&header, self.position, self.state)).then_some(header)
    }
}

fn fits(header: &BatchHeader, position: u64, state: &SegmentState) -> bool {
    let end =
        u64::try_from(header.total_bytes()).ok().and_then(|bytes| position.checked_add(bytes));
    end.is_some_and(|end| end <= state.len)
        && header.total_bytes() <= BATCH_BYTES_MAX
        && header.base_offset >= state.base
        && header.next_offset() <= state.next_offset
}

/// Makes a batch of bytes whose checksum is right.
fn checked(bytes: Bytes) -> Option<Batch> {
    let batch = Batch::from_stored(bytes).ok()?;
    batch.verify_crc().is_ok().then_some(batch)
}

/// Reads the header at `position`, `None` when it is not that of a batch of this segment.
fn header_at(entry: &Entry, file: &dyn File, position: u64) -> io::Result<Option<BatchHeader>> {
    let (bytes, _) = read_window(entry, file, position, HEADER_BYTES)?;
    let header = BatchHeader::parse(&bytes).ok();
    Ok(header.filter(|header| fits(header, position, &entry.state)))
}

/// Reads `want` bytes, less at the recorded end; also tells whether the file ended before that.
fn read_window(
    entry: &Entry,
    file: &dyn File,
    position: u64,
    want: usize,
) -> io::Result<(Bytes, bool)> {
    let left = entry.state.len.saturating_sub(position);
    let want = want.min(usize::try_from(left).unwrap_or(usize::MAX));
    let mut buffer = vec![0; want];
    let read = file.read_at(&mut buffer, position)?;
    buffer.truncate(read);
    let counts = &entry.segment.home.store.counts;
    count(&counts.bytes_read, u64::try_from(read).unwrap_or(u64::MAX));
    Ok((Bytes::from(buffer), read < want))
}
