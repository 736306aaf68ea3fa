//! The agent's own memory, and what else it uses.
#![expect(unsafe_code, reason = "glibc's allocator and madvise(2) have no safe interface")]

use std::fs;

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

/// Gives memory that isn't used any more back to the kernel. The allocator by itself keeps most of what a burst has taken:
/// it lies between what is still in use.
pub fn give_back() {
    // SAFETY: no preconditions; it changes nothing that anybody uses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Drops the program's own code and constants from memory: most of them are for starting. What is needed comes back from
/// the page cache the moment that it is.
pub fn drop_code() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    for line in maps.lines() {
        // proc(5): address range, permissions, offset, device, inode, path.
        let mut fields = line.split_whitespace();
        let (Some(range), Some(permissions), Some(offset)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // Constants begin the file. What else can't be written to was, before: pointers, by the dynamic linker.
        let unwritten = permissions == "r-xp" || permissions == "r--p" && offset.bytes().all(|b| b == b'0');
        if !unwritten || fields.nth(2).is_none_or(|path| program.as_os_str() != path) {
            continue;
        }
        let parse = |text: &str| usize::from_str_radix(text, 16).ok();
        let Some((Some(start), Some(end))) = range.split_once('-').map(|(a, b)| (parse(a), parse(b))) else {
            continue;
        };
        // SAFETY: a mapping of a file that can't be written to while it runs, and that itself never was written to: its
        // pages come back as they were.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}
