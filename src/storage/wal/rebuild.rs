//! Writes the file that a log begins with after it was opened.
//!
//! Invariants:
//! - the file has a name that recovery reads only when all of it is synced;
//! - it begins with the marks of all replicas as they are at the log's end, so the marks of the
//!   file that it is a copy of are left out: an older vote must not follow a newer one.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::fs::{File, Fs, Open};
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
}

impl<'a> Rebuild<'a> {
    /// Begins the file with the marks of all replicas.
    pub(super) fn begin(
        fs: &'a dyn Fs,
        dir: &'a Path,
        header: FileHeader,
        replay: &Replay,
    ) -> Result<Self, Error> {
        let out_of = |_| Error::OutOfSequences(header.sequence);
        let sequence = u32::try_from(header.sequence).map_err(out_of)?;
        let path = recovery_path(dir);
        match fs.remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(error));
            }
            _ => {}
        }
        let file = fs.open(&path, Open::CreateNew).map_err(io_error("create", &path))?;
        let mut round = Round::begin_file(Vec::new(), sequence, &header);
        round.head(&replay.marks);
        // A replica that lost a vote must never vote again, whatever is left of it in older files.
        replay.damaged.keys().for_each(|replica| round.dropped(*replica));
        let previous_round = header.previous_round;
        Ok(Self { fs, dir, path, file, sequence, position: 0, previous_round, round })
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
        let parts = [IoSlice::new(&self.round.bytes), IoSlice::new(&CLOSING_ROOM)];
        let written = self.file.write_all_at(&parts, self.position);
        written.map_err(io_error("write", &self.path))?;
        self.position = self.position.saturating_add(self.round.len());
        let buffer = std::mem::take(&mut self.round.bytes);
        self.round = Round::begin(buffer, self.sequence, self.position);
        Ok(())
    }

    /// Writes the rest, makes the file durable and gives it its name; returns the file and its last
    /// round.
    pub(super) fn install(mut self, config: &Config) -> Result<(Current, u64), Error> {
        if self.position == 0 || !self.round.is_empty() {
            self.write_round()?;
        }
        self.file.sync_data().map_err(io_error("sync", &self.path))?;
        let path = live_path(self.dir, u64::from(self.sequence));
        self.fs.rename(&self.path, &path).map_err(io_error("rename", &self.path))?;
        self.fs.sync_dir(self.dir).map_err(io_error("sync", self.dir))?;
        let allocated = self.position.saturating_add(CLOSING_ROOM_BYTES);
        let file = OpenFile { sequence: self.sequence, path, file: self.file, allocated };
        let roll_at = FIRST_FILE_BYTES.min(config.file_bytes);
        let (file, position) = (Arc::new(file), self.position);
        Ok((Current { file, position, allocated, roll_at }, self.previous_round))
    }
}
