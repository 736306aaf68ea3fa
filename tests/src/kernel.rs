//! The kernel's calls that no crate wraps, for the harness. What is done with them is its callers' matter.
#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use nix::libc;

/// The members of union bpf_attr that loading needs.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Those that pinning needs.
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Loads a program (`kind`: enum bpf_prog_type) under a name of at most 15 bytes.
pub(crate) fn load(kind: u32, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    let license = c"GPL";
    let mut load = Load {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    load.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the attributes are as the kernel defines them, and all that they point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins what the descriptor stands for.
pub(crate) fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    const OBJ_PIN: libc::c_long = 6;
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let object = Object { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    // SAFETY: as in `load`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, &raw const object, size_of::<Object>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends IPv4 packets with these options from now on.
pub(crate) fn set_ip_options(socket: &impl AsFd, options: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel copies the bytes, whose number is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
