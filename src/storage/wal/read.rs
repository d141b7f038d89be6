//! Reads entries back: from the queue what is not written yet, from the files the rest.
//!
//! Invariants:
//! - the state's lock is not held while a file is read; the files that are read are kept from being
//!   used again by holding them;
//! - nothing is returned that its checksums and its place do not prove to be what was asked for.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::wal::files::OpenFile;
use crate::storage::wal::format::{FRAME_HEAD_BYTES, FrameHead, Seed};
use crate::storage::wal::index::{Slot, Source};
use crate::storage::wal::parse::check_frame;
use crate::storage::wal::state::State;
use crate::storage::wal::{Damage, Entry, Error, LogId};
use crate::types::{RaftIndex, ReplicaId};

/// Bytes between two frames of a replica that are read over rather than around.
const READ_GAP_BYTES: u64 = 4096;

/// An entry to be read from a file.
pub(super) struct Wanted {
    file: Arc<OpenFile>,
    slot: Slot,
    id: LogId,
}

/// Where an entry comes from.
pub(super) enum Found {
    Disk(Wanted),
    Memory(Entry),
}

/// Finds entries; the caller holds the lock for it.
pub(super) fn find(
    state: &State,
    replica: ReplicaId,
    range: Range<RaftIndex>,
    max_bytes: u64,
) -> Result<Vec<Found>, Error> {
    let missing = || Error::NotInLog { replica, index: range.start };
    let log = state.replicas.get(&replica).ok_or_else(missing)?;
    let sources = log.sources(range.clone(), max_bytes).ok_or_else(missing)?;
    let found = sources.into_iter().map(|source| match source {
        Source::Disk { slot, id } => {
            let file = Arc::clone(&state.files.get(&slot.file)?.file);
            Some(Found::Disk(Wanted { file, slot, id }))
        }
        Source::Memory { batch, at } => batch.get(at).cloned().map(Found::Memory),
    });
    found.collect::<Option<Vec<_>>>().ok_or_else(missing)
}

/// Reads what was found.
pub(super) fn read_found(found: Vec<Found>, replica: ReplicaId) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::with_capacity(found.len());
    let mut run: Vec<Wanted> = Vec::new();
    for found in found {
        match found {
            Found::Disk(wanted) => {
                if run.last().is_some_and(|last| !continues(last, &wanted)) {
                    read_run(&mut run, &mut entries, replica)?;
                }
                run.push(wanted);
            }
            Found::Memory(entry) => {
                read_run(&mut run, &mut entries, replica)?;
                entries.push(entry);
            }
        }
    }
    read_run(&mut run, &mut entries, replica)?;
    Ok(entries)
}

/// Returns whether `next` can be read with the same call as the frame before it.
fn continues(last: &Wanted, next: &Wanted) -> bool {
    let end = last.slot.position.saturating_add(u64::from(last.slot.length));
    Arc::ptr_eq(&last.file, &next.file)
        && next.slot.position >= end
        && next.slot.position - end <= READ_GAP_BYTES
}

/// Reads frames that lie close together with one call.
fn read_run(
    run: &mut Vec<Wanted>,
    entries: &mut Vec<Entry>,
    replica: ReplicaId,
) -> Result<(), Error> {
    let run = std::mem::take(run);
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return Ok(());
    };
    let path: PathBuf = first.file.path.clone();
    let start = first.slot.position;
    let end = last.slot.position.saturating_add(u64::from(last.slot.length));
    let damaged = |position: u64, reason: String| {
        Error::Damaged(Damage { path: path.clone(), position, reason })
    };
    let io = |source| Error::Io { action: "read", path: path.clone(), source };
    let len = usize::try_from(end.saturating_sub(start));
    let mut bytes = vec![0; len.map_err(std::io::Error::other).map_err(io)?];
    let read = first.file.file.read_at(&mut bytes, start).map_err(io)?;
    if read < bytes.len() {
        return Err(damaged(start, format!("{read} bytes where {} were written", bytes.len())));
    }
    let bytes = Bytes::from(bytes);
    let seed = Seed::of(u64::from(first.file.sequence));
    for wanted in &run {
        let position = wanted.slot.position;
        let at = usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX);
        let length = usize::try_from(wanted.slot.length).unwrap_or(usize::MAX);
        let end = at.saturating_add(length);
        let frame = bytes.get(at..end).unwrap_or_default();
        let head =
            check_frame(frame, seed, position).map_err(|bad| damaged(position, bad.to_string()))?;
        if !is_wanted(&head, replica, wanted.id) || head.len() != length {
            return Err(damaged(position, format!("another frame than {:?}", wanted.id)));
        }
        let payload = vec![bytes.slice(at + FRAME_HEAD_BYTES..end)];
        entries.push(Entry { index: wanted.id.index, term: wanted.id.term, payload });
    }
    Ok(())
}

fn is_wanted(head: &FrameHead, replica: ReplicaId, id: LogId) -> bool {
    head.replica == replica && head.id == id
}
