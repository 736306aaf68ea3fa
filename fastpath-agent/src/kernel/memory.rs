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
