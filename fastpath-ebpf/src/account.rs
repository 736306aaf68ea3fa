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
use fastpath_common::{FlowCounters, FlowEvent, FlowKey, HotFlow, MatchWords, PacketStats, Signal, Tally};

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
}

/// When: nanoseconds, and the tick of the kernel that they stand for.
#[derive(Clone, Copy)]
struct Now {
    ns: u64,
    tick: u64,
}

/// Counts a packet. With `MAY_BE_HOT`, its flow may become hot.
#[inline(always)]
pub fn account<const MAY_BE_HOT: bool>(ctx: &impl Frame, parsed: &Result<Packet, Uncounted>) {
    let Some(stats) = STATS.get_ptr_mut(0) else { return };
    // SAFETY: the element of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
    let stats = unsafe { &mut *stats };
    let tally = match parsed {
        Ok(packet) => return flow::<MAY_BE_HOT>(ctx, packet, stats),
        Err(Uncounted::NotIp) => &mut stats.not_ip,
        Err(Uncounted::Malformed) => &mut stats.malformed,
        Err(Uncounted::LaterFragment) => &mut stats.later_fragment,
        Err(Uncounted::OtherProtocol) => &mut stats.other_protocol,
        Err(Uncounted::TooManyHeaders) => &mut stats.too_many_headers,
    };
    tally.packets += 1;
    tally.bytes += u64::from(ctx.len());
    if let Err(reason) = parsed {
        say::uncounted(reason, ctx);
    }
}

#[inline(always)]
fn flow<const MAY_BE_HOT: bool>(ctx: &impl Frame, packet: &Packet, stats: &mut PacketStats) {
    // SAFETY: no preconditions.
    let now = unsafe { Now { tick: bpf_jiffies64(), ns: bpf_ktime_get_coarse_ns() } };
    let ifindex = ctx.ifindex();
    let mut amount = Amount {
        packets: 1,
        segments: u64::from(ctx.gso_segments().unwrap_or(1)),
        bytes: u64::from(packet.bytes),
        flags: u64::from(packet.flags),
    };
    // Within a tick a slot only grows: readers rely on it.
    let words = MatchWords::of(packet.key());
    let mut slot = if MAY_BE_HOT { slot(&words).filter(|slot| slot.tick != now.tick) } else { None };
    let mut ours = false;
    if let Some(slot) = &mut slot
        && same(&slot.key, &packet.words)
    {
        ours = true;
        amount = amount.and(begin_move(slot));
    }
    let (again_in_this_tick, may_be_hot) = match FLOWS.get_ptr_mut(packet.key()) {
        Some(counters) => {
            // SAFETY: a map value that the verifier has checked.
            let last_tick = unsafe { (*counters).last_tick };
            let packets = add(counters, &amount, now, stats);
            // A hot flow's packets aren't compared with the threshold one by one.
            (last_tick == now.tick as u32, signal(counters, packet.key(), packets, now, ifindex, stats))
        }
        None => {
            insert(packet.key(), &amount, now, ifindex, stats);
            (false, false)
        }
    };
    let Some(slot) = slot else { return };
    if ours {
        end_move(slot, if may_be_hot { now.tick } else { now.tick | HotFlow::NOBODYS });
    } else if again_in_this_tick && may_be_hot {
        let pending = begin_move(slot);
        if pending.packets > 0 {
            match FLOWS.get_ptr_mut(&slot.key) {
                Some(counters) => {
                    add(counters, &pending, now, stats);
                }
                None => insert(&slot.key, &pending, now, ifindex, stats),
            }
        }
        slot.key = *packet.key();
        slot.words = words;
        end_move(slot, now.tick);
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
        }
    }
}

/// Word by word: comparing arrays would become a call, and with calls old verifiers take a hundred times as long.
#[inline(always)]
fn same(key: &FlowKey, words: &[u64; 5]) -> bool {
    let [a, b, c, d, e] = key.words();
    a == words[0] && b == words[1] && c == words[2] && d == words[3] && e == words[4]
}

/// What a slot holds. Readers wait until it is said that all of it is in the flows map.
#[inline(always)]
fn begin_move(slot: &mut HotFlow) -> Amount {
    // SAFETY: a reference. Volatile: before what follows.
    unsafe { core::ptr::write_volatile(&mut slot.tick, HotFlow::MOVING) };
    Amount {
        packets: slot.packets,
        segments: slot.packets + slot.extra_segments,
        bytes: slot.bytes,
        flags: slot.flags,
    }
}

/// Empties a slot and makes it this tick's, or nobody's.
#[inline(always)]
fn end_move(slot: &mut HotFlow, tick: u64) {
    for field in [&mut slot.packets, &mut slot.extra_segments, &mut slot.bytes, &mut slot.flags] {
        // SAFETY: a reference. Volatile, or it would become a call as in `same`.
        unsafe { core::ptr::write_volatile(field, 0) };
    }
    // SAFETY: as above; the last of all.
    unsafe { core::ptr::write_volatile(&mut slot.tick, tick) };
}

/// This CPU's slot for a flow, whoever is in it.
#[inline(always)]
fn slot<'a>(words: &MatchWords) -> Option<&'a mut HotFlow> {
    // SAFETY: the element of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
    HOT.get_ptr_mut(words.slot()).map(|slot| unsafe { &mut *slot })
}

/// Adds to a flow and returns its packets. Other CPUs may be adding to the same flow.
#[inline(always)]
fn add(counters: *mut FlowCounters, amount: &Amount, now: Now, stats: &mut PacketStats) -> u64 {
    stats.counted.packets += amount.packets;
    stats.counted.bytes += amount.bytes;
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
        before + amount.packets
    }
}

/// Enters a new flow.
#[inline(always)]
fn insert(key: &FlowKey, amount: &Amount, now: Now, ifindex: u32, stats: &mut PacketStats) {
    let new = FlowCounters {
        packets: amount.packets,
        segments: amount.segments,
        bytes: amount.bytes,
        first_seen_ns: now.ns,
        last_seen_ns: now.ns,
        flags: amount.flags,
        signal: Signal::None as u64,
        ifindex,
        last_tick: now.tick as u32,
    };
    let tally = match FLOWS.insert(key, &new, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            stats.flows_entered += 1;
            say::flow(Fate::Entered, key, amount.packets);
            &mut stats.counted
        }
        // Another CPU was faster with the same flow.
        Err(e) if c_long::from(e) == EXISTS => match FLOWS.get_ptr_mut(key) {
            Some(counters) => {
                add(counters, amount, now, stats);
                return;
            }
            None => no_room(key, amount, stats),
        },
        Err(_) => no_room(key, amount, stats),
    };
    tally.packets += amount.packets;
    tally.bytes += amount.bytes;
}

#[inline(always)]
fn no_room<'a>(key: &FlowKey, amount: &Amount, stats: &'a mut PacketStats) -> &'a mut Tally {
    say::flow(Fate::NoRoom, key, amount.packets);
    &mut stats.no_room
}

/// Sends the event of a flow that hasn't had one, if it is above the threshold. False if it may still cross it.
#[inline(always)]
fn signal(
    counters: *mut FlowCounters,
    key: &FlowKey,
    packets: u64,
    now: Now,
    ifindex: u32,
    stats: &mut PacketStats,
) -> bool {
    // SAFETY: as in `add`.
    if unsafe { (*counters).signal } != Signal::None as u64 {
        return true;
    }
    let Some(config) = CONFIG.get(0) else { return true };
    let threshold = config.threshold;
    if threshold == 0 {
        return true;
    }
    if packets <= u64::from(threshold) {
        return false;
    }
    // SAFETY: as in `add`. The CPU that changes the field is the one that sends.
    let before = unsafe { atomic::swap(&raw mut (*counters).signal, Signal::Sent as u64) };
    if before != Signal::None as u64 {
        return true;
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
    true
}
