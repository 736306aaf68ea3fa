//! The short way for packets of busy flows: counted without a look-up in the flows map.
//! A flow is hot while its packets come several to a tick of the kernel. Within a tick the counts of a hot flow grow in
//! a slot of this CPU's; the first packet of the next tick takes the long way and moves them to the flows map. Readers add
//! the two. The packet that crosses the threshold takes the long way: a slot has room only for those before it.

use aya_ebpf::helpers::bpf_jiffies64;
use fastpath_common::{Family, HotFlow, MatchWords};

use crate::{
    frame::Frame,
    maps::HOT,
    parse::Packet,
    plain::{self, Plain, V4, V6},
};

const PROTOCOL_TCP: u8 = 6;

/// What has been done with a packet.
pub enum Counted {
    /// It was counted.
    Short {
        /// It may be forwarded.
        forward: bool,
    },
    /// It has to go the long way; with what is known of it, if it is a plain one.
    Not(Option<Packet>),
}

/// Counts the packet if it belongs to a flow that is hot on this CPU in this tick.
#[inline(always)]
pub fn count<const FORWARD: bool>(ctx: &impl Frame) -> Counted {
    let data = ctx.data();
    match plain::family(data, ctx.data_end()) {
        Some(Family::V4) => count_as::<V4, FORWARD>(ctx, data),
        Some(Family::V6) => count_as::<V6, FORWARD>(ctx, data),
        None => Counted::Not(None),
    }
}

#[inline(always)]
fn count_as<P: Plain, const FORWARD: bool>(ctx: &impl Frame, data: usize) -> Counted {
    if let Some(slot) = current(&P::words(data))
        && let Some(bytes) = P::bytes(ctx, data)
        && P::is_of(data, &slot.key)
    {
        if slot.key.protocol == PROTOCOL_TCP {
            slot.flags |= P::tcp_flags(data);
        }
        slot.packets += 1;
        slot.bytes += bytes;
        if let Some(segments) = ctx.gso_segments() {
            slot.extra_segments += u64::from(segments) - 1;
        }
        return Counted::Short { forward: FORWARD && slot.forward <= slot.tick };
    }
    // Read again: kept from above, they would have to be saved and restored around the look-up.
    Counted::Not(P::bytes(ctx, data).and_then(|bytes| P::packet(data, &P::words(data), bytes)))
}

/// The slot, if these words are in it, it is this tick's, and it has room.
#[inline(always)]
fn current<'a>(words: &MatchWords) -> Option<&'a mut HotFlow> {
    let slot = HOT.get_ptr_mut(words.slot())?;
    // SAFETY: the element of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
    let slot = unsafe { &mut *slot };
    if slot.words != *words {
        return None;
    }
    // SAFETY: no preconditions. A load, once the kernel has inlined it; here, since nothing else has to be kept around it.
    let tick = unsafe { bpf_jiffies64() };
    (slot.tick == tick && slot.packets < slot.room).then_some(slot)
}
