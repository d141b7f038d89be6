//! A file that holds room on the disk for the moment when there is none.
//!
//! Space is checked before records are accepted; the ballast is for what slips through (another
//! program fills the disk). Giving it back lets what is already acknowledged be written.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::storage::fs::{Open, SharedFs};

/// Bytes of the ballast on disks that are large enough; small disks hold 1/64 of their size.
const BALLAST_BYTES: u64 = 16 * 1024 * 1024;
const BALLAST_SHARE: u64 = 64;
/// Bytes that one write fills.
const CHUNK_BYTES: usize = 1024 * 1024;

/// A file of zeros that can be given back. Shared by everyone who writes to the disk.
#[derive(Debug)]
pub struct Ballast {
    fs: SharedFs,
    path: PathBuf,
    held: AtomicBool,
}

impl Ballast {
    /// Names the file. Nothing is held until [`Ballast::hold`].
    pub fn new(fs: SharedFs, path: PathBuf) -> Self {
        Self { fs, path, held: AtomicBool::new(false) }
    }

    /// Takes room on the disk, if none is held. Blocking: writes up to 16 MiB.
    ///
    /// # Errors
    /// The operating system's; nothing is held then.
    pub fn hold(&self) -> io::Result<()> {
        if self.held.load(Ordering::Acquire) {
            return Ok(());
        }
        let directory = self.path.parent().unwrap_or(&self.path);
        let bytes = BALLAST_BYTES.min(self.fs.space(directory)?.total / BALLAST_SHARE);
        self.remove()?;
        let filled = self.fill(bytes);
        if filled.is_err() {
            self.remove()?;
        } else {
            self.held.store(true, Ordering::Release);
        }
        filled
    }

    /// Gives back the room that an earlier process held: what is needed to start may need it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn reclaim(&self) -> io::Result<()> {
        self.remove()
    }

    /// Returns whether room is held.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Gives the room back. Returns whether there was any to give.
    pub fn release(&self) -> bool {
        let was_held = self.held.swap(false, Ordering::AcqRel);
        was_held && self.remove().is_ok()
    }

    fn fill(&self, bytes: u64) -> io::Result<()> {
        let file = self.fs.open(&self.path, Open::CreateNew)?;
        let zeros = vec![0; CHUNK_BYTES];
        let mut position = 0;
        while position < bytes {
            let left = usize::try_from(bytes - position).unwrap_or(CHUNK_BYTES);
            let chunk = zeros.get(..left.min(CHUNK_BYTES)).unwrap_or_default();
            file.write_all_at(&[io::IoSlice::new(chunk)], position)?;
            position += chunk.len() as u64;
        }
        file.sync_data()
    }

    fn remove(&self) -> io::Result<()> {
        match self.fs.remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::storage::fs::Fs;
    use crate::storage::fs::sim::SimFs;

    #[test]
    fn what_the_ballast_holds_can_be_written_after_its_release() {
        let fs = SimFs::new();
        fs.set_capacity(Some(64 * CHUNK_BYTES as u64));
        let ballast = Ballast::new(Arc::new(fs.clone()), PathBuf::from("ballast"));
        ballast.hold().unwrap();
        let file = fs.open(Path::new("data"), Open::CreateNew).unwrap();
        let full = vec![1; 63 * CHUNK_BYTES];
        file.write_all_at(&[io::IoSlice::new(&full)], 0).unwrap();
        let more = vec![1; CHUNK_BYTES];
        let end = full.len() as u64;
        assert!(file.write_all_at(&[io::IoSlice::new(&more)], end).is_err(), "the disk is full");
        assert!(ballast.release());
        file.write_all_at(&[io::IoSlice::new(&more)], end).unwrap();
        assert!(!ballast.release(), "it was given back before");
    }
}
