//! Disks of the test's own: ext4 in a file, mounted through a loop device. Needs root.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Journal commits come from the node's own syncs only, and the kernel guards no program that
/// forgets to sync what it replaces: nothing becomes durable by itself.
const MOUNT_OPTIONS: &str = "loop,commit=600,noauto_da_alloc";

/// When it is set and not empty, a test that this machine does not allow fails.
const NO_SKIP: &str = "EDDYLINE_NO_SKIP";

/// An ext4 file system in a file. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct Image {
    file: PathBuf,
    mount: PathBuf,
}

impl Image {
    /// Makes and mounts one in `dir`.
    fn new(dir: &Path, name: &str, mib: u64) -> Result<Self, String> {
        let file = dir.join(format!("{name}.img"));
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(&file))?;
        Self::mount(file, dir.join(name))
    }

    fn mount(file: PathBuf, mount: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&mount).unwrap();
        run(Command::new("mount").args(["-o", MOUNT_OPTIONS]).args([&file, &mount]))?;
        Ok(Self { file, mount })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// Copies what the disk holds at this moment: what was never synced stays behind, in the
    /// kernel. Nobody may write meanwhile.
    pub(crate) fn as_power_cut_leaves_it(&self) -> Copy {
        let file = self.file.with_extension("cut");
        run(Command::new("cp").arg("--sparse=always").args([&self.file, &file])).unwrap();
        Copy { file }
    }

    /// Goes on with a copy, on the same mount point.
    pub(crate) fn replace(self, copy: &Copy) -> Self {
        let (file, mount) = (self.file.clone(), self.mount.clone());
        drop(self);
        fs::rename(&copy.file, &file).unwrap();
        Self::mount(file, mount).unwrap()
    }

    /// Fills the disk to the last byte with a file, as another program would.
    pub(crate) fn fill(&self, name: &str) -> PathBuf {
        let path = self.mount.join(name);
        let file = File::create(&path).unwrap();
        let zeros = vec![1; 1 << 20];
        let mut at = 0;
        let mut bytes = zeros.len();
        while bytes > 0 {
            match file.write_at(&zeros[..bytes], at) {
                Ok(written) => at += written as u64,
                Err(_) => bytes /= 2,
            }
        }
        path
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let unmounted = run(Command::new("umount").arg(&self.mount));
        if unmounted.is_err() {
            // A process that a failing test left behind still has files open.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount));
        }
    }
}

/// A disk as a power cut leaves it.
#[derive(Debug)]
pub(crate) struct Copy {
    file: PathBuf,
}

/// Makes disks, or says why this machine does not allow it: the test is then skipped.
pub(crate) fn disks(dir: &Path, names: &[&str], mib: u64) -> Option<Vec<Image>> {
    let images = names.iter().map(|name| Image::new(dir, name, mib)).collect();
    match images {
        Ok(images) => Some(images),
        Err(reason) => {
            skipped(&format!("no loop-mounted disk: {reason}"));
            None
        }
    }
}

/// Says that this test is skipped, or fails it where nothing may be.
pub(crate) fn skipped(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var_os(NO_SKIP).is_none_or(|set| set.is_empty()),
        "{NO_SKIP} is set and {test} cannot run: {reason}"
    );
    say(&format!("SKIPPED {test}: {reason}"));
}

/// Says something on stderr at once: what `eprintln` prints is shown only of tests that fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    Err(format!("{}: {said}", command.get_program().to_string_lossy()))
}
