//! Reads what can be read of a log that is not open, around what is damaged.
//!
//! Invariants:
//! - nothing on disk is changed;
//! - an entry is given out once, in the log's order, with the bytes that its checksums prove;
//! - what the log itself took back (truncated, written anew, of a replica that left) is left out;
//!   what was purged is not, as long as it is there: its segment may be what is lost.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::storage::fs::{Fs, Open};
use crate::storage::wal::files::{Name, is_in, parse_name};
use crate::storage::wal::format::{FileHeader, Kind};
use crate::storage::wal::parse::{Frame, Stopped, Walker};
use crate::storage::wal::{Error, LogId};
use crate::types::{RaftIndex, ReplicaId};

/// What to do at a damaged place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Salvage {
    /// End the file's listing.
    StopAtDamage,
    /// Go on behind it.
    SkipDamage,
}

/// Something met in a file.
pub(super) enum Step<'a> {
    /// A frame that is whole.
    Frame(&'a Frame<'a>),
    /// A place that is not, and position and number of the next round that can be read.
    Stopped(&'a Stopped, Option<(u64, u64)>),
}

/// Finds the log in a folder: in itself, or in the folder `wal` that a data directory has.
///
/// # Errors
/// [`Error::NoLog`]; [`Error::Io`] when the folder cannot be listed.
pub fn find(fs: &dyn Fs, dir: &Path) -> Result<PathBuf, Error> {
    let io = |source| Error::Io { action: "list", path: dir.to_owned(), source };
    if is_in(fs, dir).map_err(io)? {
        return Ok(dir.to_owned());
    }
    let below = dir.join("wal");
    match is_in(fs, &below) {
        Ok(true) => Ok(below),
        _ => Err(Error::NoLog(dir.to_owned())),
    }
}

/// Calls `each` with replica, id and payload of every entry of the log in `dir` that can be read.
///
/// # Errors
/// [`Error::Io`] for the log's files and for what `each` returns.
pub fn salvage(
    fs: &dyn Fs,
    dir: &Path,
    each: &mut dyn FnMut(ReplicaId, LogId, Bytes) -> io::Result<()>,
) -> Result<(), Error> {
    let mut places = BTreeMap::new();
    each_frame(fs, dir, &mut |sequence, frame| {
        note(&mut places, sequence, frame);
        Ok(())
    })?;
    each_frame(fs, dir, &mut |sequence, frame| {
        let (replica, id) = (frame.head.replica, frame.head.id);
        let at = places.get(&(replica, id.index));
        if frame.head.kind == Kind::Entry && at == Some(&(sequence, frame.position)) {
            each(replica, id, Bytes::copy_from_slice(frame.payload))?;
        }
        Ok(())
    })
}

/// Where the entries that count are: file and position.
type Places = BTreeMap<(ReplicaId, RaftIndex), (u64, u64)>;

fn note(places: &mut Places, sequence: u64, frame: &Frame<'_>) {
    let (replica, id) = (frame.head.replica, frame.head.id);
    let first_gone = match frame.head.kind {
        Kind::Entry => {
            places.insert((replica, id.index), (sequence, frame.position));
            return;
        }
        Kind::Truncate => id.index.next(),
        Kind::TruncateAll | Kind::Dropped => RaftIndex::new(0),
        _ => return,
    };
    let gone = (replica, first_gone)..=(replica, RaftIndex::new(u64::MAX));
    let gone: Vec<_> = places.range(gone).map(|(place, _)| *place).collect();
    for place in gone {
        places.remove(&place);
    }
}

/// Calls `each` with every frame that can be read, with the sequence of its file.
fn each_frame(
    fs: &dyn Fs,
    dir: &Path,
    each: &mut dyn FnMut(u64, &Frame<'_>) -> io::Result<()>,
) -> Result<(), Error> {
    let io = |action| move |source| Error::Io { action, path: dir.to_owned(), source };
    for entry in fs.list(dir).map_err(io("list"))? {
        let Name::Live(sequence) = parse_name(&entry.name) else {
            continue;
        };
        let bytes = read_whole(fs, &dir.join(&entry.name))?;
        // Without its header a file is read all the same: the sequence is in its name, and rounds
        // are numbered.
        let header = FileHeader::parse(&bytes).ok().filter(|header| header.sequence == sequence);
        let walker =
            Walker::new(&bytes, sequence, header.map_or(0, |header| header.previous_round));
        let walked = walk(walker, Salvage::SkipDamage, &mut |step| match step {
            Step::Frame(frame) => each(sequence, frame),
            Step::Stopped(..) => Ok(()),
        });
        walked.map_err(io("print"))?;
    }
    Ok(())
}

/// Walks over a file to its end, or to its first damaged place.
pub(super) fn walk(
    mut walker: Walker<'_>,
    salvage: Salvage,
    each: &mut dyn FnMut(Step<'_>) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let stopped = match walker.next_frame() {
            Ok(Some(frame)) => {
                each(Step::Frame(&frame))?;
                continue;
            }
            Ok(None) => return Ok(()),
            Err(stopped) => stopped,
        };
        let higher = walker.higher_round(stopped.round);
        each(Step::Stopped(&stopped, higher))?;
        match (salvage, &stopped.head, higher) {
            (Salvage::SkipDamage, Some(head), _) => walker.skip_frame(head),
            (Salvage::SkipDamage, None, Some(found)) => walker.skip_to(found),
            _ => return Ok(()),
        }
    }
}

/// Reads a file of the log; its size is bounded by the log's.
pub(super) fn read_whole(fs: &dyn Fs, path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        let file = fs.open(path, Open::Read)?;
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    read().map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}
