//! Writes the file that a log begins with after it was opened.
//!
//! Invariants:
//! - the file has a name that recovery reads only when all of it is synced;
//! - it begins with the marks of all replicas as they are at the log's end, so the marks of the
//!   file that it is a copy of are left out: an older vote must not follow a newer one;
//! - where the disk has no room for it, it takes the place of a file that was prepared or kept for
//!   later: a node must start on a full disk, or nothing can be deleted.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::fs::{File, Fs, Open, is_no_space};
use crate::storage::wal::files::{OpenFile, live_path, recovery_path};
use crate::storage::wal::format::{FileHeader, Kind};
use crate::storage::wal::index::Slot;
use crate::storage::wal::recovery::{Kept, Last, io_error};
use crate::storage::wal::replay::Replay;
use crate::storage::wal::round::{CLOSING_ROOM, CLOSING_ROOM_BYTES, Round};
use crate::storage::wal::state::ROUND_BYTES;
use crate::storage::wal::writer::Current;
use crate::storage::wal::{Config, Entry, Error};

/// Size of a log's first file: it is not filled, so that a start does not wait for that.
const FIRST_FILE_BYTES: u64 = 1 << 20;

pub(super) struct Rebuild<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    path: PathBuf,
    file: Box<dyn File>,
    sequence: u32,
    /// Where `round` goes.
    position: u64,
    /// The last round before `round`.
    previous_round: u64,
    round: Round,
    /// Files of the log that hold nothing, to be written over when there is no room.
    spares: Vec<PathBuf>,
    /// Bytes that can be overwritten without asking the disk for space.
    allocated: u64,
}

impl<'a> Rebuild<'a> {
    /// Begins the file with the marks of all replicas.
    pub(super) fn begin(
        fs: &'a dyn Fs,
        dir: &'a Path,
        header: FileHeader,
        replay: &Replay,
        spares: Vec<PathBuf>,
    ) -> Result<Self, Error> {
        let out_of = |_| Error::OutOfSequences(header.sequence);
        let sequence = u32::try_from(header.sequence).map_err(out_of)?;
        let path = recovery_path(dir);
        match fs.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(error));
            }
            _ => {}
        }
        let mut spares = spares;
        let (file, allocated) = match fs.open(&path, Open::CreateNew) {
            Err(error) if is_no_space(&error) => take_spare(fs, &path, &mut spares, error)?,
            created => (created.map_err(io_error("create", &path))?, 0),
        };
        let mut round = Round::begin_file(Vec::new(), sequence, &header);
        round.head(&replay.marks);
        // A replica that lost a vote must never vote again, whatever is left of it in older files.
        replay.damaged.keys().for_each(|replica| round.dropped(*replica));
        let previous_round = header.previous_round;
        Ok(Self {
            fs,
            dir,
            path,
            file,
            sequence,
            position: 0,
            previous_round,
            round,
            spares,
            allocated,
        })
    }

    /// Copies the live frames of a file in order, and tells `replay` where the entries lie now.
    ///
    /// Truncations are copied although nothing in this file needs them: older files may have the
    /// entries that they took away.
    pub(super) fn copy(&mut self, replay: &mut Replay, last: &Last) -> Result<(), Error> {
        for Kept { position, head, payload } in &last.frames {
            let (replica, id) = (head.replica, head.id);
            let is_known = replay.marks.contains_key(&replica);
            match head.kind {
                Kind::Entry => {
                    let at = Slot { position: *position, file: last.sequence, length: head.length };
                    let Some(log) = replay.replicas.get_mut(&replica) else { continue };
                    if log.slot(id.index) != Some(at) {
                        continue;
                    }
                    let payload = vec![payload.clone()];
                    let entry = Entry { index: id.index, term: id.term, payload };
                    log.moved(id.index, self.round.entry(replica, &entry, 0));
                    replay.holds(self.sequence, replica, id.index);
                }
                Kind::Truncate if is_known => self.round.truncate(replica, Some(id.index)),
                Kind::TruncateAll if is_known => self.round.truncate(replica, None),
                Kind::Dropped => self.round.dropped(replica),
                _ => {}
            }
            if self.round.len() >= ROUND_BYTES {
                self.write_round()?;
            }
        }
        Ok(())
    }

    fn write_round(&mut self) -> Result<(), Error> {
        self.previous_round = self.previous_round.saturating_add(1);
        self.round.finish(self.previous_round);
        if let Err(error) = self.put_round() {
            if !is_no_space(&error) {
                return Err(io_error("write", &self.path)(error));
            }
            self.move_to_spare(error)?;
            self.put_round().map_err(io_error("write", &self.path))?;
        }
        self.position = self.position.saturating_add(self.round.len());
        let buffer = std::mem::take(&mut self.round.bytes);
        self.round = Round::begin(buffer, self.sequence, self.position);
        Ok(())
    }

    fn put_round(&self) -> io::Result<()> {
        let parts = [IoSlice::new(&self.round.bytes), IoSlice::new(&CLOSING_ROOM)];
        self.file.write_all_at(&parts, self.position)
    }

    /// Goes on in a spare file, with what was written so far.
    fn move_to_spare(&mut self, error: io::Error) -> Result<(), Error> {
        let read_failed = io_error("read", &self.path);
        let mut bytes = vec![0; usize::try_from(self.position).unwrap_or(usize::MAX)];
        let read = self.file.read_at(&mut bytes, 0).map_err(read_failed)?;
        bytes.truncate(read);
        (self.file, self.allocated) = take_spare(self.fs, &self.path, &mut self.spares, error)?;
        let written = self.file.write_all_at(&[IoSlice::new(&bytes)], 0);
        written.map_err(io_error("write", &self.path))
    }

    /// Writes the rest, makes the file durable and gives it its name; returns the file and its last
    /// round, and the spare files that are left.
    pub(super) fn install(
        mut self,
        config: &Config,
    ) -> Result<(Current, u64, Vec<PathBuf>), Error> {
        if self.position == 0 || !self.round.is_empty() {
            self.write_round()?;
        }
        self.file.sync_data().map_err(io_error("sync", &self.path))?;
        let path = live_path(self.dir, u64::from(self.sequence));
        self.fs.rename(&self.path, &path).map_err(io_error("rename", &self.path))?;
        self.fs.sync_dir(self.dir).map_err(io_error("sync", self.dir))?;
        let allocated = self.allocated.max(self.position.saturating_add(CLOSING_ROOM_BYTES));
        let file = OpenFile { sequence: self.sequence, path, file: self.file, allocated };
        let roll_at = FIRST_FILE_BYTES.min(config.file_bytes);
        let (file, position) = (Arc::new(file), self.position);
        Ok((Current { file, position, allocated, roll_at }, self.previous_round, self.spares))
    }
}

/// Gives a spare file the name `path`, and opens it to be written over; returns its length, too.
fn take_spare(
    fs: &dyn Fs,
    path: &Path,
    spares: &mut Vec<PathBuf>,
    error: io::Error,
) -> Result<(Box<dyn File>, u64), Error> {
    let Some(spare) = spares.pop() else {
        return Err(io_error("write", path)(error));
    };
    let renamed = fs.rename(&spare, path);
    renamed.map_err(io_error("rename", &spare))?;
    let opened = fs.open(path, Open::Write).and_then(|file| {
        let len = file.len()?;
        Ok((file, len))
    });
    opened.map_err(io_error("open", path))
}
