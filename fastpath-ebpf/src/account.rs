//! Adds a packet to its flow, or to the tally of why it has none, and signals the crossing of the threshold.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, keys and values would be copied once more"
)]

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    cty::c_long,
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
};
use fastpath_common::{FlowCounters, FlowEvent, FlowKey, HotFlow, MatchWords, PacketStats, Signal};

use crate::{
    atomic,
    frame::Frame,
    maps::{CONFIG, EVENTS, FLOWS, HOT, STATS},
    parse::{Packet, Uncounted},
    say::{self, Fate},
};

/// `-EEXIST` of `bpf_map_update_elem`.
const EXISTS: c_long = -17;

/// What is added to a flow.
#[derive(Clone, Copy)]
struct Amount {
    packets: u64,
    segments: u64,
    bytes: u64,
    flags: u64,
    /// Always 0 where nothing is forwarded.
    forwarded: u64,
}

/// When: nanoseconds, and their tick of the kernel.
#[derive(Clone, Copy)]
struct Now {
    ns: u64,
    tick: u64,
}

/// Counts a packet that belongs to no flow.
#[inline(always)]
pub fn uncounted(ctx: &impl Frame, reason: &Uncounted) {
    let Some(stats) = stats() else { return };
    let tally = match reason {
        Uncounted::NotIp => &mut stats.not_ip,
        Uncounted::Malformed => &mut stats.malformed,
        Uncounted::LaterFragment => &mut stats.later_fragment,
        Uncounted::OtherProtocol => &mut stats.other_protocol,
        Uncounted::TooManyHeaders => &mut stats.too_many_headers,
    };
    tally.packets += 1;
    tally.bytes += u64::from(ctx.len());
    say::uncounted(reason, ctx);
}

/// This CPU's.
#[inline(always)]
pub fn stats<'a>() -> Option<&'a mut PacketStats> {
    // SAFETY: the element of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
    STATS.get_ptr_mut(0).map(|stats| unsafe { &mut *stats })
}

/// Counts a packet of a flow. With `MAY_BE_HOT`, the flow may become hot. True if the packet may be forwarded, which only
/// `FORWARD` finds out.
#[inline(always)]
pub fn flow<const MAY_BE_HOT: bool, const FORWARD: bool>(ctx: &impl Frame, packet: &Packet) -> bool {
    let Some(stats) = stats() else { return false };
    // SAFETY: no preconditions.
    let now = unsafe { Now { tick: bpf_jiffies64(), ns: bpf_ktime_get_coarse_ns() } };
    let ifindex = ctx.ifindex();
    let mut amount = Amount {
        packets: 1,
        segments: u64::from(ctx.gso_segments().unwrap_or(1)),
        bytes: u64::from(packet.bytes),
        flags: u64::from(packet.flags),
        forwarded: 0,
    };
    let mut slot =
        if MAY_BE_HOT { Slot::of(&MatchWords::of(packet.key()), &packet.words, now.tick) } else { None };
    let mut busy = false;
    if let Some(Slot { mine: true, hot, .. }) = &mut slot {
        let pending = begin_move::<FORWARD>(hot);
        busy = pending.packets > 0;
        if FORWARD && hot.is_forwarded() {
            hot.forward = if busy { HotFlow::FORWARDED } else { HotFlow::SPARSE };
        }
        amount = amount.and(pending);
    }
    let (hot, room) = match FLOWS.get_ptr_mut(packet.key()) {
        Some(counters) => {
            // SAFETY: a map value that the verifier has checked.
            let last_tick = unsafe { (*counters).last_tick };
            let packets = add::<FORWARD>(counters, &amount, now, stats);
            (last_tick == now.tick as u32, signal(counters, packet.key(), packets, now, ifindex, stats))
        }
        // One packet is seldom all.
        None => (insert::<FORWARD>(packet.key(), &amount, now, ifindex, stats), room(amount.packets)),
    };
    let Some(slot) = slot else { return false };
    if slot.mine {
        let closed = if slot.begun { HotFlow::CLOSED } else { 0 };
        end_move::<FORWARD>(slot.hot, now.tick | closed, room);
        // The kernel isn't asked for a flow with a single packet in a tick.
        let may_begin = busy && slot.hot.forward <= now.tick;
        return FORWARD && room == HotFlow::NO_LIMIT && (may_begin || slot.hot.is_forwarded());
    }
    if !hot || FORWARD && slot.is_kept(now.tick) {
        return false;
    }
    let pending = begin_move::<FORWARD>(slot.hot);
    if pending.packets > 0 || FORWARD && pending.forwarded > 0 {
        match FLOWS.get_ptr_mut(&slot.hot.key) {
            Some(counters) => {
                add::<FORWARD>(counters, &pending, now, stats);
            }
            None => {
                insert::<FORWARD>(&slot.hot.key, &pending, now, ifindex, stats);
            }
        }
    }
    slot.hot.key = *packet.key();
    slot.hot.words = MatchWords::of(packet.key());
    if FORWARD {
        slot.hot.forward = HotFlow::NEW;
    }
    end_move::<FORWARD>(slot.hot, now.tick, room);
    FORWARD && room == HotFlow::NO_LIMIT
}

/// A flow's slot on this CPU, and what may be done with it.
struct Slot<'a> {
    hot: &'a mut HotFlow,
    /// What it holds is of this flow, and to be moved now.
    mine: bool,
    /// Something was counted in it in this tick, so it has to be closed until the next.
    begun: bool,
}

impl Slot<'_> {
    /// `None` if it has to stay as it is: within a tick a slot only grows, as readers rely on, or is closed.
    #[inline(always)]
    fn of(words: &MatchWords, key: &[u64; 5], tick: u64) -> Option<Self> {
        // SAFETY: the element of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
        let hot = unsafe { &mut *HOT.get_ptr_mut(words.slot())? };
        let mine = same(&hot.key, key);
        // Up to the threshold each packet has to be compared with all that came before it.
        let begun = hot.tick == tick;
        if hot.tick == tick | HotFlow::CLOSED || begun && !(mine && hot.room != HotFlow::NO_LIMIT) {
            return None;
        }
        Some(Self { hot, mine, begun })
    }

    /// Whether a flow that is being forwarded keeps it: without its way its packets would be overtaken again and again.
    #[inline(always)]
    fn is_kept(&self, tick: u64) -> bool {
        self.hot.is_forwarded() && tick.wrapping_sub(self.hot.tick & !HotFlow::CLOSED) < HotFlow::KEPT
    }
}

impl Amount {
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            segments: self.segments + other.segments,
            bytes: self.bytes + other.bytes,
            flags: self.flags | other.flags,
            forwarded: self.forwarded + other.forwarded,
        }
    }
}

/// Word by word: comparing arrays would become a call, and with calls old verifiers take a hundred times as long.
#[inline(always)]
pub fn same(key: &FlowKey, words: &[u64; 5]) -> bool {
    let [a, b, c, d, e] = key.words();
    a == words[0] && b == words[1] && c == words[2] && d == words[3] && e == words[4]
}

/// A slot's counts. Readers wait until the slot says that all of them are in the flows map.
#[inline(always)]
fn begin_move<const FORWARD: bool>(slot: &mut HotFlow) -> Amount {
    // SAFETY: a reference. Volatile: before what follows.
    unsafe { core::ptr::write_volatile(&mut slot.tick, HotFlow::MOVING) };
    Amount {
        packets: slot.packets,
        segments: slot.packets + slot.extra_segments,
        bytes: slot.bytes,
        flags: slot.flags,
        forwarded: if FORWARD { slot.forwarded } else { 0 },
    }
}

/// Empties a slot and makes it that tick's.
#[inline(always)]
fn end_move<const FORWARD: bool>(slot: &mut HotFlow, tick: u64, room: u64) {
    slot.room = room;
    for field in [&mut slot.packets, &mut slot.extra_segments, &mut slot.bytes, &mut slot.flags] {
        // SAFETY: a reference. Volatile, or it would become a call as in `same`.
        unsafe { core::ptr::write_volatile(field, 0) };
    }
    if FORWARD {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&mut slot.forwarded, 0) };
    }
    // SAFETY: as above; the last of all.
    unsafe { core::ptr::write_volatile(&mut slot.tick, tick) };
}

/// Adds to a flow and returns its packets. Other CPUs may be adding to the same flow.
#[inline(always)]
fn add<const FORWARD: bool>(
    counters: *mut FlowCounters,
    amount: &Amount,
    now: Now,
    stats: &mut PacketStats,
) -> u64 {
    stats.counted.packets += amount.packets;
    stats.counted.bytes += amount.bytes;
    if FORWARD {
        stats.forwarded += amount.forwarded;
    }
    // SAFETY: a map value that the verifier has checked; its fields are aligned, and all shared ones are only changed
    // atomically from here on (times are single stores: the later of two CPUs a tick apart may lose).
    unsafe {
        let before = atomic::fetch_add(&raw mut (*counters).packets, amount.packets);
        atomic::add(&raw mut (*counters).segments, amount.segments);
        atomic::add(&raw mut (*counters).bytes, amount.bytes);
        (*counters).last_seen_ns = now.ns;
        (*counters).last_tick = now.tick as u32;
        if amount.flags & !(*counters).flags != 0 {
            atomic::or(&raw mut (*counters).flags, amount.flags);
        }
        if FORWARD && amount.forwarded > 0 {
            atomic::add(&raw mut (*counters).forwarded, amount.forwarded);
        }
        before + amount.packets
    }
}

/// How many packets more of a flow may come that hasn't signalled, before it has to be asked whether it crosses.
#[inline(always)]
fn room(packets: u64) -> u64 {
    match CONFIG.get(0) {
        Some(config) if config.threshold > 0 => u64::from(config.threshold).saturating_sub(packets),
        _ => HotFlow::NO_LIMIT,
    }
}

/// Enters a new flow; false if there was no room for it.
#[inline(always)]
fn insert<const FORWARD: bool>(
    key: &FlowKey,
    amount: &Amount,
    now: Now,
    ifindex: u32,
    stats: &mut PacketStats,
) -> bool {
    let new = FlowCounters {
        #[cfg(feature = "other-maps")]
        other: 0,
        packets: amount.packets,
        segments: amount.segments,
        bytes: amount.bytes,
        first_seen_ns: now.ns,
        last_seen_ns: now.ns,
        flags: amount.flags,
        signal: Signal::None as u64,
        ifindex,
        last_tick: now.tick as u32,
        forwarded: amount.forwarded,
    };
    match FLOWS.insert(key, &new, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            stats.flows_entered += 1;
            say::flow(Fate::Entered, key, amount.packets);
        }
        // Another CPU was faster with the same flow.
        Err(e) if c_long::from(e) == EXISTS => match FLOWS.get_ptr_mut(key) {
            Some(counters) => {
                add::<FORWARD>(counters, amount, now, stats);
                return true;
            }
            None => return no_room(key, amount, stats),
        },
        Err(_) => return no_room(key, amount, stats),
    }
    stats.counted.packets += amount.packets;
    stats.counted.bytes += amount.bytes;
    stats.forwarded += amount.forwarded;
    true
}

#[inline(always)]
fn no_room(key: &FlowKey, amount: &Amount, stats: &mut PacketStats) -> bool {
    say::flow(Fate::NoRoom, key, amount.packets);
    stats.no_room.packets += amount.packets;
    stats.no_room.bytes += amount.bytes;
    stats.forwarded += amount.forwarded;
    false
}

/// Sends the event of a flow that hasn't had one, if it is above the threshold. Returns how many packets more may come
/// before it has to be asked again.
#[inline(always)]
fn signal(
    counters: *mut FlowCounters,
    key: &FlowKey,
    packets: u64,
    now: Now,
    ifindex: u32,
    stats: &mut PacketStats,
) -> u64 {
    // SAFETY: as in `add`.
    if unsafe { (*counters).signal } != Signal::None as u64 {
        return HotFlow::NO_LIMIT;
    }
    let Some(config) = CONFIG.get(0) else { return HotFlow::NO_LIMIT };
    let threshold = config.threshold;
    if threshold == 0 {
        return HotFlow::NO_LIMIT;
    }
    if packets <= u64::from(threshold) {
        return u64::from(threshold) - packets;
    }
    // SAFETY: as in `add`. The CPU that changes the field is the one that sends.
    let before = unsafe { atomic::swap(&raw mut (*counters).signal, Signal::Sent as u64) };
    if before != Signal::None as u64 {
        return HotFlow::NO_LIMIT;
    }
    let event = FlowEvent { key: *key, time_ns: now.ns, packets, ifindex, threshold };
    if EVENTS.output(&event, 0).is_ok() {
        stats.events_sent += 1;
        say::flow(Fate::Signalled, key, packets);
    } else {
        // SAFETY: as in `add`.
        unsafe { (*counters).signal = Signal::Lost as u64 };
        stats.events_lost += 1;
        say::flow(Fate::NotSignalled, key, packets);
    }
    HotFlow::NO_LIMIT
}
