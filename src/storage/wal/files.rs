//! The log's files: their names, and the thread that prepares the next and takes away the old.
//!
//! Names: `<20 digits>.wal` is a live file or the one prepared to be next, the digits are its
//! sequence; `spare.<20 digits>` is a file to be used again; `recovery.tmp` is being written by
//! recovery. Recovery reads only the first sort.
//!
//! Invariants:
//! - no byte of a use of a file is written before the file's name for that use is durable, so a
//!   sequence whose name is lost was never written anywhere;
//! - a file is taken away only after all older ones, durably;
//! - a file that somebody still reads is not used again.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::storage::fs::{Directory, File, Fs, Open, is_no_space, is_unsupported};
use crate::storage::wal::Poisoned;
use crate::storage::wal::state::{Phase, Shared};
use crate::types::{RaftIndex, ReplicaId};

/// Old files that are kept for reuse.
pub(super) const SPARES_MAX: usize = 2;

/// Bytes of zeros that a new file is filled with at a time.
const FILL_BYTES: usize = 256 << 10;

/// Pause after each of them. A file has room for all its bytes from the start; overwriting written
/// blocks only saves each sync some journal work. Filling costs as much as writing the file, so it
/// is done slowly, ahead of its use: a busy log (over 5 MB/s) takes the next file as far as it is
/// filled, and its rounds are so large that the journal work no longer shows. Filling at full speed
/// doubled what the disk had to do, and syncs of the log waited behind 64 MiB of zeros.
const FILL_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 50 });

/// How long to wait before space is looked for again; tests that fill disks have no second.
pub(super) const SPACE_RETRY: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 1000 });

const RECOVERY_NAME: &str = "recovery.tmp";
const SPARE_PREFIX: &str = "spare.";
const LIVE_SUFFIX: &str = ".wal";
const DIGITS: usize = 20;

/// A file of the log with its use.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) sequence: u32,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn File>,
    /// Bytes that can be overwritten without asking the disk for space.
    pub(super) allocated: u64,
}

/// A file in which there may be something that is needed.
#[derive(Debug)]
pub(super) struct LiveFile {
    pub(super) file: Arc<OpenFile>,
    /// Bytes written in its current use.
    pub(super) used: u64,
    /// The last entry of each replica in it that may be needed.
    pub(super) highest: BTreeMap<ReplicaId, RaftIndex>,
}

impl LiveFile {
    pub(super) fn new(file: Arc<OpenFile>) -> Self {
        Self { file, used: 0, highest: BTreeMap::new() }
    }

    /// Learns that entries up to `last` lie in it.
    pub(super) fn holds(&mut self, replica: ReplicaId, last: RaftIndex) {
        self.highest.insert(replica, last);
    }

    /// Learns that a replica's entries after `keep` are gone.
    pub(super) fn truncated(&mut self, replica: ReplicaId, keep: Option<RaftIndex>) {
        match (self.highest.get_mut(&replica), keep) {
            (Some(last), Some(keep)) => *last = (*last).min(keep),
            (Some(_), None) => {
                self.highest.remove(&replica);
            }
            (None, _) => {}
        }
    }
}

/// What a name in the log's directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Live(u64),
    Spare(u64),
    Recovery,
    Other,
}

pub(super) fn parse_name(name: &str) -> Name {
    let number = |digits: &str| {
        let valid = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        if valid { digits.parse().ok() } else { None }
    };
    if name == RECOVERY_NAME {
        return Name::Recovery;
    }
    if let Some(sequence) = name.strip_suffix(LIVE_SUFFIX).and_then(number) {
        return Name::Live(sequence);
    }
    match name.strip_prefix(SPARE_PREFIX).and_then(number) {
        Some(sequence) => Name::Spare(sequence),
        None => Name::Other,
    }
}

/// Returns whether a directory has a log.
///
/// # Errors
/// The operating system's.
pub fn is_in(fs: &dyn Fs, dir: &Path) -> io::Result<bool> {
    let entries = fs.list(dir)?;
    Ok(entries.iter().any(|entry| matches!(parse_name(&entry.name), Name::Live(_))))
}

pub(super) fn live_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:020}{LIVE_SUFFIX}"))
}

pub(super) fn spare_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{SPARE_PREFIX}{sequence:020}"))
}

pub(super) fn recovery_path(dir: &Path) -> PathBuf {
    dir.join(RECOVERY_NAME)
}

/// Why no file could be prepared.
enum Failure {
    /// Nothing was lost; it can be tried again. Why, in words.
    NoFile(String),
    /// A sync failed.
    Fatal(Poisoned),
    /// The log is being closed.
    Stopped,
}

/// The thread that has the next file ready before the current one is full.
pub(super) struct Upkeep {
    shared: Arc<Shared>,
    /// The log's, open all the time: with it a lack of descriptors delays a new file, no more.
    directory: Box<dyn Directory>,
    spares: Vec<PathBuf>,
}

impl Upkeep {
    pub(super) fn new(
        shared: Arc<Shared>,
        directory: Box<dyn Directory>,
        spares: Vec<PathBuf>,
    ) -> Self {
        Self { shared, directory, spares }
    }

    pub(super) fn run(mut self) {
        let mut wait_first = false;
        while let Some((retired, sequence)) = self.take(wait_first) {
            wait_first = false;
            for file in retired {
                if let Err(poisoned) = self.retire(file) {
                    self.shared.poison(&poisoned);
                    return;
                }
            }
            let Some(sequence) = sequence else { continue };
            match self.prepare(sequence) {
                Ok(file) => {
                    let mut state = self.shared.state.lock();
                    state.next = Some(file);
                    state.wants_next = false;
                    state.storage_full = false;
                    state.no_file = None;
                    drop(state);
                    self.shared.work.notify_all();
                }
                Err(Failure::NoFile(why)) => {
                    let mut state = self.shared.state.lock();
                    state.storage_full = true;
                    state.no_file = Some(why.into());
                    wait_first = true;
                }
                Err(Failure::Fatal(poisoned)) => {
                    self.shared.poison(&poisoned);
                    return;
                }
                Err(Failure::Stopped) => return,
            }
        }
    }

    /// Waits for something to do: files to take away, and the sequence of one to prepare.
    fn take(&self, mut wait_first: bool) -> Option<(Vec<Arc<OpenFile>>, Option<u32>)> {
        let mut state = self.shared.state.lock();
        loop {
            if state.phase != Phase::Running || state.poisoned.is_some() {
                return None;
            }
            if !state.retired.is_empty() || (state.next.is_none() && !wait_first) {
                let sequence = if state.next.is_none() {
                    let sequence = state.next_sequence;
                    // At the end of the numbers there is no next file, and the last one grows.
                    state.next_sequence = sequence.checked_add(1)?;
                    Some(sequence)
                } else {
                    None
                };
                return Some((std::mem::take(&mut state.retired), sequence));
            }
            if wait_first {
                wait_first = false;
                self.shared.upkeep.wait_for(&mut state, SPACE_RETRY);
            } else {
                self.shared.upkeep.wait(&mut state);
            }
        }
    }

    /// Takes a file's name away, or keeps the file for reuse.
    fn retire(&mut self, file: Arc<OpenFile>) -> Result<(), Poisoned> {
        let fs = &self.shared.fs;
        let path = file.path.clone();
        let spare = spare_path(&self.shared.dir, u64::from(file.sequence));
        // A file that could not be measured is not kept; that loses nothing.
        let is_whole = file.file.len().is_ok_and(|len| len >= self.shared.config.file_bytes);
        let reuse = is_whole && self.spares.len() < SPARES_MAX && Arc::into_inner(file).is_some();
        let moved = if reuse { fs.rename(&path, &spare) } else { fs.remove_file(&path) };
        // A file that stays is read again after a restart and is not needed then either; but the
        // next one may go only after it, so that the log has no hole.
        moved.map_err(|error| {
            Poisoned::new(format_args!("cannot take {} away: {error}", path.display()))
        })?;
        self.sync_dir()?;
        if reuse {
            self.spares.push(spare);
        }
        Ok(())
    }

    fn sync_dir(&self) -> Result<(), Poisoned> {
        self.directory.sync().map_err(|error| {
            Poisoned::new(format_args!("cannot sync {}: {error}", self.shared.dir.display()))
        })
    }

    /// Makes a file ready: filled, and durable under its name for use `sequence`.
    fn prepare(&mut self, sequence: u32) -> Result<OpenFile, Failure> {
        let spare = match self.spares.pop() {
            Some(spare) => spare,
            None => self.fill(sequence)?,
        };
        let path = live_path(&self.shared.dir, u64::from(sequence));
        let opened = self.shared.fs.rename(&spare, &path).and_then(|()| {
            let file = self.shared.fs.open(&path, Open::Write)?;
            let allocated = file.len()?;
            Ok((file, allocated))
        });
        let (file, allocated) = match opened {
            Ok(opened) => opened,
            Err(error) => return Err(self.give_up(&path, &error)),
        };
        self.sync_dir().map_err(Failure::Fatal)?;
        Ok(OpenFile { sequence, path, file, allocated })
    }

    /// Takes the name of a file back that is not going to be begun; recovery would miss the file.
    fn give_up(&self, path: &Path, why: &io::Error) -> Failure {
        let no_file = || no_file("open", path, why);
        match self.shared.fs.remove_file(path) {
            Ok(()) => no_file(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => no_file(),
            Err(error) => {
                let text = format_args!("cannot take {} away: {error}", path.display());
                Failure::Fatal(Poisoned::new(text))
            }
        }
    }

    /// Makes a file that is used under another name later. It has room for all its bytes; zeros are
    /// written over them as far as the log leaves time. Where the file system cannot give room it
    /// has room for the zeros alone, and grows behind them: the log may then find no space for a
    /// round, which waits, and not only for a file.
    fn fill(&self, sequence: u32) -> Result<PathBuf, Failure> {
        let path = spare_path(&self.shared.dir, u64::from(sequence));
        let fs = self.shared.fs.as_ref();
        let opened = fs.open(&path, Open::CreateNew);
        let file = opened.map_err(|error| no_file("create", &path, &error))?;
        let filled = self.fill_with_zeros(file.as_ref(), &path);
        if filled.is_err() {
            drop(file);
            // The space is wanted back now; a restart removes what stays.
            let _ = fs.remove_file(&path);
        }
        filled.map(|()| path)
    }

    fn fill_with_zeros(&self, file: &dyn File, path: &Path) -> Result<(), Failure> {
        let len = self.shared.config.file_bytes;
        match file.allocate(len) {
            Err(error) if !is_unsupported(&error) => return Err(no_file("allocate", path, &error)),
            _ => {}
        }
        let zeros = vec![0; FILL_BYTES.min(usize::try_from(len).unwrap_or(FILL_BYTES))];
        let mut position = 0;
        while position < len && !self.is_wanted()? {
            let rest = usize::try_from(len - position).unwrap_or(usize::MAX);
            let part = zeros.get(..rest.min(zeros.len())).unwrap_or(&zeros);
            let written = file.write_all_at(&[IoSlice::new(part)], position);
            written.map_err(|error| no_file("write", path, &error))?;
            sync_zeros(file, path)?;
            position = position.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Pauses between two parts of a fill. Returns whether the log waits for the file.
    fn is_wanted(&self) -> Result<bool, Failure> {
        let mut state = self.shared.state.lock();
        if !state.wants_next && !FILL_PAUSE.is_zero() {
            self.shared.upkeep.wait_for(&mut state, FILL_PAUSE);
        }
        if state.phase == Phase::Running { Ok(state.wants_next) } else { Err(Failure::Stopped) }
    }
}

fn no_file(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::NoFile(format!("cannot {action} {}: {error}", path.display()))
}

fn sync_zeros(file: &dyn File, path: &Path) -> Result<(), Failure> {
    match file.sync_data() {
        Ok(()) => Ok(()),
        // Nothing but zeros was lost, and the file is thrown away.
        Err(error) if is_no_space(&error) => Err(no_file("sync", path, &error)),
        Err(error) => {
            let text = format_args!("cannot sync a new log file: {error}");
            Err(Failure::Fatal(Poisoned::new(text)))
        }
    }
}
