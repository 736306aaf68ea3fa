//! Notes that a connection is offloaded, at the moment when the kernel puts it into the flowtable: the agent needn't ask
//! conntrack about it. Reads the kernel's memory, changes nothing in it.

use aya_ebpf::{helpers::bpf_probe_read_kernel, programs::ProbeContext};
use fastpath_common::{Family, FlowCounters, FlowKey, HotFlow, MatchWords, Probe, Signal};

use crate::{
    account, atomic,
    maps::{FLOWS, HOT, PROBE},
};

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` (include/uapi/linux/netfilter.h).
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// What is needed of `struct flow_offload_tuple` (include/net/netfilter/nf_flow_table.h): the tuple of one direction as
/// its packets come in.
#[repr(C)]
struct Tuple {
    /// Addresses, each with zeros behind it if it is of IPv4.
    ends: [u64; 4],
    /// Network byte order.
    ports: u32,
    _iifidx: u32,
    l3proto: u8,
    l4proto: u8,
}

const _: () = {
    assert!(core::mem::offset_of!(Tuple, ports) == Probe::PORTS as usize);
    assert!(core::mem::offset_of!(Tuple, l3proto) == Probe::PROTOCOLS as usize);
};

/// Notes it of both directions, as far as they are in the map.
#[inline(always)]
pub fn note(ctx: &ProbeContext) -> Option<()> {
    let probe = PROBE.get(0)?;
    if probe.netns == 0 {
        return None;
    }
    let flow: u64 = ctx.arg(1)?;
    // Other namespaces have their own flowtables, and maybe the same addresses.
    let connection: u64 = read(flow + u64::from(probe.connection))?;
    let net: u64 = read(connection + u64::from(probe.net))?;
    let number: u32 = read(net + u64::from(probe.number))?;
    if number != probe.netns {
        return None;
    }
    let first = flow + u64::from(Probe::TUPLE);
    let original = direction(first, probe.tell_all);
    let reply = direction(first + u64::from(probe.stride), probe.tell_all);
    if matches!((original, reply), (Some(true), _) | (_, Some(true))) || original.or(reply).is_none() {
        return None;
    }
    // The forward path is softirq, too: nothing else changes this CPU's counts now.
    account::stats()?.went_over += 1;
    Some(())
}

/// Whether this direction had been noted before; `None` if it isn't in the map.
#[inline(always)]
fn direction(at: u64, tell_all: u32) -> Option<bool> {
    let tuple: Tuple = read(at)?;
    let family = match tuple.l3proto {
        NFPROTO_IPV4 => Family::V4,
        NFPROTO_IPV6 => Family::V6,
        _ => return None,
    };
    let [a, b, c, d] = tuple.ends;
    let ports = u64::from(tuple.ports.swap_bytes());
    let words = [a, b, c, d, ports | u64::from(tuple.l4proto) << 32 | (family as u64) << 40];
    // SAFETY: same size and alignment, and any bytes are a key (the layout is asserted where it is defined).
    let key: &FlowKey = unsafe { &*core::ptr::from_ref(&words).cast() };
    let counters = FLOWS.get_ptr_mut(key)?;
    // SAFETY: a map value that the verifier has checked, aligned; changed atomically.
    unsafe {
        let flags = (*counters).flags;
        let before = flags & FlowCounters::WENT_OVER != 0;
        atomic::or(&raw mut (*counters).flags, FlowCounters::WENT_OVER);
        if flags & FlowCounters::ARMED != 0 {
            atomic::and(&raw mut (*counters).flags, !FlowCounters::ARMED);
        }
        if tell_all == 0 {
            if (*counters).signal != Signal::Sent as u64 {
                atomic::swap(&raw mut (*counters).signal, Signal::Sent as u64);
            }
            give_room(key, &words);
        }
        Some(before)
    }
}

/// What this CPU counts of the flow in this tick needn't end with its crossing any more.
#[inline(always)]
fn give_room(key: &FlowKey, words: &[u64; 5]) {
    let Some(hot) = HOT.get_ptr_mut(MatchWords::of(key).slot()) else { return };
    // SAFETY: the element of this CPU; the forward path is softirq, as the programs that count are.
    unsafe {
        if account::same(&(*hot).key, words) {
            (*hot).room = HotFlow::NO_LIMIT;
        }
    }
}

/// Copies out of the kernel's memory.
#[inline(always)]
fn read<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address, and fails where nothing is.
    unsafe { bpf_probe_read_kernel(at as *const T) }.ok()
}
