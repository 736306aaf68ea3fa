//! Small eBPF programs of somebody else's, pinned for `tc` and `ip` to attach.
#![expect(unsafe_code, reason = "no crate loads bare instructions")]

use std::{ffi::CString, io, path::PathBuf};

use nix::libc;

/// What a program is for (enum bpf_prog_type, include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Kind {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    Tc = 3,
    /// `BPF_PROG_TYPE_XDP`.
    Xdp = 6,
}

/// `struct bpf_insn`: opcode, registers, offset, immediate.
const fn instruction(opcode: u8, destination: u8, immediate: i32) -> u64 {
    opcode as u64 | (destination as u64) << 8 | (immediate as u32 as u64) << 32
}

const MOV: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `bpf_redirect_neigh`.
const REDIRECT_NEIGH: i32 = 152;

/// Returns 1: `XDP_DROP`.
pub const RETURN_1: [u64; 2] = [instruction(MOV, 0, 1), instruction(EXIT, 0, 0)];

/// Sends every packet out of an interface, to the neighbour that routing names.
pub fn redirect_to(index: u32) -> [u64; 6] {
    [
        instruction(MOV, 1, index as i32),
        instruction(MOV, 2, 0),
        instruction(MOV, 3, 0),
        instruction(MOV, 4, 0),
        instruction(CALL, 0, REDIRECT_NEIGH),
        instruction(EXIT, 0, 0),
    ]
}

/// A pinned program. The pin goes when this is dropped; what is attached stays.
pub struct Pin(PathBuf);

impl Pin {
    /// Where.
    pub fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // It may be gone with its file system.
        let _ = std::fs::remove_file(&self.0);
    }
}

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

/// Loads a program and pins it on `/sys/fs/bpf`.
#[track_caller]
pub fn pin(kind: Kind, instructions: &[u64]) -> Pin {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    const PROG_LOAD: libc::c_long = 5;
    const OBJ_PIN: libc::c_long = 6;
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = PathBuf::from(format!("/sys/fs/bpf/stranger-{}-{number}", std::process::id()));
    let license = c"GPL";
    let mut load = Load {
        kind: kind as u32,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    load.name[..8].copy_from_slice(b"stranger");
    // SAFETY: the attributes are as the kernel defines them, and all that they point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    assert!(fd >= 0, "load {kind:?}: {}", io::Error::last_os_error());
    let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL");
    let object = Object { path: name.as_ptr() as u64, fd: fd as u32, flags: 0 };
    // SAFETY: as above.
    let pinned = unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, &raw const object, size_of::<Object>()) };
    let error = io::Error::last_os_error();
    // SAFETY: the descriptor is ours alone, and nothing uses it from here on.
    unsafe { libc::close(fd as i32) };
    assert!(pinned == 0, "pin {}: {error}", path.display());
    Pin(path)
}
