//! A shard's checkpoint files: `checkpoint`, the base, and `checkpoint.<n>`, the deltas.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::checkpoint::codec::{self, Place};
use crate::storage::checkpoint::{Changes, Damage, Error, ShardCheckpoint};
use crate::storage::fs::{Entry, EntryKind, SharedFs, is_exhausted, read_file, replace_file};
use crate::types::ShardId;

const BASE_NAME: &str = "checkpoint";

/// Deltas between two bases: each is a file to open at the start.
const DELTAS_MAX: u32 = 100;

/// Larger files are not read: 100,000 partitions with full producer tables take a tenth of it.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024 - 1;

/// A shard's durable checkpoint. One owner writes it.
#[derive(Debug)]
pub struct CheckpointStore {
    fs: SharedFs,
    directory: PathBuf,
    current: ShardCheckpoint,
    /// The file that the next delta follows, `None` before the first base.
    last: Option<Link>,
    base_bytes: usize,
    delta_bytes: usize,
    has_failed: bool,
}

/// The newest file of the chain.
#[derive(Debug, Clone, Copy)]
struct Link {
    base: u64,
    delta: u32,
    crc: u32,
}

impl CheckpointStore {
    /// Opens the checkpoint in `directory`, making the directory if there is none, and returns what
    /// was saved last. Files that a cut short or completed save left are removed.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a file of the checkpoint is not as it was written or is missing;
    /// [`Error::Io`].
    pub fn open(fs: SharedFs, directory: &Path) -> Result<(Self, Option<ShardCheckpoint>), Error> {
        let mut store = Self::new(fs, directory);
        let entries = store.prepare_directory()?;
        let stale = store.load(&entries)?;
        store.remove_deltas(&stale)?;
        store.remove_temporaries(&entries)?;
        let found = store.last.is_some().then(|| store.current.clone());
        Ok((store, found))
    }

    /// Reads what was saved last in `directory`, if anything was. Nothing is changed.
    ///
    /// # Errors
    /// As [`CheckpointStore::open`].
    pub fn read_only(fs: SharedFs, directory: &Path) -> Result<Option<ShardCheckpoint>, Error> {
        let listed = fs.list(directory).map_err(|source| failed("list", directory, source))?;
        let mut store = Self::new(fs, directory);
        store.load(&listed)?;
        Ok(store.last.is_some().then_some(store.current))
    }

    fn new(fs: SharedFs, directory: &Path) -> Self {
        Self {
            fs,
            directory: directory.to_owned(),
            current: ShardCheckpoint::default(),
            last: None,
            base_bytes: 0,
            delta_bytes: 0,
            has_failed: false,
        }
    }

    /// Reads the checkpoint; returns the deltas that are not part of it.
    fn load(&mut self, entries: &[Entry]) -> Result<Vec<u32>, Error> {
        let mut deltas: Vec<u32> =
            entries.iter().filter_map(|entry| delta_of(&entry.name)).collect();
        deltas.sort_unstable();
        if entries.iter().any(|entry| entry.name == BASE_NAME) {
            self.load_base()?;
            return self.load_deltas(&deltas);
        }
        // A delta is never written before its base.
        let missing = || Error::Damaged { path: self.base_path(), reason: Damage::Missing };
        if deltas.is_empty() { Ok(deltas) } else { Err(missing()) }
    }

    /// Returns what was saved last.
    pub fn current(&self) -> &ShardCheckpoint {
        &self.current
    }

    /// Saves the next checkpoint, durably. What it names must be durable already.
    ///
    /// # Errors
    /// [`Error::Full`]: the old checkpoint stands, make room and save the same again.
    /// [`Error::Io`]: the disk has the old one or the new one, and the node has to end; from then
    /// on [`Error::Failed`].
    pub fn save(&mut self, changes: &Changes) -> Result<(), Error> {
        if self.has_failed {
            return Err(Error::Failed);
        }
        let saved = match self.next_delta(changes) {
            Some((place, bytes, crc)) => self.save_delta(changes, place, (&bytes, crc)),
            None => self.save_base(changes),
        };
        self.has_failed = saved.as_ref().is_err_and(|error| !error.is_full());
        saved
    }

    /// Encodes the changes as the next delta; `None` when it is time for a base.
    fn next_delta(&self, changes: &Changes) -> Option<(Place, Vec<u8>, u32)> {
        let last = self.last.filter(|last| last.delta < DELTAS_MAX)?;
        let place = Place { base: last.base, delta: last.delta + 1, previous_crc: last.crc };
        let (bytes, crc) = codec::encode(place, changes, changes.changed.iter());
        let deltas = self.delta_bytes.saturating_add(bytes.len());
        (deltas.saturating_mul(2) <= self.base_bytes).then_some((place, bytes, crc))
    }

    fn save_delta(
        &mut self,
        changes: &Changes,
        place: Place,
        (bytes, crc): (&[u8], u32),
    ) -> Result<(), Error> {
        self.write(&self.delta_path(place.delta), bytes)?;
        self.current.apply(changes.clone());
        self.delta_bytes += bytes.len();
        self.last = Some(Link { base: place.base, delta: place.delta, crc });
        Ok(())
    }

    /// Writes everything into a new base and removes the deltas of the old one.
    fn save_base(&mut self, changes: &Changes) -> Result<(), Error> {
        let base = self.last.map_or(1, |last| last.base + 1);
        let place = Place { base, delta: 0, previous_crc: 0 };
        let mut next = self.current.clone();
        next.apply(changes.clone());
        let (bytes, crc) = codec::encode(place, changes, next.partitions.iter());
        self.write(&self.base_path(), &bytes)?;
        let deltas: Vec<u32> = (1..=self.last.map_or(0, |last| last.delta)).collect();
        self.current = next;
        self.base_bytes = bytes.len();
        self.delta_bytes = 0;
        self.last = Some(Link { base, delta: 0, crc });
        // The new base is durable. Deltas of the old one that stay are told by its number and are
        // removed at the next start.
        let _ = self.remove_deltas(&deltas);
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        replace_file(self.fs.as_ref(), path, bytes).map_err(|source| {
            let path = path.to_owned();
            if is_exhausted(&source) {
                Error::Full { path, source }
            } else {
                Error::Io { action: "write", path, source }
            }
        })
    }

    fn load_base(&mut self) -> Result<(), Error> {
        let path = self.base_path();
        let (file, len) = self.read(&path)?;
        if file.place.delta != 0 {
            return Err(Error::Damaged { path, reason: Damage::Kind });
        }
        self.base_bytes = len;
        self.current.apply(file.changes);
        self.last = Some(Link { base: file.place.base, delta: 0, crc: file.crc });
        Ok(())
    }

    /// Applies the deltas of the base in order and returns those that belong to an older one.
    fn load_deltas(&mut self, numbers: &[u32]) -> Result<Vec<u32>, Error> {
        let mut stale = Vec::new();
        for number in numbers {
            let Some(last) = self.last else { break };
            let path = self.delta_path(*number);
            let (file, len) = self.read(&path)?;
            if file.place.base < last.base {
                stale.push(*number);
                continue;
            }
            let expected = Place { base: last.base, delta: last.delta + 1, previous_crc: last.crc };
            if file.place != expected || *number != expected.delta {
                return Err(Error::Damaged { path, reason: Damage::Chain });
            }
            self.delta_bytes += len;
            self.current.apply(file.changes);
            self.last = Some(Link { base: last.base, delta: expected.delta, crc: file.crc });
        }
        Ok(stale)
    }

    fn read(&self, path: &Path) -> Result<(codec::File, usize), Error> {
        let bytes = read_file(self.fs.as_ref(), path, FILE_BYTES_MAX)
            .map_err(|source| failed("read", path, source))?;
        let len = bytes.len();
        let file = codec::decode(Bytes::from(bytes));
        let file = file.map_err(|reason| Error::Damaged { path: path.to_owned(), reason })?;
        Ok((file, len))
    }

    fn prepare_directory(&self) -> Result<Vec<Entry>, Error> {
        match self.fs.list(&self.directory) {
            Ok(entries) => return Ok(entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("list", &self.directory, error)),
        }
        let made = self.fs.create_dir_all(&self.directory);
        made.map_err(|source| failed("create", &self.directory, source))?;
        // The directory of all shards may be new as well.
        for above in self.directory.ancestors().skip(1).take(2) {
            self.fs.sync_dir(above).map_err(|source| failed("sync", above, source))?;
        }
        Ok(Vec::new())
    }

    fn remove_deltas(&self, numbers: &[u32]) -> Result<(), Error> {
        numbers.iter().try_for_each(|number| self.remove(&self.delta_path(*number)))
    }

    fn remove_temporaries(&self, entries: &[Entry]) -> Result<(), Error> {
        let mut left = entries.iter().filter(|entry| {
            let name = entry.name.strip_suffix(".tmp");
            name.is_some_and(|name| name == BASE_NAME || delta_of(name).is_some())
        });
        left.try_for_each(|entry| self.remove(&self.directory.join(&entry.name)))
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        match self.fs.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    fn base_path(&self) -> PathBuf {
        self.directory.join(BASE_NAME)
    }

    fn delta_path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("{BASE_NAME}.{number}"))
    }
}

/// Reads the newest checkpoint of each data shard of a node, from the directory `shards` in its
/// data directory; `None` when there is no such directory. Nothing is changed.
///
/// # Errors
/// As [`CheckpointStore::open`].
pub fn read_all(
    fs: &SharedFs,
    shards: &Path,
) -> Result<Option<BTreeMap<ShardId, ShardCheckpoint>>, Error> {
    let entries = match fs.list(shards) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        listed => listed.map_err(|source| failed("list", shards, source))?,
    };
    let mut found = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Directory) {
        // The metadata shard's has a form of its own, and names no segments.
        let shard = entry.name.parse().map(ShardId::new);
        let Some(shard) = shard.ok().filter(|shard| *shard != ShardId::METADATA) else { continue };
        let checkpoint = CheckpointStore::read_only(Arc::clone(fs), &shards.join(&entry.name))?;
        found.extend(checkpoint.map(|checkpoint| (shard, checkpoint)));
    }
    Ok(Some(found))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { action, path: path.to_owned(), source }
}

/// Reads the number in the name of a delta.
fn delta_of(name: &str) -> Option<u32> {
    let number = name.strip_prefix(BASE_NAME)?.strip_prefix('.')?;
    let parsed: u32 = number.parse().ok().filter(|parsed| *parsed > 0)?;
    (parsed.to_string() == number).then_some(parsed)
}
