//! A control group with a limit for memory, as pods and services have one.

use std::{fs, path::PathBuf, process::Command};

/// Groups of version 2 (Documentation/admin-guide/cgroup-v2.rst).
const ROOT: &str = "/sys/fs/cgroup";

/// The group. It goes when this is dropped, which has to be after its processes.
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// Makes one with a limit in bytes, without swap.
    #[track_caller]
    pub fn new(bytes: u64) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let group = PathBuf::from(format!("{ROOT}/limited-{}-{number}", std::process::id()));
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory").expect("the controller of memory");
        fs::create_dir(&group).expect("a control group");
        fs::write(group.join("memory.max"), bytes.to_string()).expect("a limit");
        // Absent where the kernel has no swap.
        let _ = fs::write(group.join("memory.swap.max"), "0");
        Self(group)
    }

    /// The same command, in the group.
    pub fn confine(&self, command: &Command) -> Command {
        let mut confined = Command::new("sh");
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        confined.args(["-c", &enter]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => confined.env(name, value),
                None => confined.env_remove(name),
            };
        }
        confined
    }

    /// How often a process was killed because the limit was reached.
    #[track_caller]
    pub fn kills(&self) -> u64 {
        let events = fs::read_to_string(self.0.join("memory.events")).expect("events");
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|number| number.parse().ok()).expect("a count of kills")
    }

    /// The most that was used, in bytes. File pages that could have been given up count too.
    #[track_caller]
    pub fn peak(&self) -> u64 {
        let peak = fs::read_to_string(self.0.join("memory.peak")).expect("Linux 5.19");
        peak.trim().parse().expect("a number")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A group with dying processes can't be removed; it goes with the guest.
        let _ = fs::remove_dir(&self.0);
    }
}
