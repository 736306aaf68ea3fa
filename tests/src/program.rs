//! Small eBPF programs of other programs, pinned for `tc` and `ip` to attach.

use std::{io, os::fd::OwnedFd, path::PathBuf};

use crate::kernel;

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

/// Loads a program.
pub fn load(kind: Kind, instructions: &[u64]) -> io::Result<OwnedFd> {
    kernel::load(kind as u32, "stranger", instructions)
}

/// Loads a program and pins it on `/sys/fs/bpf`.
#[track_caller]
pub fn pin(kind: Kind, instructions: &[u64]) -> Pin {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = PathBuf::from(format!("/sys/fs/bpf/stranger-{}-{number}", std::process::id()));
    let program = load(kind, instructions).unwrap_or_else(|error| panic!("load {kind:?}: {error}"));
    kernel::pin(&program, &path).unwrap_or_else(|error| panic!("pin {}: {error}", path.display()));
    Pin(path)
}
