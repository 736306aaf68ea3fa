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

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_jiffies64},
    programs::TcContext,
};
use fastpath_common::{Family, FlowKey, HotFlow, limits::HOT_SLOTS};

use crate::{account::gso_segments, maps::HOT};

const ETHERTYPE_IPV4: u64 = 0x0800_u16.to_be() as u64;
const ETHERTYPE_IPV6: u64 = 0x86dd_u16.to_be() as u64;
/// More-fragments flag and offset.
const FRAGMENT: u64 = 0x3fff_u16.to_be() as u64;
const TCP: u64 = 6;
const UDP: u64 = 17;
/// Length of an Ethernet header; offsets into frames below count from its beginning.
const L3: usize = 14;
const TCP_HEADER: usize = 20;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// Loads from a packet, at any alignment; `$at` is checked against the end by the caller, and by the verifier.
macro_rules! load {
    ($type:literal, $data:expr, $at:expr) => {{
        let value: u64;
        // SAFETY: within the packet, as the verifier makes sure. The compiler itself would load byte by byte.
        unsafe {
            asm!(
                concat!("{v} = *(", $type, " *)({p} + {o})"),
                v = out(reg) value, p = in(reg) $data, o = const $at,
                options(pure, readonly, nostack)
            );
        }
        value
    }};
}

/// Counts the packet if it belongs to a flow that is hot on this CPU in this tick; false, and nothing done, if not.
#[inline(always)]
pub fn count(ctx: &TcContext) -> bool {
    // SAFETY: no preconditions. A load each, once the kernel has inlined them.
    let (tick, cpu) = unsafe { (bpf_jiffies64(), bpf_get_smp_processor_id()) };
    let data = ctx.data();
    let end = ctx.data_end();
    if data + L3 + IPV4_HEADER + TCP_HEADER > end {
        return false;
    }
    match load!("u16", data, 12) {
        ETHERTYPE_IPV4 => ipv4(ctx, data, tick, cpu),
        ETHERTYPE_IPV6 if data + L3 + IPV6_HEADER + TCP_HEADER <= end => ipv6(ctx, data, tick, cpu),
        _ => false,
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, data: usize, tick: u64, cpu: u32) -> bool {
    // No room for TCP's header: in doubt for UDP, wrong for TCP.
    let bytes = u64::from((load!("u16", data, L3 + 2) as u16).swap_bytes());
    let plain = load!("u8", data, L3) == 0x45
        && load!("u16", data, L3 + 6) & FRAGMENT == 0
        && bytes >= (IPV4_HEADER + TCP_HEADER) as u64
        && bytes <= u64::from(ctx.len()) - L3 as u64;
    let protocol = load!("u8", data, L3 + 9);
    if !plain || (protocol != TCP && protocol != UDP) {
        return false;
    }
    let (src, dst) = (load!("u32", data, L3 + 12), load!("u32", data, L3 + 16));
    let rest = rest(load!("u32", data, L3 + IPV4_HEADER), protocol, Family::V4);
    let Some(slot) = slot_at(cpu, src as u32 ^ dst as u32 ^ rest as u32) else { return false };
    // Read again: cheaper than keeping them.
    let (src, dst) = (load!("u32", data, L3 + 12), load!("u32", data, L3 + 16));
    let words = slot.key.words();
    let same = slot.tick == tick
        && words[0] as u32 == src as u32
        && words[2] as u32 == dst as u32
        && words[4] == rest;
    if !same {
        return false;
    }
    if protocol == TCP {
        slot.tcp_flags |= load!("u8", data, L3 + IPV4_HEADER + 13);
    }
    add(ctx, slot, bytes);
    true
}

#[inline(always)]
fn ipv6(ctx: &TcContext, data: usize, tick: u64, cpu: u32) -> bool {
    let bytes = u64::from((load!("u16", data, L3 + 4) as u16).swap_bytes()) + IPV6_HEADER as u64;
    let plain = load!("u8", data, L3) >> 4 == 6
        && bytes >= (IPV6_HEADER + TCP_HEADER) as u64
        && bytes <= u64::from(ctx.len()) - L3 as u64;
    let protocol = load!("u8", data, L3 + 6);
    if !plain || (protocol != TCP && protocol != UDP) {
        return false;
    }
    let rest = rest(load!("u32", data, L3 + IPV6_HEADER), protocol, Family::V6);
    let folded = load!("u64", data, L3 + 8)
        ^ load!("u64", data, L3 + 16)
        ^ load!("u64", data, L3 + 24)
        ^ load!("u64", data, L3 + 32);
    let Some(slot) = slot_at(cpu, folded as u32 ^ (folded >> 32) as u32 ^ rest as u32) else { return false };
    let words = slot.key.words();
    let same = slot.tick == tick
        && words[0] == load!("u64", data, L3 + 8)
        && words[1] == load!("u64", data, L3 + 16)
        && words[2] == load!("u64", data, L3 + 24)
        && words[3] == load!("u64", data, L3 + 32)
        && words[4] == rest;
    if !same {
        return false;
    }
    if protocol == TCP {
        slot.tcp_flags |= load!("u8", data, L3 + IPV6_HEADER + 13);
    }
    add(ctx, slot, bytes);
    true
}

/// The last word of a flow key, from the packet's ports as they lie there.
#[inline(always)]
fn rest(ports: u64, protocol: u64, family: Family) -> u64 {
    u64::from((ports as u32).swap_bytes()) | protocol << 32 | (family as u64) << 40
}

#[inline(always)]
fn add(ctx: &TcContext, slot: &mut HotFlow, bytes: u64) {
    slot.packets += 1;
    slot.bytes += bytes;
    if let Some(segments) = gso_segments(ctx) {
        slot.extra_segments += u64::from(segments) - 1;
    }
}

/// The slot for a fold of a key, in the range of this CPU.
#[inline(always)]
fn slot_at<'a>(cpu: u32, fold: u32) -> Option<&'a mut HotFlow> {
    // SAFETY: nobody else writes this CPU's range, and programs on one CPU don't interrupt each other.
    HOT.get_ptr_mut(cpu * HOT_SLOTS + HotFlow::index(fold)).map(|slot| unsafe { &mut *slot })
}

/// This CPU's slot for a key, whoever is in it.
#[inline(always)]
pub fn slot<'a>(key: &FlowKey) -> Option<&'a mut HotFlow> {
    // SAFETY: no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: as in `slot_at`.
    HOT.get_ptr_mut(cpu * HOT_SLOTS + HotFlow::index_of(key)).map(|slot| unsafe { &mut *slot })
}
