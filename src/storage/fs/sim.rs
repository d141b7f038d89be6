//! A file system in memory that can lose power.
//!
//! Tests of the storage layer run on it: what a program wrote and what a disk would still hold
//! after a power cut are two images, and every operation can be made to fail.
//!
//! Invariants:
//! - [`SimFs::cut`] keeps exactly what was synced, [`SimFs::cut_with_luck`] that and a seeded part
//!   of the rest, as disks do that wrote some sectors and not others;
//! - after a failed `sync_data` the bytes read back, are not durable, and no later sync makes them
//!   so;
//! - nothing is random but by a given seed, so a failing sequence can be played again.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::storage::fs::{Directory, Entry, File, Fs, Open, SharedFs, Space};

mod disk;

use disk::{Disk, NodeId, Random};

/// What [`Fs::space`] calls the size of a disk without a capacity.
const UNLIMITED_BYTES: u64 = 1 << 40;

/// A simulated disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimFs {
    shared: Arc<Shared>,
}

/// An operation of [`Fs`] or [`File`] that can be counted, failed and stopped at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// [`Fs::open`] of an existing file.
    Open,
    /// [`Fs::open`] with [`Open::CreateNew`].
    Create,
    /// [`File::read_at`].
    Read,
    /// [`File::write_all_at`].
    Write,
    /// [`File::sync_data`].
    Sync,
    /// [`File::set_len`].
    SetLen,
    /// [`File::allocate`].
    Allocate,
    /// [`Fs::open_dir`].
    OpenDir,
    /// [`Directory::sync`].
    SyncDir,
    /// [`Fs::rename`].
    Rename,
    /// [`Fs::remove_file`] and [`Fs::remove_dir`].
    Remove,
    /// [`Fs::create_dir_all`].
    CreateDir,
}

/// An error to be injected.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The operation that fails.
    pub operation: Operation,
    /// How many such operations still work before it fails.
    pub after: u64,
    /// Only operations on paths that contain this text count; empty for all.
    pub path_contains: String,
    /// The operating system's error number, for instance 28 (`ENOSPC`) or 5 (`EIO`).
    pub errno: i32,
    /// Whether it fails once or from then on.
    pub repeat: Repeat,
}

/// How often a [`Fault`] strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Once.
    Once,
    /// From the first time on.
    Always,
}

/// `ENOSPC`: no space left on the disk.
pub const NO_SPACE: i32 = 28;

/// `EMFILE`: the process has no descriptors left.
pub const NO_DESCRIPTORS: i32 = 24;

/// `EPERM`: somebody forbids it.
pub const NOT_PERMITTED: i32 = 1;

/// `ENOSYS`: the kernel has no such call.
pub const NO_SUCH_CALL: i32 = 38;

/// `EOPNOTSUPP`: the file system has no such call.
pub const NOT_SUPPORTED: i32 = 95;

/// `EIO`: the disk failed.
pub const IO_FAILED: i32 = 5;

/// How many operations a [`SimFs`] was asked for, failed ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Files opened, created ones included.
    pub opens: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that writes asked to be written.
    pub bytes_written: u64,
    /// File syncs.
    pub syncs: u64,
    /// Directory syncs.
    pub dir_syncs: u64,
    /// All operations that change something (every one but opening to read, reading, listing): what
    /// [`SimFs::stop_after`] counts.
    pub changes: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    resumed: Condvar,
}

#[derive(Debug)]
struct State {
    disk: Disk,
    faults: Vec<Fault>,
    counters: Counters,
    /// By the name of the thread.
    performed: HashMap<(Operation, String), u64>,
    capacity_bytes: Option<u64>,
    /// Changes that still work before the machine stands still.
    changes_left: Option<u64>,
    /// Syncs of files whose path contains this text wait.
    syncs_held: Option<String>,
}

#[derive(Debug)]
struct SimFile {
    shared: Arc<Shared>,
    id: NodeId,
    path: PathBuf,
    writable: bool,
}

#[derive(Debug)]
struct SimDirectory {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(Disk::new(), None)
    }
}

impl Shared {
    fn new(disk: Disk, capacity_bytes: Option<u64>) -> Self {
        let state = State {
            disk,
            faults: Vec::new(),
            counters: Counters::default(),
            performed: HashMap::new(),
            capacity_bytes,
            changes_left: None,
            syncs_held: None,
        };
        Self { state: Mutex::new(state), resumed: Condvar::new() }
    }
}

impl SimFs {
    /// Makes an empty disk that has only a root directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a handle on the same disk as the storage layer takes it.
    pub fn shared(&self) -> SharedFs {
        Arc::new(self.clone())
    }

    /// Cuts the power: returns the disk as it is found afterwards, with what was synced and nothing
    /// else. This disk goes on unless it is stopped.
    #[must_use]
    pub fn cut(&self) -> Self {
        self.with_disk(|disk| disk.after_cut(None))
    }

    /// Cuts the power of a disk that had written a part of what was not synced: by `seed`, nothing,
    /// all, a beginning or any sectors of each file, and a beginning of the name changes.
    #[must_use]
    pub fn cut_with_luck(&self, seed: u64) -> Self {
        self.with_disk(|disk| disk.after_cut(Some(&mut Random::new(seed))))
    }

    /// Kills the process (`kill -9`): returns the disk with all that was written, of which the
    /// unsynced part is still lost by a later cut. This disk stops, so that threads of the killed
    /// process do no more harm.
    #[must_use]
    pub fn crash(&self) -> Self {
        let next = self.with_disk(Disk::after_crash);
        self.stop_after(0);
        self.resume_syncs();
        next
    }

    fn with_disk(&self, next: impl FnOnce(&Disk) -> Disk) -> Self {
        let state = self.shared.state.lock();
        let shared = Shared::new(next(&state.disk), state.capacity_bytes);
        Self { shared: Arc::new(shared) }
    }

    /// Lets `changes` more changing operations work; all operations after them fail.
    pub fn stop_after(&self, changes: u64) {
        self.shared.state.lock().changes_left = Some(changes);
    }

    /// Adds an error to be injected.
    pub fn inject(&self, fault: Fault) {
        self.shared.state.lock().faults.push(fault);
    }

    /// Lets the operation fail once, after `after` of them worked.
    pub fn fail_nth(&self, operation: Operation, after: u64, errno: i32) {
        let path_contains = String::new();
        self.inject(Fault { operation, after, path_contains, errno, repeat: Repeat::Once });
    }

    /// Removes all injected errors.
    pub fn clear_faults(&self) {
        self.shared.state.lock().faults.clear();
    }

    /// Sets how many bytes all files together may have; `None` for no bound.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.shared.state.lock().capacity_bytes = capacity_bytes;
    }

    /// Makes file syncs wait until [`SimFs::resume_syncs`].
    pub fn hold_syncs(&self) {
        self.hold_syncs_of("");
    }

    /// Makes syncs wait of files whose path, under which they were made or opened, contains a text.
    pub fn hold_syncs_of(&self, path_contains: &str) {
        self.shared.state.lock().syncs_held = Some(path_contains.to_owned());
    }

    /// Lets held syncs go on.
    pub fn resume_syncs(&self) {
        self.shared.state.lock().syncs_held = None;
        self.shared.resumed.notify_all();
    }

    /// Returns how many operations of a kind a thread of a given name asked for.
    pub fn performed_by(&self, thread: &str, operation: Operation) -> u64 {
        let state = self.shared.state.lock();
        state.performed.get(&(operation, thread.to_owned())).copied().unwrap_or(0)
    }

    /// Returns how many operations were asked for.
    pub fn counters(&self) -> Counters {
        self.shared.state.lock().counters
    }
}

impl State {
    /// Counts an operation, and fails it when it is to fail.
    fn begin(&mut self, operation: Operation, path: &Path) -> io::Result<()> {
        let changes = !matches!(operation, Operation::Open | Operation::OpenDir | Operation::Read);
        let counter = match operation {
            Operation::Open | Operation::Create => Some(&mut self.counters.opens),
            Operation::Read => Some(&mut self.counters.reads),
            Operation::Write => Some(&mut self.counters.writes),
            Operation::Sync => Some(&mut self.counters.syncs),
            Operation::SyncDir => Some(&mut self.counters.dir_syncs),
            _ => None,
        };
        if let Some(counter) = counter {
            *counter += 1;
        }
        self.counters.changes += u64::from(changes);
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        *self.performed.entry((operation, thread)).or_default() += 1;
        if let Some(left) = &mut self.changes_left {
            if *left == 0 {
                return Err(io::Error::other("the simulated machine has stopped"));
            }
            *left -= u64::from(changes);
        }
        self.strike(operation, path)
    }

    fn strike(&mut self, operation: Operation, path: &Path) -> io::Result<()> {
        let path = path.to_string_lossy();
        let mut struck = None;
        self.faults.retain_mut(|fault| {
            let concerned =
                fault.operation == operation && path.contains(fault.path_contains.as_str());
            if !concerned || struck.is_some() {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            struck = Some(fault.errno);
            fault.repeat == Repeat::Always
        });
        struck.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    /// Returns how many bytes a file may grow by.
    fn room(&self) -> usize {
        let Some(capacity) = self.capacity_bytes else {
            return usize::MAX;
        };
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        capacity.saturating_sub(self.disk.used_bytes())
    }
}

impl Fs for SimFs {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn File>> {
        let mut state = self.shared.state.lock();
        let id = match how {
            Open::CreateNew => {
                state.begin(Operation::Create, path)?;
                state.disk.create(path)?
            }
            Open::Read | Open::Write => {
                state.begin(Operation::Open, path)?;
                state.disk.open(path)?
            }
        };
        let (shared, writable) = (Arc::clone(&self.shared), how != Open::Read);
        Ok(Box::new(SimFile { shared, id, path: path.to_owned(), writable }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(Operation::Rename, to)?;
        state.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(Operation::Remove, path)?;
        state.disk.remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(Operation::CreateDir, path)?;
        state.disk.create_dir_all(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(Operation::Remove, path)?;
        state.disk.remove_dir(path)
    }

    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn Directory>> {
        let mut state = self.shared.state.lock();
        state.begin(Operation::OpenDir, path)?;
        state.disk.list(path)?;
        Ok(Box::new(SimDirectory { shared: Arc::clone(&self.shared), path: path.to_owned() }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.shared.state.lock();
        state.begin(Operation::Read, path)?;
        state.disk.list(path)
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let state = self.shared.state.lock();
        let total = state.capacity_bytes.unwrap_or(UNLIMITED_BYTES);
        let used = u64::try_from(state.disk.used_bytes()).unwrap_or(u64::MAX);
        Ok(Space { available: total.saturating_sub(used), total })
    }
}

impl Directory for SimDirectory {
    fn sync(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.begin(Operation::SyncDir, &self.path)?;
        state.disk.sync_dir(&self.path)
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let position = usize::try_from(position).map_err(io::Error::other)?;
        let mut state = self.shared.state.lock();
        state.begin(Operation::Read, &self.path)?;
        Ok(state.disk.file(self.id)?.read(buffer, position))
    }

    fn write_all_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let position = usize::try_from(position).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let mut state = self.shared.state.lock();
        state.counters.bytes_written += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let struck = state.begin(Operation::Write, &self.path);
        self.check_writable()?;
        let room = state.room();
        let file = state.disk.file(self.id)?;
        if let Err(error) = struck {
            // A write that fails may have done a part of its work. One that fails because the
            // machine stopped has done none: there is no errno then.
            if error.raw_os_error().is_some() {
                bytes.truncate((bytes.len() / 2).min(file.len().saturating_sub(position)));
                file.write(position, bytes);
            }
            return Err(error);
        }
        let fits = file.len().saturating_add(room).saturating_sub(position);
        if bytes.len() > fits {
            bytes.truncate(fits);
            file.write(position, bytes);
            return Err(io::Error::from_raw_os_error(NO_SPACE));
        }
        file.write(position, bytes);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let path = self.path.to_string_lossy();
        let is_held = |state: &State| match &state.syncs_held {
            Some(part) => path.contains(part.as_str()),
            None => false,
        };
        while is_held(&state) {
            self.shared.resumed.wait(&mut state);
        }
        let struck = state.begin(Operation::Sync, &self.path);
        let file = state.disk.file(self.id)?;
        match struck {
            Ok(()) => {
                file.sync();
                Ok(())
            }
            Err(error) => {
                if error.raw_os_error().is_some() {
                    file.lose_pending();
                }
                Err(error)
            }
        }
    }

    /// Nothing: what is not synced may be on the disk after a power cut or not, asked for or not.
    fn start_write_back(&self, _position: u64, _len: u64) {}

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.resize(Operation::SetLen, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.resize(Operation::Allocate, len)
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.shared.state.lock();
        let len = state.disk.file(self.id)?.len();
        u64::try_from(len).map_err(io::Error::other)
    }
}

impl SimFile {
    fn resize(&self, operation: Operation, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut state = self.shared.state.lock();
        state.begin(operation, &self.path)?;
        self.check_writable()?;
        let room = state.room();
        let file = state.disk.file(self.id)?;
        if len > file.len().saturating_add(room) {
            return Err(io::Error::from_raw_os_error(NO_SPACE));
        }
        file.set_len(len);
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.shared.state.lock().disk.close(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::fs::{read_file, replace_file};

    fn write(fs: &SimFs, path: &str, bytes: &[u8]) -> Box<dyn File> {
        let file = fs.open(Path::new(path), Open::CreateNew).unwrap();
        file.write_all_at(&[IoSlice::new(bytes)], 0).unwrap();
        file
    }

    fn read(fs: &SimFs, path: &str) -> io::Result<Vec<u8>> {
        read_file(fs, Path::new(path), 1 << 20)
    }

    #[test]
    fn a_cut_keeps_only_what_was_synced() {
        let fs = SimFs::new();
        let file = write(&fs, "/a", b"synced");
        file.sync_data().unwrap();
        assert!(read(&fs.cut(), "/a").is_err(), "the name was not synced");
        fs.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(&[IoSlice::new(b"SYN")], 0).unwrap();
        assert_eq!(read(&fs, "/a").unwrap(), b"SYNced");
        assert_eq!(read(&fs.cut(), "/a").unwrap(), b"synced");
    }

    #[test]
    fn a_name_in_a_directory_whose_own_name_is_lost_is_lost() {
        let fs = SimFs::new();
        fs.create_dir_all(Path::new("/d/e")).unwrap();
        write(&fs, "/d/e/a", b"x").sync_data().unwrap();
        fs.sync_dir(Path::new("/d/e")).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        assert!(fs.cut().list(Path::new("/d")).is_err());
        fs.sync_dir(Path::new("/")).unwrap();
        assert_eq!(read(&fs.cut(), "/d/e/a").unwrap(), b"x");
    }

    #[test]
    fn bytes_of_a_failed_sync_read_back_and_are_never_durable() {
        let fs = SimFs::new();
        let file = write(&fs, "/a", b"old!");
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(&[IoSlice::new(b"new")], 0).unwrap();
        fs.fail_nth(Operation::Sync, 0, IO_FAILED);
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(IO_FAILED));
        file.write_all_at(&[IoSlice::new(b"?")], 3).unwrap();
        file.sync_data().unwrap();
        assert_eq!(read(&fs.crash(), "/a").unwrap(), b"new?");
        assert_eq!(read(&fs.cut(), "/a").unwrap(), b"old?");
    }

    #[test]
    fn a_crash_keeps_the_page_cache_and_a_later_cut_loses_it() {
        let fs = SimFs::new();
        let file = write(&fs, "/a", b"1");
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(&[IoSlice::new(b"2")], 1).unwrap();
        let next = fs.crash();
        assert!(file.sync_data().is_err(), "the killed process goes on");
        assert_eq!(read(&next, "/a").unwrap(), b"12");
        assert_eq!(read(&next.cut(), "/a").unwrap(), b"1");
    }

    #[test]
    fn replacing_a_file_leaves_old_or_new_wherever_power_is_cut() {
        for changes in 0..8 {
            for seed in 0..20 {
                let fs = SimFs::new();
                replace_file(&fs, Path::new("/a"), &[1; 2000]).unwrap();
                fs.stop_after(changes);
                let done = replace_file(&fs, Path::new("/a"), &[2; 3000]).is_ok();
                for after in [fs.cut(), fs.cut_with_luck(seed)] {
                    let found = read(&after, "/a").unwrap();
                    assert!(found == [2; 3000] || (!done && found == [1; 2000]));
                }
            }
        }
    }

    #[test]
    fn luck_is_the_same_for_the_same_seed_and_differs_between_seeds() {
        let fs = SimFs::new();
        let file = write(&fs, "/a", &[1; 8192]);
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(&[IoSlice::new(&[2; 8192])], 0).unwrap();
        let found = |seed| read(&fs.cut_with_luck(seed), "/a").unwrap();
        assert_eq!(found(7), found(7));
        let outcomes: std::collections::BTreeSet<_> = (0..32).map(found).collect();
        assert!(outcomes.len() > 8);
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_overwrites_without_growing() {
        let fs = SimFs::new();
        fs.set_capacity(Some(10));
        let file = write(&fs, "/a", b"12345678");
        let error = file.write_all_at(&[IoSlice::new(b"abcd")], 8).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 10);
        file.write_all_at(&[IoSlice::new(b"xy")], 0).unwrap();
        assert_eq!(fs.space(Path::new("/")).unwrap().available, 0);
        fs.set_capacity(Some(12));
        file.write_all_at(&[IoSlice::new(b"cd")], 10).unwrap();
        assert_eq!(read(&fs, "/a").unwrap(), b"xy345678abcd");
    }

    #[test]
    fn faults_strike_the_named_operation_on_the_named_path() {
        let fs = SimFs::new();
        fs.inject(Fault {
            operation: Operation::Create,
            after: 1,
            path_contains: "wal".into(),
            errno: NO_SPACE,
            repeat: Repeat::Always,
        });
        write(&fs, "/other", b"");
        write(&fs, "/wal-1", b"");
        write(&fs, "/more", b"");
        assert!(fs.open(Path::new("/wal-2"), Open::CreateNew).is_err());
        assert!(fs.open(Path::new("/wal-3"), Open::CreateNew).is_err());
        fs.clear_faults();
        write(&fs, "/wal-2", b"");
    }
}
