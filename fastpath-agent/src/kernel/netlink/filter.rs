//! Classic BPF on sockets: what a socket gets to hear.
#![expect(unsafe_code, reason = "socket options that no safe wrapper has")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// An instruction that doesn't jump.
pub(in crate::kernel) fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// From now on the socket only gets what the program accepts.
pub(in crate::kernel) fn attach(socket: &impl AsFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, `len` instructions from `filter`, and doesn't write to it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
