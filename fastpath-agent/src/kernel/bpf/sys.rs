//! What aya has no call for.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `BPF_LINK_DETACH` of enum bpf_cmd (include/uapi/linux/bpf.h).
const BPF_LINK_DETACH: libc::c_int = 34;

/// Detaches a link for good, whoever else holds it. One whose interface is gone is detached already.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // The member link_detach of union bpf_attr: its only field.
    let link_fd: u32 = link.as_raw_fd() as u32;
    // SAFETY: the attribute is four bytes that live until the call returns; it takes no more.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const link_fd, size_of::<u32>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
