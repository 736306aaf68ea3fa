//! The agent's own memory, and what else it uses.
#![expect(unsafe_code, reason = "glibc's allocator has no safe interface")]

use std::{fs, path::Path};

use nix::unistd::{SysconfVar, sysconf};

/// What this process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Processor time so far, user and system, in s.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
}

/// Reads it; `None` without procfs.
pub fn usage() -> Option<Usage> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // proc(5): after the name, which may have anything in it, comes field 3. Times are fields 14 and 15, in ticks; field 24
    // is memory, in pages.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let constant = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    Some(Usage {
        cpu_seconds: (field(14)? + field(15)?) as f64 / constant(SysconfVar::CLK_TCK)? as f64,
        resident_bytes: field(24)? * constant(SysconfVar::PAGE_SIZE)?,
    })
}

/// The least of the limits that this process's memory has by control groups, in bytes; `None` where there is none.
///
/// Both versions: `memory.max` (Documentation/admin-guide/cgroup-v2.rst) and `memory.limit_in_bytes` (cgroup-v1/memory.rst), of its own
/// group and those above. In a container the groups above its own aren't seen, and its path may be that on the host.
pub fn limit() -> Option<u64> {
    limit_below(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// `groups` is a `/proc/PID/cgroup` (cgroups(7)).
fn limit_below(mounted: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let (controllers, path) =
            line.split_once(':').and_then(|(_, rest)| rest.split_once(':')).unwrap_or_default();
        let (root, file) = match controllers {
            "" => (mounted.to_owned(), "memory.max"),
            "memory" => (mounted.join("memory"), "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        let own = Path::new(path.trim_start_matches('/'));
        own.ancestors().filter_map(|group| fs::read_to_string(root.join(group).join(file)).ok()).collect()
    });
    // Without a limit there is a word, or as many pages as a signed number can have.
    let numbers =
        limits.filter_map(|text| text.trim().parse().ok()).filter(|limit| *limit < i64::MAX as u64 / 2);
    numbers.min()
}

/// Gives memory that isn't used any more back to the kernel. The allocator by itself keeps most of what a burst has taken:
/// it lies between what is still in use.
pub fn give_back() {
    // SAFETY: no preconditions; it changes nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_control_groups() {
        let mounted = tempfile::tempdir().unwrap();
        let group = |path: &str, file: &str, limit: &str| {
            let directory = mounted.path().join(path);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), limit).unwrap();
        };
        let limit = |groups| limit_below(mounted.path(), groups);
        assert_eq!(limit("0::/a.slice/b.service\n"), None);
        group("a.slice/b.service", "memory.max", "max\n");
        assert_eq!(limit("0::/a.slice/b.service\n"), None);
        group("a.slice", "memory.max", "1048576\n");
        assert_eq!(limit("0::/a.slice/b.service\n"), Some(1 << 20));
        group("a.slice/b.service", "memory.max", "4096\n");
        assert_eq!(limit("0::/a.slice/b.service\n"), Some(4096));
        // In a container: as the host calls it, while the root of what is mounted is its own.
        group("", "memory.max", "8192\n");
        assert_eq!(limit("0::/elsewhere\n"), Some(8192));
        assert_eq!(limit("0::/\n"), Some(8192));
        group("memory/pod", "memory.limit_in_bytes", "2048\n");
        group("memory", "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("5:cpu:/\n4:memory:/pod\n"), Some(2048));
        assert_eq!(limit("4:memory:/\n"), None);
    }
}
