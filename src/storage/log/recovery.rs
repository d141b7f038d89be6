//! Opening a partition's log as a checkpoint recorded it.
//!
//! Invariants:
//! - what is behind an active file's recorded length is cut off: it is in the Raft log and is
//!   applied again;
//! - a file shorter than recorded is damage and never padded; nothing is appended to it;
//! - names that the checkpoint does not know are left alone (they are orphans).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::record::crc32c_append;
use crate::storage::fs::{EntryKind, File, Open};
use crate::storage::log::Error;
use crate::storage::log::names::{FileKind, SegmentName};
use crate::storage::log::partition::{PartitionLog, Writer};
use crate::storage::log::scan::{ScanError, Scanner};
use crate::storage::log::segment::Segment;
use crate::storage::log::state::{PartitionState, SegmentState};
use crate::storage::log::store::Home;
use crate::storage::log::view::{Entry, Shared};
use crate::types::TopicConfig;

/// What is read at once to compute a checksum.
const CHECKSUM_WINDOW_BYTES: usize = 256 * 1024;

pub(super) fn open(
    home: &Arc<Home>,
    config: &TopicConfig,
    state: &PartitionState,
) -> Result<PartitionLog, Error> {
    state.check().map_err(|reason| Error::State { partition: home.id, reason })?;
    let lengths = if state.segments.is_empty() { BTreeMap::new() } else { list(home)? };
    let shared = Shared::new(Arc::clone(home), state.log_start, state.end);
    let mut log = PartitionLog::from_parts(Arc::clone(&shared), config, state.end);
    log.has_directory = !state.segments.is_empty();
    let mut entries = Vec::with_capacity(state.segments.len());
    for recorded in &state.segments {
        let name = SegmentName { base: recorded.base, generation: recorded.generation };
        let found = lengths.get(&name.file_name(FileKind::Log)).copied();
        let is_whole = found.is_some_and(|found| found >= recorded.len);
        let entry = if recorded.sealed || !is_whole {
            let segment = Segment::sealed(Arc::clone(home), name);
            let state = if is_whole {
                *recorded
            } else {
                let good = what_is_left(&segment, recorded, found.unwrap_or(0))?;
                shared.mark_damaged(good.next_offset, recorded.next_offset);
                // A sealed file keeps its record, so that it stays damaged until it is repaired.
                if recorded.sealed { *recorded } else { good }
            };
            Entry { segment, state }
        } else {
            let (bytes, newest) = (recorded.len, recorded.max_timestamp);
            let segment = Segment::growing(Arc::clone(home), name, bytes, newest);
            if found != Some(recorded.len) {
                cut(&segment, recorded.len)?;
            }
            log.writers.push(Writer::new(Arc::clone(&segment), *recorded, true));
            Entry { segment, state: *recorded }
        };
        entries.push(entry);
    }
    mark_gaps(&shared, &entries, state);
    let bytes = entries.iter().map(|entry| entry.state.len).sum();
    shared.size_bytes.store(bytes, std::sync::atomic::Ordering::Relaxed);
    shared.view.lock().segments = entries;
    Ok(log)
}

/// Lists the lengths of the files in a partition's directory.
fn list(home: &Home) -> Result<BTreeMap<String, u64>, Error> {
    let directory = home.directory();
    let entries = match home.store.fs().list(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(|source| Error::io("list", directory, source))?,
    };
    let files = entries.into_iter().filter(|entry| entry.kind == EntryKind::File);
    Ok(files.map(|entry| (entry.name, entry.len)).collect())
}

/// Cuts an active file back to its recorded length. The cut need not be durable: without it the
/// next start cuts again.
fn cut(segment: &Segment, len: u64) -> Result<(), Error> {
    let path = segment.path(FileKind::Log);
    let cut = segment.home.store.fs().open(&path, Open::Write).and_then(|file| file.set_len(len));
    cut.map_err(|source| Error::io("cut", path, source))
}

/// Marks the offsets that no segment holds, from the log start to the log end. There are such after
/// an active file was found short at an earlier start.
fn mark_gaps(shared: &Shared, entries: &[Entry], state: &PartitionState) {
    let mut next = state.log_start;
    for entry in entries {
        shared.mark_damaged(next, entry.state.base);
        next = next.max(entry.state.next_offset);
    }
    shared.mark_damaged(next, state.end);
}

/// Describes the whole batches at the start of a file that is shorter than recorded.
fn what_is_left(
    segment: &Arc<Segment>,
    recorded: &SegmentState,
    found_len: u64,
) -> Result<SegmentState, Error> {
    let mut good =
        SegmentState { generation: recorded.generation, ..SegmentState::empty(recorded.base) };
    good.sealed = true;
    if found_len == 0 {
        return Ok(good);
    }
    let failed = |source| Error::io("read", segment.path(FileKind::Log), source);
    let file = segment.file().map_err(failed)?;
    let mut scanner = Scanner::new(file.as_ref(), 0, found_len);
    loop {
        match scanner.next() {
            Ok(Some(scanned)) => {
                if good.len == 0 {
                    good.first_timestamp = scanned.header.max_timestamp;
                }
                let bytes = u64::try_from(scanned.header.total_bytes()).unwrap_or(u64::MAX);
                good.len = scanned.position.saturating_add(bytes);
                good.next_offset = scanned.header.next_offset().min(recorded.next_offset);
                good.note_newest(scanned.header.max_timestamp);
            }
            Ok(None) | Err(ScanError::Bad(_)) => break,
            Err(ScanError::Io(source)) => return Err(failed(source)),
        }
    }
    good.crc = checksum(file.as_ref(), good.len).map_err(failed)?;
    Ok(good)
}

/// Computes the checksum of a file's first `len` bytes, as [`SegmentState::crc`] has it.
pub(in crate::storage) fn checksum(file: &dyn File, len: u64) -> io::Result<u32> {
    let (mut crc, mut position) = (0, 0);
    let mut window = vec![0; CHECKSUM_WINDOW_BYTES];
    while position < len {
        let left = usize::try_from(len - position).unwrap_or(usize::MAX);
        let want = left.min(CHECKSUM_WINDOW_BYTES);
        let read = file.read_at(window.get_mut(..want).unwrap_or_default(), position)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        crc = crc32c_append(crc, window.get(..read).unwrap_or_default());
        position += u64::try_from(read).map_err(io::Error::other)?;
    }
    Ok(crc)
}
