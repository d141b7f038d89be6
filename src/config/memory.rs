//! How much memory the process may use: the least of what the machine has, what the process's
//! control groups allow (version 2, and 1) and what its address space may be.
//!
//! What cannot be read sets no limit: containers hide some of these files.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is assumed when nothing can be read.
const UNKNOWN: u64 = 1 << 30;

/// Asks the system.
pub(super) fn limit() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = cgroup_limit(Path::new(CGROUPS), &own);
    let address_space = getrlimit(Resource::As).current;
    [total(&meminfo), groups, address_space].into_iter().flatten().min().unwrap_or(UNKNOWN)
}

/// Reads the machine's memory out of `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Returns the least limit of the control groups that `/proc/self/cgroup` names, and of those that
/// they lie in.
fn cgroup_limit(root: &Path, own: &str) -> Option<u64> {
    let limits = own.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let (base, file) = if controllers.is_empty() {
            (root.to_path_buf(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        let own = base.join(path.trim_start_matches('/'));
        let folders = own.ancestors().take_while(|folder| folder.starts_with(&base));
        // "max" is no number, and no limit.
        let read = |folder: &Path| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
        folders.filter_map(read).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_control_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let own = "0::/system.slice/eddyline.service\n";
        assert_eq!(cgroup_limit(root.path(), own), None, "there is nothing to read");
        write("system.slice/eddyline.service/memory.max", "max\n");
        assert_eq!(cgroup_limit(root.path(), own), None);
        write("system.slice/memory.max", "300\n");
        assert_eq!(cgroup_limit(root.path(), own), Some(300));
        write("system.slice/eddyline.service/memory.max", "200\n");
        assert_eq!(cgroup_limit(root.path(), own), Some(200));
        write("memory.max", "100\n");
        assert_eq!(cgroup_limit(root.path(), "0::/\n"), Some(100));
        let old = "12:pids:/a\n5:cpu,memory:/docker/1\n";
        write("memory/docker/memory.limit_in_bytes", "50\n");
        assert_eq!(cgroup_limit(root.path(), old), Some(50));
        assert_eq!(cgroup_limit(root.path(), ""), None);
    }

    #[test]
    fn the_machines_memory_is_in_kibibytes() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:        8000 kB\nx\n"), Some(8_192_000));
        assert_eq!(total("nothing"), None);
        assert!(limit() > 1 << 20);
    }
}
