//! What aya has no call for.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::Pod;

/// `BPF_LINK_DETACH` of enum bpf_cmd (include/uapi/linux/bpf.h).
const BPF_LINK_DETACH: libc::c_int = 34;
/// `BPF_MAP_LOOKUP_BATCH`, likewise.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Where a walk through a hash map goes on: a bucket of it.
pub(super) type Bucket = u32;

/// The member `batch` of union bpf_attr.
#[derive(Default)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads the next entries of a hash map, whole buckets of it, as many as there is room for. Gives how many, and where
/// to go on; `None` at the map's end. `ENOSPC`: the next bucket has more than there is room for.
///
/// Without changes meanwhile every entry comes once; an entry that stays in the map comes once in any case (Linux 5.6).
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<Bucket>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<Bucket>)> {
    let mut next: Bucket = 0;
    let mut attr = BatchAttr {
        in_batch: from.as_ref().map_or(0, |from| from as *const Bucket as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len().min(values.len()).try_into().unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: the attribute and all that it points to live until the call returns. The kernel writes at most `count`
    // keys and values, of the sizes that the map has, which the caller has compared with those of K and V (Pod: any
    // bytes are a value).
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>()) };
    let error = (result != 0).then(io::Error::last_os_error);
    let read = attr.count as usize;
    match error {
        None => Ok((read, Some(next))),
        Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((read, None)),
        Some(error) => Err(error),
    }
}

/// Detaches a link for good, whoever else holds it. One whose interface is gone is detached already.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // The member link_detach of union bpf_attr: its only field.
    let link_fd: u32 = link.as_raw_fd() as u32;
    // SAFETY: the attribute is four bytes that live until the call returns; it takes no more.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const link_fd, size_of::<u32>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
