//! The agent's own memory.
#![expect(unsafe_code, reason = "glibc's allocator and madvise(2) have no safe interface")]

use std::fs;

/// Gives memory that isn't used any more back to the kernel. The allocator by itself keeps most of what a burst has taken:
/// it lies between what is still in use.
pub fn give_back() {
    // SAFETY: no preconditions; it changes nothing that anybody uses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Drops the program's own code from memory: most of it is for starting. What is needed comes back from the page cache
/// the moment that it is.
pub fn drop_code() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
        let is_ours = line.split_whitespace().nth(5).is_some_and(|path| program.as_os_str() == path);
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let parse = |text: &str| usize::from_str_radix(text, 16).ok();
        let (Some(start), Some(end)) = (range.and_then(|r| parse(r.0)), range.and_then(|r| parse(r.1)))
        else {
            continue;
        };
        if is_ours {
            // SAFETY: a mapping of a file that can't be written to while it runs, and itself isn't writable: its pages
            // come back as they were.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}
