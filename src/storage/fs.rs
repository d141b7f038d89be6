//! The file system seam: everything the storage layer asks of a disk, in one trait.
//!
//! Two implementations: [`RealFs`] (the operating system) and [`sim::SimFs`] (in memory, with a
//! durable image beside the live one, power cuts and injected errors).
//!
//! Invariants:
//! - a write is durable only after [`File::sync_data`] (its bytes and length) and, for a new name,
//!   after [`Fs::sync_dir`] of the directory that holds it;
//! - nobody retries a sync that failed: the caller poisons itself instead (fsyncgate, Rebello et
//!   al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod real;
pub mod sim;

pub use real::RealFs;

const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Existing file, for reading.
    Read,
    /// Existing file, for reading and writing.
    Write,
    /// A name that must not exist yet, for reading and writing.
    CreateNew,
}

/// A file system that can be handed around.
pub type SharedFs = Arc<dyn Fs>;

/// A directory tree on some disk.
pub trait Fs: fmt::Debug + Send + Sync {
    /// Opens or creates a file.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn File>>;

    /// Renames a file, replacing a file of the new name.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name; open descriptors keep reading it.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and those above it; one that exists is fine.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a directory, to make the names in it durable later.
    ///
    /// # Errors
    /// The operating system's.
    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn Directory>>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// The operating system's; never retried.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.open_dir(path)?.sync()
    }

    /// Lists a directory's entries, sorted by name, so that recovery is deterministic.
    ///
    /// # Errors
    /// The operating system's, `NotFound` when there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Returns the bytes that may still be written on the disk that holds `path`, and its size.
    ///
    /// # Errors
    /// The operating system's.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// An open directory. Who changes names opens it before: what can be used up (descriptors) is then
/// missed while nothing has been changed.
pub trait Directory: fmt::Debug + Send + Sync {
    /// Makes the names in it durable.
    ///
    /// # Errors
    /// The operating system's; never retried.
    fn sync(&self) -> io::Result<()>;
}

/// An open file. Positions and lengths are bytes.
pub trait File: fmt::Debug + Send + Sync {
    /// Reads into `buffer` from `position`; returns the bytes read, fewer only at the end.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;

    /// Writes all of `parts`, one after the other, at `position`.
    ///
    /// # Errors
    /// The operating system's; a part of the bytes may have been written.
    fn write_all_at(&self, parts: &[io::IoSlice<'_>], position: u64) -> io::Result<()>;

    /// Makes the file's bytes and length durable (`fdatasync`).
    ///
    /// # Errors
    /// The operating system's; never retried, the bytes may be lost although they read back.
    fn sync_data(&self) -> io::Result<()>;

    /// Asks the operating system to start writing a range back, and does not wait: a later
    /// [`File::sync_data`] then finds little to do. A hint that makes nothing durable; what goes
    /// wrong with it shows at the sync.
    fn start_write_back(&self, position: u64, len: u64);

    /// Cuts or extends (with zeros) the file.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Extends the file to `len` bytes of zeros, with room on the disk for all of them.
    ///
    /// # Errors
    /// The operating system's, above all that there is no room; [`is_unsupported`] where the file
    /// system cannot do that, and the file is as it was.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Returns the file's length.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Returns whether the file has no bytes.
    ///
    /// # Errors
    /// As [`File::len`].
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of its path.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// A file's length in bytes, 0 for a directory.
    pub len: u64,
}

/// File or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// Room on a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What may still be written by this process.
    pub available: u64,
    /// The disk's size.
    pub total: u64,
}

/// Returns whether an error says that there is no room on the disk.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Returns whether an error says that something is used up which comes back: room on the disk, or
/// descriptors of the process or the system. Nothing is broken then; what was tried can be tried
/// again, unless it was a sync.
pub fn is_exhausted(error: &io::Error) -> bool {
    is_no_space(error) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// Returns whether an error says that the file system, or the kernel, does not have such a call.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOSYS | EOPNOTSUPP))
}

/// Makes names durable that were changed already. The error is never one of [`is_exhausted`]: the
/// change is made and its durability unknown, so there is nothing to try again.
///
/// # Errors
/// The operating system's.
pub fn sync_changed(directory: &dyn Directory) -> io::Result<()> {
    directory.sync().map_err(io::Error::other)
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// The operating system's, `InvalidData` when the file is larger than `limit`.
pub fn read_file(fs: &dyn Fs, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = fs.open(path, Open::Read)?;
    let len = file.len()?;
    if len > limit {
        let text = format!("{} has {len} bytes, more than {limit}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Replaces a file atomically and durably: temporary name, sync, rename, directory sync.
///
/// # Errors
/// The operating system's; the old file is then still there, whole. With one of [`is_exhausted`]
/// nothing was changed; after any other the disk may have the new file.
pub fn replace_file(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(path);
    let directory = path.parent().map(|directory| fs.open_dir(directory)).transpose()?;
    match fs.remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = fs.open(&temporary, Open::CreateNew)?;
    file.write_all_at(&[io::IoSlice::new(bytes)], 0)?;
    file.sync_data()?;
    drop(file);
    fs.rename(&temporary, path)?;
    directory.map_or(Ok(()), |directory| sync_changed(directory.as_ref()))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}
