//! The file that the metadata shard restarts from.
//!
//! The driver of the metadata shard writes it when the WAL should shrink and loads it at the start.
//! Two generations are kept, `checkpoint` and `checkpoint.previous`: where the newer one is damaged
//! the shard restarts from the older and replays more of the WAL.
//!
//! Payload of the frame (see the codec; magic `eddychkp`):
//!
//! ```text
//! 0   8  term of the last applied entry, u64 little-endian
//! 8   8  its index, u64 little-endian
//! 16  8  length of the membership in bytes, u64 little-endian
//! 24     membership, as the Raft layer encodes it
//! ..     the image's frame
//! ```
//!
//! Invariants:
//! - a damaged newest generation never replaces a good previous one;
//! - the WAL may be purged only up to what [`CheckpointFile::write`] returns, which is the position
//!   of the *older* generation: otherwise that one could not be restarted from;
//! - whoever writes has made sure that the WAL is synced past everything up to the position.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::metadata::codec::Frame;
use crate::metadata::{Error, Image};
use crate::storage::fs::{Open, SharedFs, read_file, sync_changed};
use crate::types::{LogPosition, RaftIndex, Term};

/// The newest generation's name.
const NEWEST: &str = "checkpoint";
/// The older generation's name.
const PREVIOUS: &str = "checkpoint.previous";
/// The name of one that is being written.
const TEMPORARY: &str = "checkpoint.tmp";

/// Bytes that a checkpoint file can have; a million partitions take about 10 MB.
const FILE_BYTES_MAX: u64 = 1 << 30;

const CHECKPOINT: Frame = Frame { what: "metadata checkpoint", magic: *b"eddychkp", version: 1 };

/// What the metadata shard can restart from.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The last applied entry; it need not have changed the image.
    pub applied: LogPosition,
    /// The Raft membership in force there, as the Raft layer encodes it.
    pub membership: Bytes,
    /// The image after that entry.
    pub image: Image,
}

/// Which generation a checkpoint was loaded from.
#[derive(Debug)]
pub enum Generation {
    /// The newest one.
    Newest,
    /// The older one, since the newest was missing or damaged as the error says. Worth a warning.
    Previous(Error),
}

/// A checkpoint as it was found.
#[derive(Debug)]
pub struct Loaded {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Where it was.
    pub generation: Generation,
}

/// The checkpoint files of one directory, and how they are replaced. Blocking.
#[derive(Debug)]
pub struct CheckpointFile {
    fs: SharedFs,
    directory: PathBuf,
}

impl Checkpoint {
    /// Encodes the checkpoint.
    ///
    /// # Errors
    /// As [`Image::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let image = self.image.encode()?;
        let mut payload = Vec::with_capacity(24 + self.membership.len() + image.len());
        payload.extend_from_slice(&self.applied.term.get().to_le_bytes());
        payload.extend_from_slice(&self.applied.index.get().to_le_bytes());
        payload.extend_from_slice(&(self.membership.len() as u64).to_le_bytes());
        payload.extend_from_slice(&self.membership);
        payload.extend_from_slice(&image);
        Ok(CHECKPOINT.wrap(&payload))
    }

    /// Decodes a checkpoint.
    ///
    /// # Errors
    /// As [`Image::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let truncated = || Error::Truncated { what: CHECKPOINT.what };
        let (applied, rest) = split_position(CHECKPOINT.unwrap(bytes)?)?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(truncated)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| truncated())?;
        let (membership, image) = rest.split_at_checked(length).ok_or_else(truncated)?;
        let membership = Bytes::copy_from_slice(membership);
        Ok(Self { applied, membership, image: Image::decode(image)? })
    }
}

impl CheckpointFile {
    /// Names the checkpoint files of a directory, which exists durably. Touches nothing.
    pub fn new(fs: SharedFs, directory: &Path) -> Self {
        Self { fs, directory: directory.to_owned() }
    }

    /// Loads the newest good generation, `None` when none was ever written.
    ///
    /// # Errors
    /// [`Error::NoGoodGeneration`] when there is one and none is good; the shard must not start
    /// empty then. [`Error::Io`] when a file cannot be read, which is not taken for damage.
    pub fn load(&self) -> Result<Option<Loaded>, Error> {
        let newest = match self.read(NEWEST)? {
            Some(bytes) => match Checkpoint::decode(&bytes) {
                Ok(checkpoint) => {
                    return Ok(Some(Loaded { checkpoint, generation: Generation::Newest }));
                }
                Err(error) => Some(error),
            },
            None => None,
        };
        let path = self.directory.join(NEWEST);
        let Some(bytes) = self.read(PREVIOUS)? else {
            return match newest {
                Some(error) => Err(Error::NoGoodGeneration { path, source: Box::new(error) }),
                None => Ok(None),
            };
        };
        // A crash between the two renames leaves no newest generation.
        let reason = newest.unwrap_or_else(|| Error::Io {
            action: "read",
            path: path.clone(),
            source: io::ErrorKind::NotFound.into(),
        });
        match Checkpoint::decode(&bytes) {
            Ok(checkpoint) => {
                Ok(Some(Loaded { checkpoint, generation: Generation::Previous(reason) }))
            }
            Err(error) => Err(Error::NoGoodGeneration { path, source: Box::new(error) }),
        }
    }

    /// Writes a checkpoint durably as the newest generation, keeping the one before. Returns the
    /// position up to which the WAL may be purged, `None` while there is no older generation.
    ///
    /// # Errors
    /// [`Error::Io`]: the generations that were there can still be loaded, but a failed sync or
    /// rename ends the node like one of the WAL's (it is not retried). [`Error::Json`]: a bug.
    pub fn write(&self, checkpoint: &Checkpoint) -> Result<Option<LogPosition>, Error> {
        let bytes = checkpoint.encode()?;
        let temporary = self.directory.join(TEMPORARY);
        let directory =
            self.fs.open_dir(&self.directory).map_err(io_error("open", &self.directory))?;
        self.write_temporary(&temporary, &bytes).map_err(io_error("write", &temporary))?;
        if self.position_of(NEWEST)?.is_some() {
            self.rename(NEWEST, PREVIOUS)?;
        }
        self.rename(TEMPORARY, NEWEST)?;
        sync_changed(directory.as_ref()).map_err(io_error("sync", &self.directory))?;
        self.position_of(PREVIOUS)
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.fs.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.fs.open(path, Open::CreateNew)?;
        file.write_all_at(&[io::IoSlice::new(bytes)], 0)?;
        file.sync_data()
    }

    /// Returns the position of a generation, `None` if it is missing or damaged.
    fn position_of(&self, name: &str) -> Result<Option<LogPosition>, Error> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        let position = CHECKPOINT.unwrap(&bytes).and_then(split_position);
        Ok(position.ok().map(|(applied, _)| applied))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.directory.join(name);
        match read_file(self.fs.as_ref(), &path, FILE_BYTES_MAX) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let (from, to) = (self.directory.join(from), self.directory.join(to));
        self.fs.rename(&from, &to).map_err(io_error("rename", &from))
    }
}

fn split_position(payload: &[u8]) -> Result<(LogPosition, &[u8]), Error> {
    let truncated = || Error::Truncated { what: CHECKPOINT.what };
    let (term, rest) = payload.split_first_chunk::<8>().ok_or_else(truncated)?;
    let (index, rest) = rest.split_first_chunk::<8>().ok_or_else(truncated)?;
    let term = Term::new(u64::from_le_bytes(*term));
    let index = RaftIndex::new(u64::from_le_bytes(*index));
    Ok((LogPosition { term, index }, rest))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::metadata::tests::{at, bootstrap, create, run};
    use crate::storage::fs::RealFs;
    use crate::storage::fs::sim::{Operation, SimFs};

    fn checkpoint(index: u64) -> Checkpoint {
        let commands = [bootstrap(1), create(1, "a", 2, 1), create(2, "b", 2, 1)];
        let (image, _) = run(&commands[..usize::try_from(index).unwrap().min(3)]);
        Checkpoint { applied: at(index), membership: Bytes::from_static(b"voters"), image }
    }

    struct Place {
        directory: tempfile::TempDir,
        file: CheckpointFile,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let file = CheckpointFile::new(RealFs::shared(), directory.path());
        Place { directory, file }
    }

    impl Place {
        fn damage(&self, name: &str) {
            let path = self.directory.path().join(name);
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.last_mut().unwrap();
            *last ^= 1;
            fs::write(&path, bytes).unwrap();
        }

        fn loaded(&self) -> Loaded {
            self.file.load().unwrap().unwrap()
        }
    }

    #[test]
    fn the_newest_generation_is_loaded_and_the_older_one_bounds_the_purge() {
        let place = place();
        assert!(place.file.load().unwrap().is_none());
        assert_eq!(place.file.write(&checkpoint(1)).unwrap(), None);
        assert_eq!(place.file.write(&checkpoint(2)).unwrap(), Some(at(1)));
        assert_eq!(place.file.write(&checkpoint(3)).unwrap(), Some(at(2)));
        assert_eq!(place.loaded().checkpoint, checkpoint(3));
        assert!(matches!(place.loaded().generation, Generation::Newest));
    }

    #[test]
    fn a_damaged_newest_generation_gives_way_to_the_older_and_never_replaces_it() {
        let place = place();
        place.file.write(&checkpoint(1)).unwrap();
        place.file.write(&checkpoint(2)).unwrap();
        place.damage(NEWEST);
        let loaded = place.loaded();
        assert_eq!(loaded.checkpoint, checkpoint(1));
        assert!(matches!(loaded.generation, Generation::Previous(Error::Checksum { .. })));
        assert_eq!(place.file.write(&checkpoint(3)).unwrap(), Some(at(1)));
        place.damage(NEWEST);
        assert_eq!(place.loaded().checkpoint, checkpoint(1));
    }

    #[test]
    fn a_crash_between_the_renames_leaves_the_older_generation() {
        let place = place();
        place.file.write(&checkpoint(1)).unwrap();
        let newest = place.directory.path().join(NEWEST);
        fs::rename(&newest, place.directory.path().join(PREVIOUS)).unwrap();
        fs::write(place.directory.path().join(TEMPORARY), b"half").unwrap();
        let loaded = place.loaded();
        assert_eq!(loaded.checkpoint, checkpoint(1));
        assert!(matches!(loaded.generation, Generation::Previous(Error::Io { .. })));
        assert_eq!(place.file.write(&checkpoint(2)).unwrap(), Some(at(1)));
    }

    #[test]
    fn no_good_generation_is_an_error_and_not_an_empty_start() {
        let place = place();
        place.file.write(&checkpoint(1)).unwrap();
        place.damage(NEWEST);
        assert!(matches!(place.file.load(), Err(Error::NoGoodGeneration { .. })));
        place.file.write(&checkpoint(2)).unwrap();
        place.file.write(&checkpoint(3)).unwrap();
        place.damage(NEWEST);
        place.damage(PREVIOUS);
        assert!(matches!(place.file.load(), Err(Error::NoGoodGeneration { .. })));
    }

    #[test]
    fn a_file_cut_anywhere_is_never_loaded() {
        let bytes = checkpoint(2).encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Checkpoint::decode(&longer).is_err());
        assert_eq!(Checkpoint::decode(&bytes).unwrap(), checkpoint(2));
    }

    /// Plays a third checkpoint being written, stopped after each of its steps, on a disk that then
    /// loses power (with and without luck) or only the process.
    #[test]
    fn a_stop_at_any_step_leaves_the_new_checkpoint_or_the_one_before() {
        let directory = Path::new("/0");
        for stop_after in 0.. {
            let disk = SimFs::new();
            disk.shared().create_dir_all(directory).unwrap();
            disk.shared().sync_dir(Path::new("/")).unwrap();
            let file = CheckpointFile::new(disk.shared(), directory);
            file.write(&checkpoint(1)).unwrap();
            file.write(&checkpoint(2)).unwrap();
            disk.stop_after(stop_after);
            let purgeable = file.write(&checkpoint(3));
            let lucky = (0..20).map(|seed| disk.cut_with_luck(seed));
            for after in lucky.chain([disk.cut(), disk.crash()]) {
                let file = CheckpointFile::new(after.shared(), directory);
                let found = file.load().unwrap().unwrap().checkpoint;
                match purgeable {
                    Ok(_) => assert_eq!(found, checkpoint(3), "stopped after {stop_after}"),
                    Err(_) => assert!(found == checkpoint(2) || found == checkpoint(3)),
                }
                // What may be purged is never above what either generation restarts from.
                let purgeable = file.write(&checkpoint(4)).unwrap();
                assert!(purgeable.is_some_and(|purgeable| purgeable <= found.applied));
                after.shared().remove_file(&directory.join(NEWEST)).unwrap();
                let older = file.load().unwrap().unwrap().checkpoint;
                assert_eq!(Some(older.applied), purgeable);
            }
            if purgeable.is_ok() {
                assert!(stop_after >= 4, "a checkpoint is written in {stop_after} steps");
                return;
            }
        }
    }

    #[test]
    fn a_failed_write_or_sync_leaves_the_checkpoint_that_was_there() {
        for operation in [Operation::Write, Operation::Sync, Operation::Rename] {
            let disk = SimFs::new();
            disk.shared().create_dir_all(Path::new("/0")).unwrap();
            disk.shared().sync_dir(Path::new("/")).unwrap();
            let file = CheckpointFile::new(disk.shared(), Path::new("/0"));
            file.write(&checkpoint(1)).unwrap();
            disk.fail_nth(operation, 0, 28);
            assert!(matches!(file.write(&checkpoint(2)), Err(Error::Io { .. })));
            let after = CheckpointFile::new(disk.cut().shared(), Path::new("/0"));
            assert_eq!(after.load().unwrap().unwrap().checkpoint, checkpoint(1));
        }
    }
}
