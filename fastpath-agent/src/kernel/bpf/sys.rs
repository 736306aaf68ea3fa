//! What aya has no call for, or makes more of than is wanted: where the kernel says EINVAL, aya goes on to attach an XDP
//! program by netlink, and could so replace another program's.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;

/// Of enum bpf_cmd (include/uapi/linux/bpf.h).
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;
const BPF_BTF_GET_NEXT_ID: libc::c_int = 23;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
/// Of enum bpf_attach_type.
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Of enum bpf_prog_type.
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
/// Programs that one hook of an interface can have (include/linux/bpf_mprog.h).
const BPF_MPROG_MAX: usize = 64;

/// Members of union bpf_attr.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Calls bpf(2) with a member of its attributes.
fn bpf<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute, and what it points to, live until the call returns, which reads as many bytes as it is told.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn new_fd(result: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(result as libc::c_int) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Attaches a program at XDP; `flags` are `XDP_FLAGS_*`. Fails where there is one already, of any program.
pub(super) fn link_create_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let attribute =
        LinkCreate { prog_fd: raw(program), target_ifindex: ifindex, attach_type: BPF_XDP, flags };
    bpf(BPF_LINK_CREATE, &attribute).map(new_fd)
}

/// Puts another program into a link, between two packets.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attribute = LinkUpdate { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    bpf(BPF_LINK_UPDATE, &attribute).map(drop)
}

/// The member `query` of union bpf_attr.
#[derive(Default)]
#[repr(C)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the TCX programs at ingress of an interface, in order. Asks for no more than ids: to open a program by its id, as aya
/// does to tell more of it, takes CAP_SYS_ADMIN.
pub(super) fn tcx_program_ids(ifindex: u32) -> io::Result<Vec<u32>> {
    program_ids(ifindex, BPF_TCX_INGRESS)
}

/// The same at egress.
pub(super) fn tcx_egress_program_ids(ifindex: u32) -> io::Result<Vec<u32>> {
    program_ids(ifindex, BPF_TCX_EGRESS)
}

fn program_ids(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; BPF_MPROG_MAX];
    let mut query = ProgQuery {
        target_ifindex: ifindex,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..ProgQuery::default()
    };
    // SAFETY: the attribute and the ids live until the call returns; the kernel writes at most `count` of them, and to the
    // attribute how many there are.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<ProgQuery>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.into_iter().take(query.count as usize).collect())
}

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

/// Reads the next entries of a map, as many as fit: whole buckets of a hash map, which is why `ENOSPC` is possible. An entry
/// has `per_key` values, one for each possible CPU in a per-CPU map. Returns the number of entries, and where to go on; `None` at the
/// end. An entry that stays in the map comes exactly once (Linux 5.6).
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<Bucket>,
    keys: &mut [K],
    values: &mut [V],
    per_key: usize,
) -> io::Result<(usize, Option<Bucket>)> {
    let mut next: Bucket = 0;
    let mut attr = BatchAttr {
        in_batch: from.as_ref().map_or(0, |from| from as *const Bucket as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len().min(values.len() / per_key).try_into().unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: the attribute and all that it points to live until the call returns. The kernel writes at most `count`
    // keys and `per_key` values for each, of the sizes that the map has, which the caller has compared with those of K and V (Pod: any
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

/// Detaches a link for good, even if another process holds it. One whose interface is gone is detached already.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &LinkDetach { link_fd: raw(link) }).map(drop)
}

/// Pins a link.
pub(super) fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(BPF_OBJ_PIN, &Object { pathname: path.as_ptr() as u64, bpf_fd: raw(link), file_flags: 0 }).map(drop)
}

/// Opens what is pinned there.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf(BPF_OBJ_GET, &Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 }).map(new_fd)
}

/// The first members of the program's part of union bpf_attr.
#[derive(Default)]
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    core_relo_cnt: u32,
    fd_array: u64,
}

/// Loads a classifier whose calls of kernel functions name the types of `module` as number 1. Returns what the verifier said where it
/// refuses. `name` has at most 15 bytes.
pub(super) fn load_classifier(
    name: &str,
    instructions: &[aya_obj::generated::bpf_insn],
    module: Option<BorrowedFd<'_>>,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let types = [0, module.map_or(0, raw)];
    let mut prog_name = [0; 16];
    prog_name[..name.len()].copy_from_slice(name.as_bytes());
    let attribute = ProgLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
        prog_name,
        fd_array: types.as_ptr() as u64,
        ..ProgLoad::default()
    };
    bpf(BPF_PROG_LOAD, &attribute).map(new_fd)
}

/// Member of union bpf_attr for elements of maps.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts a program into a program array.
pub(super) fn set_program(array: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = raw(program);
    let attribute = Element {
        map_fd: raw(array),
        padding: 0,
        key: &raw const index as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attribute).map(drop)
}

/// The members of union bpf_attr that walk through ids, and open one.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_btf_info`.
#[derive(Default)]
#[repr(C)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    kernel_btf: u32,
}

/// Opens the types of a module of the kernel, which takes CAP_SYS_ADMIN; `NotFound` if there are none.
pub(super) fn module_types(module: &str) -> io::Result<OwnedFd> {
    let mut attribute = ById { id: 0, next_id: 0, open_flags: 0 };
    loop {
        // SAFETY: the attribute lives until the call returns; the kernel writes the next id to it.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_BTF_GET_NEXT_ID, &raw mut attribute, size_of::<ById>())
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        attribute.id = attribute.next_id;
        let types = match bpf(BPF_BTF_GET_FD_BY_ID, &ById { next_id: 0, ..attribute }).map(new_fd) {
            Ok(types) => types,
            // It has just gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let mut name = [0_u8; 64];
        let mut info =
            BtfInfo { name: name.as_mut_ptr() as u64, name_len: name.len() as u32, ..BtfInfo::default() };
        let by_fd = InfoByFd {
            bpf_fd: types.as_raw_fd() as u32,
            info_len: size_of::<BtfInfo>() as u32,
            info: &raw mut info as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &by_fd)?;
        if name.split(|byte| *byte == 0).next() == Some(module.as_bytes()) && info.kernel_btf != 0 {
            return Ok(types);
        }
    }
}
