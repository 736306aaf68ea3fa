//! The kernel's own functions for programs (kfuncs), and what is read of a connection. aya has no way to call functions of a
//! module, so the numbers here are placeholders: the agent puts this kernel's in their place before it loads the program.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use fastpath_common::forward::placeholder;

/// `struct bpf_ct_opts` (net/netfilter/nf_conntrack_bpf.c), as long as it was first.
#[repr(C)]
pub struct Options {
    /// Of the packet's namespace.
    netns: i32,
    error: i32,
    protocol: u8,
    direction: u8,
    reserved: [u8; 2],
}

/// A connection that is held.
pub struct Connection(*const u8);

/// Bits of `nf_conn.status` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const IPS_DYING: u64 = 1 << 9;
const IPS_OFFLOAD: u64 = 1 << 14;

/// What is at which byte of `struct nf_conntrack_tuple` (include/net/netfilter/nf_conntrack_tuple.h).
const SRC: usize = 0;
const SRC_PORT: usize = 16;
const DST: usize = 20;
const DST_PORT: usize = 36;

/// Looks up the connection of a tuple as the packet has it, of `size` bytes. Returns the direction too.
#[inline(always)]
pub fn connection(
    skb: *mut __sk_buff,
    tuple: &[u32; 9],
    size: u64,
    protocol: u8,
) -> Option<(Connection, u8)> {
    let mut options = Options { netns: -1, error: 0, protocol, direction: 0, reserved: [0; 2] };
    let found: *const u8;
    // SAFETY: the call of a function of the kernel, whose arguments the verifier checks.
    unsafe {
        asm!(
            "call {function}",
            function = const placeholder::LOOKUP,
            inlateout("r1") skb => _,
            inlateout("r2") tuple.as_ptr() => _,
            inlateout("r3") size => _,
            inlateout("r4") &raw mut options => _,
            inlateout("r5") size_of::<Options>() => _,
            lateout("r0") found,
        );
    }
    // SAFETY: the kernel has written it.
    let direction = unsafe { core::ptr::read_volatile(&raw const options.direction) };
    if found.is_null() { None } else { Some((Connection(found), direction)) }
}

/// One direction of a connection, as its packets come in; addresses and ports lie as in a packet.
pub struct Tuple {
    pub src: [u32; 4],
    pub dst: [u32; 4],
    pub src_port: u32,
    pub dst_port: u32,
}

impl Connection {
    /// Whether the kernel has it in a flowtable, and it isn't about to go.
    #[inline(always)]
    pub fn is_offloaded(&self) -> bool {
        let status: u64;
        // SAFETY: the verifier checks what is read through a pointer to a connection.
        unsafe {
            asm!(
                "{v} = *(u64 *)({c} + {status})",
                v = out(reg) status, c = in(reg) self.0, status = const placeholder::STATUS,
                options(readonly, nostack)
            );
        }
        status & (IPS_OFFLOAD | IPS_DYING) == IPS_OFFLOAD
    }

    /// The direction that isn't `direction`.
    #[inline(always)]
    pub fn other<const WORDS: usize>(&self, direction: u8) -> Tuple {
        if direction == 0 {
            tuple::<{ placeholder::REPLY }, WORDS>(self.0)
        } else {
            tuple::<{ placeholder::ORIGINAL }, WORDS>(self.0)
        }
    }

    /// Lets it go.
    #[inline(always)]
    pub fn release(self) {
        // SAFETY: the call of a function of the kernel; the verifier makes sure that each connection is released once.
        unsafe {
            asm!(
                "call {function}",
                function = const placeholder::RELEASE,
                inlateout("r1") self.0 => _,
                lateout("r0") _, lateout("r2") _, lateout("r3") _, lateout("r4") _, lateout("r5") _,
            );
        }
    }
}

/// Loads from a tuple.
macro_rules! load {
    ($type:literal, $tuple:expr, $at:expr) => {{
        let value: u64;
        // SAFETY: the verifier checks what is read through a pointer to a connection.
        unsafe {
            asm!(
                concat!("{v} = *(", $type, " *)({t} + {o})"),
                v = out(reg) value, t = in(reg) $tuple, o = const $at,
                options(readonly, nostack)
            );
        }
        value as u32
    }};
}

#[inline(always)]
fn tuple<const AT: i32, const WORDS: usize>(connection: *const u8) -> Tuple {
    let mut at = connection;
    // SAFETY: arithmetic that the verifier follows.
    unsafe { asm!("{t} += {at}", t = inout(reg) at, at = const AT, options(nostack)) };
    let mut tuple = Tuple {
        src: [load!("u32", at, SRC), 0, 0, 0],
        dst: [load!("u32", at, DST), 0, 0, 0],
        src_port: load!("u16", at, SRC_PORT),
        dst_port: load!("u16", at, DST_PORT),
    };
    if WORDS == 4 {
        tuple.src[1] = load!("u32", at, SRC + 4);
        tuple.src[2] = load!("u32", at, SRC + 8);
        tuple.src[3] = load!("u32", at, SRC + 12);
        tuple.dst[1] = load!("u32", at, DST + 4);
        tuple.dst[2] = load!("u32", at, DST + 8);
        tuple.dst[3] = load!("u32", at, DST + 12);
    }
    tuple
}
