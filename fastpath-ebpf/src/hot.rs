//! The short way for packets of flows that have many of them: counted without a look into the flows map.
//!
//! A flow is hot while its packets come several to a tick of the kernel. Within a tick the counts of a hot flow grow in
//! a slot of this CPU's; the first packet of the next tick takes the long way and moves them to the flows map. So
//! times are the same as without (they have the tick's resolution anyway), a flow that pauses is complete in the map with
//! its next packet, and whoever reads adds the two. No packet takes this way that could cross the threshold.
//!
//! Only the plainest packets take it: Ethernet, no VLAN tag in the frame, no options or extension headers, no fragment,
//! headers in the linear part. Everything else is for `parse`, which decides whatever is in doubt.

use core::arch::asm;

use aya_ebpf::helpers::bpf_jiffies64;
use fastpath_common::{HotFlow, MatchWords};

use crate::{frame::Frame, maps::HOT};

/// EtherType, version and header length of a plain IPv4 packet, as the first three bytes of a word.
const PLAIN_V4: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
const PLAIN_V4_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
/// EtherType and version of an IPv6 packet.
const PLAIN_V6: u32 = u32::from_ne_bytes([0x86, 0xdd, 0x60, 0]);
const PLAIN_V6_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xf0, 0]);
/// Lengths. Offsets below count from the beginning of the frame.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
/// Of the four bytes from 6 on of an IPv4 header: more-fragments flag, fragment offset, protocol.
const FRAGMENT_PROTOCOL: i32 = i32::from_ne_bytes([0x3f, 0xff, 0, 0xff]);
const PROTOCOL_TCP: u8 = 6;

/// Loads from a packet, at any alignment; `$at` is checked against the end by the caller, and by the verifier.
macro_rules! load {
    ($type:literal, $data:expr, $at:expr) => {{
        let value: u64;
        // SAFETY: within the packet, as the verifier makes sure. The compiler itself would load byte by byte.
        unsafe {
            asm!(
                concat!("{v} = *(", $type, " *)({p} + {o})"),
                v = out(reg) value, p = in(reg) $data, o = const $at,
                options(readonly, nostack)
            );
        }
        value
    }};
}

/// Counts the packet if it belongs to a flow that is hot on this CPU in this tick; false, and nothing done, if not.
#[inline(always)]
pub fn count(ctx: &impl Frame) -> bool {
    // SAFETY: no preconditions. A load, once the kernel has inlined it.
    let tick = unsafe { bpf_jiffies64() };
    let data = ctx.data();
    let end = ctx.data_end();
    if data + ETHERNET + IPV4 + TCP > end {
        return false;
    }
    if load!("u32", data, 12) as u32 & PLAIN_V4_MASK == PLAIN_V4 {
        return ipv4(ctx, data, tick);
    }
    if load!("u32", data, 12) as u32 & PLAIN_V6_MASK == PLAIN_V6 && data + ETHERNET + IPV6 + TCP <= end {
        return ipv6(ctx, data, tick);
    }
    false
}

#[inline(always)]
fn ipv4(ctx: &impl Frame, data: usize, tick: u64) -> bool {
    let mut protocol = load!("u32", data, ETHERNET + 6);
    // SAFETY: a number. (The compiler would take two instructions more for the same.)
    unsafe {
        asm!("{v} &= {m}", v = inout(reg) protocol, m = const FRAGMENT_PROTOCOL, options(pure, nomem, nostack));
    }
    let addresses = load!("u64", data, ETHERNET + 12);
    let words = MatchWords::new(addresses, load!("u32", data, ETHERNET + IPV4), protocol);
    let Some(slot) = current(&words, tick) else { return false };
    let bytes = u64::from((load!("u16", data, ETHERNET + 2) as u16).swap_bytes());
    if !fits(ctx, bytes, IPV4 + TCP) {
        return false;
    }
    if slot.key.protocol == PROTOCOL_TCP {
        slot.flags |= load!("u8", data, ETHERNET + IPV4 + 13);
    }
    add(ctx, slot, bytes)
}

#[inline(always)]
fn ipv6(ctx: &impl Frame, data: usize, tick: u64) -> bool {
    let addresses = load!("u64", data, ETHERNET + 8)
        ^ load!("u64", data, ETHERNET + 16)
        ^ load!("u64", data, ETHERNET + 24)
        ^ load!("u64", data, ETHERNET + 32);
    let protocol = load!("u8", data, ETHERNET + 6) | MatchWords::V6;
    let words = MatchWords::new(addresses, load!("u32", data, ETHERNET + IPV6), protocol);
    let Some(slot) = current(&words, tick) else { return false };
    let key = slot.key.words();
    // With the xor of all four the same, three are enough.
    let same = key[0] == load!("u64", data, ETHERNET + 8)
        && key[1] == load!("u64", data, ETHERNET + 16)
        && key[2] == load!("u64", data, ETHERNET + 24);
    let bytes = u64::from((load!("u16", data, ETHERNET + 4) as u16).swap_bytes()) + IPV6 as u64;
    if !same || !fits(ctx, bytes, IPV6 + TCP) {
        return false;
    }
    if slot.key.protocol == PROTOCOL_TCP {
        slot.flags |= load!("u8", data, ETHERNET + IPV6 + 13);
    }
    add(ctx, slot, bytes)
}

/// The slot, if these words are in it and it is this tick's.
#[inline(always)]
fn current<'a>(words: &MatchWords, tick: u64) -> Option<&'a mut HotFlow> {
    let slot = HOT.get_ptr_mut(words.slot())?;
    // SAFETY: the element of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
    let slot = unsafe { &mut *slot };
    (slot.tick == tick && slot.words == *words).then_some(slot)
}

/// Whether an IP packet has room for its headers and no more bytes than the frame.
#[inline(always)]
fn fits(ctx: &impl Frame, bytes: u64, headers: usize) -> bool {
    // The frame is at least that long; a difference below zero is a large number.
    bytes.wrapping_sub(headers as u64) <= u64::from(ctx.len()).wrapping_sub((ETHERNET + headers) as u64)
}

#[inline(always)]
fn add(ctx: &impl Frame, slot: &mut HotFlow, bytes: u64) -> bool {
    slot.packets += 1;
    slot.bytes += bytes;
    if let Some(segments) = ctx.gso_segments() {
        slot.extra_segments += u64::from(segments) - 1;
    }
    true
}
