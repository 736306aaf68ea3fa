//! Adds a packet to its flow, or to the tally of why it has none, and signals the crossing of the threshold.

use aya_ebpf::{bindings::BPF_NOEXIST, cty::c_long, helpers::bpf_ktime_get_coarse_ns, programs::TcContext};
use fastpath_common::{FlowCounters, FlowEvent, PacketStats, Signal, Tally};

use crate::{
    atomic,
    maps::{CONFIG, EVENTS, FLOWS, STATS},
    parse::{Packet, Uncounted},
};

/// `-EEXIST` of `bpf_map_update_elem`.
const EXISTS: c_long = -17;

#[inline(always)]
pub fn account(ctx: &TcContext, parsed: &Result<Packet, Uncounted>) {
    let Some(stats) = STATS.get_ptr_mut(0) else { return };
    // SAFETY: the element of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
    let stats = unsafe { &mut *stats };
    let tally = match parsed {
        Ok(packet) => flow(ctx, packet, stats),
        Err(Uncounted::NotIp) => &mut stats.not_ip,
        Err(Uncounted::Malformed) => &mut stats.malformed,
        Err(Uncounted::LaterFragment) => &mut stats.later_fragment,
        Err(Uncounted::OtherProtocol) => &mut stats.other_protocol,
        Err(Uncounted::TooManyHeaders) => &mut stats.too_many_headers,
    };
    tally.packets += 1;
    tally.bytes += u64::from(ctx.len());
}

/// Adds the packet to its flow and returns the tally that it belongs to.
#[inline(always)]
fn flow<'a>(ctx: &TcContext, packet: &Packet, stats: &'a mut PacketStats) -> &'a mut Tally {
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: the context is a valid __sk_buff for the whole run.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let segments = segments(ctx);

    if let Some(counters) = FLOWS.get_ptr_mut(&packet.key) {
        add(counters, packet, now, ifindex, segments, stats);
        return &mut stats.counted;
    }
    let new = FlowCounters {
        packets: 1,
        segments: u64::from(segments),
        bytes: u64::from(packet.bytes),
        first_seen_ns: now,
        last_seen_ns: now,
        tcp_flags: u64::from(packet.tcp_flags),
        signal: Signal::None as u64,
        ifindex,
        reserved: 0,
    };
    match FLOWS.insert(&packet.key, &new, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            stats.flows_entered += 1;
            &mut stats.counted
        }
        // Another CPU was faster with the same flow.
        Err(e) if c_long::from(e) == EXISTS => match FLOWS.get_ptr_mut(&packet.key) {
            Some(counters) => {
                add(counters, packet, now, ifindex, segments, stats);
                &mut stats.counted
            }
            None => &mut stats.no_room,
        },
        Err(_) => &mut stats.no_room,
    }
}

/// Other CPUs may be adding to the same flow.
#[inline(always)]
fn add(
    counters: *mut FlowCounters,
    packet: &Packet,
    now: u64,
    ifindex: u32,
    segments: u32,
    stats: &mut PacketStats,
) {
    // SAFETY: a map value that the verifier has checked; its fields are aligned, and all shared ones are only changed
    // atomically from here on (the time is a single store: the later of two CPUs a tick apart may lose).
    unsafe {
        let before = atomic::fetch_add(&raw mut (*counters).packets, 1);
        atomic::add(&raw mut (*counters).segments, u64::from(segments));
        atomic::add(&raw mut (*counters).bytes, u64::from(packet.bytes));
        (*counters).last_seen_ns = now;
        let flags = u64::from(packet.tcp_flags);
        if flags & !(*counters).tcp_flags != 0 {
            atomic::or(&raw mut (*counters).tcp_flags, flags);
        }
        if (*counters).signal == Signal::None as u64 {
            signal(counters, packet, before + 1, now, ifindex, stats);
        }
    }
}

/// Sends the event of a flow that hasn't had one, if it is above the threshold.
#[inline(always)]
fn signal(
    counters: *mut FlowCounters,
    packet: &Packet,
    packets: u64,
    now: u64,
    ifindex: u32,
    stats: &mut PacketStats,
) {
    let Some(config) = CONFIG.get(0) else { return };
    let threshold = config.threshold;
    if threshold == 0 || packets <= u64::from(threshold) {
        return;
    }
    // SAFETY: as in `add`. The CPU that changes the field is the one that sends.
    let before = unsafe { atomic::swap(&raw mut (*counters).signal, Signal::Sent as u64) };
    if before != Signal::None as u64 {
        return;
    }
    let event = FlowEvent { key: packet.key, time_ns: now, packets, ifindex, threshold };
    if EVENTS.output(&event, 0).is_ok() {
        stats.events_sent += 1;
    } else {
        // SAFETY: as in `add`.
        unsafe { (*counters).signal = Signal::Lost as u64 };
        stats.events_lost += 1;
    }
}

/// Packets on the wire that this one stands for. Packets from a guest may know the size of their segments only
/// (`SKB_GSO_DODGY`).
#[inline(always)]
fn segments(ctx: &TcContext) -> u32 {
    // SAFETY: the context is a valid __sk_buff for the whole run.
    let (segments, size) = unsafe { ((*ctx.skb.skb).gso_segs, (*ctx.skb.skb).gso_size) };
    match (segments, size) {
        (0, 0) => 1,
        (0, size) => ctx.len().div_ceil(size),
        (segments, _) => segments,
    }
}
