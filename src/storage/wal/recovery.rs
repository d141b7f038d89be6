//! Opening a log: reads what is there, decides what of it holds, makes that durable.
//!
//! Invariants:
//! - nothing on disk is changed before the whole log was found good, or fit to be lived with;
//! - the log is cut only at a torn last round, and only if that takes no index away that a
//!   checkpoint or a saved committed mark of its replica names;
//! - what was read from the last file is copied to a new file unless the log was closed cleanly:
//!   the page cache holds what a killed process wrote and nobody synced, and after a failed sync
//!   what is not on disk at all. The copy takes the file's place in one step, by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::fs::{EntryKind, Fs, Open};
use crate::storage::wal::files::{
    LiveFile, Name, OpenFile, SPARES_MAX, parse_name, recovery_path, spare_path,
};
use crate::storage::wal::format::{FILE_HEADER_BYTES, FileHeader, FrameHead, Kind};
use crate::storage::wal::index::ReplicaLog;
use crate::storage::wal::parse::{Stopped, Walker};
use crate::storage::wal::rebuild::Rebuild;
use crate::storage::wal::replay::{Blame, Replay};
use crate::storage::wal::round::AllMarks;
use crate::storage::wal::salvage::read_whole;
use crate::storage::wal::writer::Current;
use crate::storage::wal::{Config, Damage, Error, Floors, OnDamage, Recovery};
use crate::types::ReplicaId;

/// A closed last file of at most this size is copied all the same, so that many restarts do not
/// leave many files.
const SMALL_FILE_BYTES: u64 = 1 << 20;

/// What the threads start from.
pub(super) struct Recovered {
    pub(super) replicas: BTreeMap<ReplicaId, ReplicaLog>,
    pub(super) files: BTreeMap<u32, LiveFile>,
    pub(super) current: Current,
    pub(super) round: u64,
    pub(super) marks: AllMarks,
    pub(super) forgotten: BTreeSet<ReplicaId>,
    pub(super) next_sequence: u32,
    pub(super) spares: Vec<PathBuf>,
    pub(super) report: Recovery,
}

/// A file with a live name.
struct Found {
    sequence: u32,
    path: PathBuf,
    len: u64,
    /// `None` when it was prepared and not begun, or when its header is damaged.
    header: Option<FileHeader>,
}

/// What the directory holds.
#[derive(Default)]
struct Listing {
    live: Vec<Found>,
    /// Files whose contents lie in a later one.
    void: Vec<PathBuf>,
    spares: Vec<(PathBuf, u64)>,
    /// The highest sequence that any name has.
    highest: u64,
}

/// A frame of the last file, for the copy.
pub(super) struct Kept {
    pub(super) position: u64,
    pub(super) head: FrameHead,
    pub(super) payload: Bytes,
}

/// The last file that was begun.
pub(super) struct Last {
    pub(super) sequence: u32,
    pub(super) header: FileHeader,
    pub(super) last_round: u64,
    pub(super) frames: Vec<Kept>,
    end: u64,
    clean: bool,
}

impl Last {
    /// Returns whether its frames are to be copied and the file is to go.
    fn is_copied(&self) -> bool {
        !self.clean || self.end <= SMALL_FILE_BYTES
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Reads the log in `dir` and makes it ready for the threads.
pub(super) fn recover(
    fs: &dyn Fs,
    dir: &Path,
    config: &Config,
    floors: &Floors,
) -> Result<Recovered, Error> {
    prepare_dir(fs, dir)?;
    let mut listing = list(fs, dir)?;
    listing.set_void_aside();
    let mut replay = Replay::new(dir, config.on_damage);
    let last = read_files(fs, &listing, &mut replay)?;
    replay.check(floors)?;

    let copied = last.as_ref().filter(|last| last.is_copied() && !replay.lost_all);
    let header = header_after(&listing, &replay, last.as_ref(), copied);
    let mut rebuild = Rebuild::begin(fs, dir, header, &replay, listing.unused(config))?;
    if let Some(copied) = copied {
        rebuild.copy(&mut replay, copied)?;
        replay.highest.remove(&copied.sequence);
    }
    let (current, round, left) = rebuild.install(config)?;
    listing.forget_taken(config, &left);
    listing.set_gone_aside(header.void_from);
    let spares = tidy(fs, dir, config, &listing)?;
    start_from(fs, &listing, replay, (current, round, spares))
}

/// Judges the log in `dir` as opening it would, but for what checkpoints say. Nothing is changed.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Behind`], [`Error::Io`].
pub fn check(fs: &dyn Fs, dir: &Path) -> Result<(), Error> {
    let mut listing = list(fs, dir)?;
    listing.set_void_aside();
    let mut replay = Replay::new(dir, OnDamage::Refuse);
    read_files(fs, &listing, &mut replay)?;
    replay.check(&Floors::new())
}

/// Makes the header of the file that is written after opening: it voids what it replaces.
fn header_after(
    listing: &Listing,
    replay: &Replay,
    last: Option<&Last>,
    copied: Option<&Last>,
) -> FileHeader {
    let (void_from, previous_round) = match (copied, last) {
        (Some(copied), _) => (copied.header.void_from, copied.header.previous_round),
        (None, Some(last)) if !replay.lost_all => {
            (u64::from(last.sequence).saturating_add(1), last.last_round)
        }
        (None, last) => (0, last.map_or(0, |last| last.last_round)),
    };
    FileHeader { sequence: listing.highest.saturating_add(1), void_from, previous_round }
}

fn prepare_dir(fs: &dyn Fs, dir: &Path) -> Result<(), Error> {
    fs.create_dir_all(dir).map_err(io_error("create", dir))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs.sync_dir(parent).map_err(io_error("sync", parent))?;
    // A name that a killed process gave may be seen and not be durable yet.
    fs.sync_dir(dir).map_err(io_error("sync", dir))
}

fn list(fs: &dyn Fs, dir: &Path) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    for entry in fs.list(dir).map_err(io_error("list", dir))? {
        if entry.kind != EntryKind::File {
            continue;
        }
        let path = dir.join(&entry.name);
        match parse_name(&entry.name) {
            Name::Live(sequence) => {
                let header = read_header(fs, &path)?.filter(|found| found.sequence == sequence);
                listing.highest = listing.highest.max(sequence);
                let sequence =
                    u32::try_from(sequence).map_err(|_| Error::OutOfSequences(sequence))?;
                listing.live.push(Found { sequence, path, len: entry.len, header });
            }
            Name::Spare(sequence) => {
                listing.highest = listing.highest.max(sequence);
                listing.spares.push((path, entry.len));
            }
            Name::Recovery => listing.void.push(path),
            Name::Other => {}
        }
    }
    Ok(listing)
}

fn read_header(fs: &dyn Fs, path: &Path) -> Result<Option<FileHeader>, Error> {
    let mut bytes = [0; FILE_HEADER_BYTES];
    let read = fs.open(path, Open::Read).and_then(|file| file.read_at(&mut bytes, 0));
    let read = read.map_err(io_error("read", path))?;
    Ok(FileHeader::parse(bytes.get(..read).unwrap_or_default()).ok())
}

impl Listing {
    /// Takes the files out that the file written after opening has replaced.
    fn set_gone_aside(&mut self, void_from: u64) {
        let is_gone = |file: &Found| file.header.is_some() && u64::from(file.sequence) >= void_from;
        let (gone, live) = std::mem::take(&mut self.live).into_iter().partition(is_gone);
        self.live = live;
        self.void.extend(Vec::into_iter(gone).map(|file: Found| file.path));
    }

    /// Lists whole files that hold nothing.
    fn unused(&self, config: &Config) -> Vec<PathBuf> {
        let unbegun = self.live.iter().filter(|file| file.header.is_none());
        let unbegun = unbegun.map(|file| (&file.path, file.len));
        let spares = self.spares.iter().map(|(path, len)| (path, *len));
        let whole = spares.chain(unbegun).filter(|(_, len)| *len >= config.file_bytes);
        whole.map(|(path, _)| path.clone()).collect()
    }

    /// Takes the files out of which the names are gone, being those of [`Listing::unused`] that are
    /// not left.
    fn forget_taken(&mut self, config: &Config, left: &[PathBuf]) {
        let unused = self.unused(config);
        let is_there = |path: &PathBuf| left.contains(path) || !unused.contains(path);
        self.spares.retain(|(path, _)| is_there(path));
        self.live.retain(|file| is_there(&file.path));
    }

    /// Takes the files out that a later one has replaced.
    fn set_void_aside(&mut self) {
        let ranges: Vec<(u64, u64)> = self
            .live
            .iter()
            .filter_map(|file| file.header.map(|header| (header.void_from, header.sequence)))
            .collect();
        let is_void = |file: &Found| {
            let sequence = u64::from(file.sequence);
            ranges.iter().any(|(from, to)| (*from..*to).contains(&sequence))
        };
        let (void, live) = std::mem::take(&mut self.live).into_iter().partition(is_void);
        self.live = live;
        self.void.extend(Vec::into_iter(void).map(|file: Found| file.path));
    }
}

/// Reads all files in order; returns the last one that was begun.
fn read_files(fs: &dyn Fs, listing: &Listing, replay: &mut Replay) -> Result<Option<Last>, Error> {
    let last_begun = listing.live.iter().rposition(|file| file.header.is_some());
    let mut last: Option<Last> = None;
    for (at, file) in listing.live.iter().enumerate() {
        let damage = |position, reason| Damage { path: file.path.clone(), position, reason };
        let Some(header) = file.header else {
            if Some(at) < last_begun {
                replay.damage(damage(0, "no valid file header".into()), Blame::All);
            } else {
                check_unbegun(fs, file, (last.as_ref(), replay))?;
            }
            continue;
        };
        if let Some(before) = last.as_ref().filter(|last| last.last_round != header.previous_round)
        {
            let (is, was) = (before.last_round, header.previous_round);
            let reason = format!("the file before it ends with round {is}, not with {was}");
            replay.damage(damage(0, reason), Blame::All);
        }
        let is_last = Some(at) == last_begun;
        last = Some(read_file(fs, (file, header), replay, is_last)?);
    }
    Ok(last)
}

/// Checks that a file without a valid header was really not begun.
fn check_unbegun(
    fs: &dyn Fs,
    file: &Found,
    (last, replay): (Option<&Last>, &mut Replay),
) -> Result<(), Error> {
    let bytes = read_whole(fs, &file.path)?;
    let round = last.map_or(0, |last| last.last_round);
    let walker = Walker::new(&bytes, u64::from(file.sequence), round);
    let Some((position, found)) = walker.higher_round(round.saturating_add(1)) else {
        return Ok(());
    };
    let reason = format!("no valid file header, but round {found} at byte {position}");
    replay.damage(Damage { path: file.path.clone(), position: 0, reason }, Blame::All);
    Ok(())
}

fn read_file(
    fs: &dyn Fs,
    (file, header): (&Found, FileHeader),
    replay: &mut Replay,
    is_last: bool,
) -> Result<Last, Error> {
    let bytes = Bytes::from(read_whole(fs, &file.path)?);
    let mut walker = Walker::new(&bytes, u64::from(file.sequence), header.previous_round);
    let mut frames = Vec::new();
    loop {
        match walker.next_frame() {
            Ok(Some(frame)) => {
                replay.frame(file.sequence, &file.path, &frame);
                if is_last {
                    frames.push(Kept {
                        position: frame.position,
                        head: frame.head,
                        payload: bytes.slice_ref(frame.payload),
                    });
                }
            }
            Ok(None) => break,
            Err(stopped) => {
                let higher = walker.higher_round(stopped.round);
                if !stopped_at(file, &stopped, (is_last, higher), replay) {
                    break;
                }
                match (&stopped.head, higher) {
                    (Some(head), _) => walker.skip_frame(head),
                    (None, Some(higher)) => walker.skip_to(higher),
                    (None, None) => break,
                }
            }
        }
    }
    Ok(Last {
        sequence: file.sequence,
        header,
        last_round: walker.last_round(),
        frames,
        end: walker.position(),
        clean: walker.closed() == Some(Kind::Stop),
    })
}

/// Judges a bad place: returns whether it is damage, and not where the log rightly ends.
fn stopped_at(
    file: &Found,
    stopped: &Stopped,
    (is_last, higher): (bool, Option<(u64, u64)>),
    replay: &mut Replay,
) -> bool {
    let place = |reason| Damage { path: file.path.clone(), position: stopped.position, reason };
    let reason = match (is_last, higher) {
        (true, None) => {
            if stopped.in_round {
                replay.torn_tail = Some(place(stopped.bad.to_string()));
            }
            return false;
        }
        (true, Some((position, round))) => {
            format!("{}, but round {round} follows at byte {position}", stopped.bad)
        }
        (false, _) => format!("{}, but another file follows", stopped.bad),
    };
    match &stopped.head {
        Some(head) => replay.damaged_payload(file.sequence, head, place(reason)),
        None => replay.damage(place(reason), Blame::All),
    }
    true
}

/// Removes the names that are not needed any more; returns the spares.
fn tidy(
    fs: &dyn Fs,
    dir: &Path,
    config: &Config,
    listing: &Listing,
) -> Result<Vec<PathBuf>, Error> {
    let mut spares = Vec::new();
    let remove = |path: &Path| fs.remove_file(path).map_err(io_error("remove", path));
    for path in &listing.void {
        // The copy itself had this name until a moment ago.
        if *path != recovery_path(dir) {
            remove(path)?;
        }
    }
    for (path, len) in &listing.spares {
        if *len >= config.file_bytes && spares.len() < SPARES_MAX {
            spares.push(path.clone());
        } else {
            remove(path)?;
        }
    }
    for file in &listing.live {
        if file.header.is_none() {
            let spare = spare_path(dir, u64::from(file.sequence));
            if file.len >= config.file_bytes && spares.len() < SPARES_MAX {
                fs.rename(&file.path, &spare).map_err(io_error("rename", &file.path))?;
                spares.push(spare);
            } else {
                remove(&file.path)?;
            }
        }
    }
    fs.sync_dir(dir).map_err(io_error("sync", dir))?;
    Ok(spares)
}

fn start_from(
    fs: &dyn Fs,
    listing: &Listing,
    replay: Replay,
    (current, round, spares): (Current, u64, Vec<PathBuf>),
) -> Result<Recovered, Error> {
    let mut highest = replay.highest;
    let mut files = BTreeMap::new();
    for file in listing.live.iter().filter(|file| file.header.is_some()) {
        let opened = fs.open(&file.path, Open::Read).map_err(io_error("open", &file.path))?;
        let open = OpenFile {
            sequence: file.sequence,
            path: file.path.clone(),
            file: opened,
            allocated: file.len,
        };
        let highest = highest.remove(&file.sequence).unwrap_or_default();
        files.insert(file.sequence, LiveFile { file: Arc::new(open), used: file.len, highest });
    }
    let sequence = current.file.sequence;
    let highest = highest.remove(&sequence).unwrap_or_default();
    let file = Arc::clone(&current.file);
    files.insert(sequence, LiveFile { file, used: current.position, highest });
    let report = Recovery {
        replicas: replay.replicas.iter().map(|(id, log)| (*id, log.state())).collect(),
        torn_tail: replay.torn_tail,
        damaged: replay.damaged,
    };
    Ok(Recovered {
        replicas: replay.replicas,
        files,
        current,
        round,
        marks: replay.marks,
        forgotten: replay.dropped,
        next_sequence: sequence.checked_add(1).ok_or(Error::OutOfSequences(u64::from(sequence)))?,
        spares,
        report,
    })
}
