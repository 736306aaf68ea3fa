//! Flows with many packets in the current tick of the kernel, ahead of the flows map.

use crate::{Family, FlowKey, assert_layout, limits::HOT_SLOTS};

/// What one CPU has counted of a flow in one tick and not yet added to the flow's entry in the flows map. Only that
/// CPU writes it; with the flow's first packet of a later tick it adds all to the map and begins again at 0. A reader adds
/// this to the map's counts, and reads again if `tick` or `key` changed meanwhile, or `tick` is [`HotFlow::MOVING`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HotFlow {
    /// What a packet is compared with.
    pub words: MatchWords,
    /// Number of the tick (the kernel's `jiffies64`); with [`HotFlow::CLOSED`] if nothing more may be counted here
    /// in that tick; [`HotFlow::MOVING`] while what it holds is added to the flows map. No value but the last ever
    /// comes back once something was counted under it.
    pub tick: u64,
    /// As in [`FlowCounters`](crate::FlowCounters).
    pub packets: u64,
    /// How many packets may be counted here: as many as don't make the flow cross the threshold.
    pub room: u64,
    /// As in [`FlowCounters`](crate::FlowCounters).
    pub bytes: u64,
    /// Segments beyond one for each packet.
    pub extra_segments: u64,
    /// As in [`FlowCounters`](crate::FlowCounters).
    pub flags: u64,
    /// Of the packets those that a program forwarded. One that was counted the long way may be in it.
    pub forwarded: u64,
    /// Whether a program may forward the flow's packets: [`HotFlow::NEW`], [`HotFlow::FORWARDED`], [`HotFlow::SPARSE`], or the tick
    /// from which on it is tried again.
    pub forward: u64,
    /// Which flow; all zero in a slot that was never used.
    pub key: FlowKey,
}

assert_layout!(
    HotFlow, 120, words @ 0, tick @ 16, packets @ 24, room @ 32, bytes @ 40, extra_segments @ 48, flags @ 56,
    forwarded @ 64, forward @ 72, key @ 80,
);

impl HotFlow {
    /// A bit of [`HotFlow::tick`] that no tick has.
    pub const CLOSED: u64 = 1 << 63;
    /// A value of [`HotFlow::tick`].
    pub const MOVING: u64 = u64::MAX;
    /// A value of [`HotFlow::room`]: the flow's crossing is behind it, or there is no threshold.
    pub const NO_LIMIT: u64 = u64::MAX;
    /// A value of [`HotFlow::forward`]: what is known of a way belongs to the flow that had the slot before.
    pub const NEW: u64 = 0;
    /// A value of [`HotFlow::forward`]: its way is known, or was.
    pub const FORWARDED: u64 = 1;
    /// A value of [`HotFlow::forward`]: the same, and it had a single packet in its last tick.
    pub const SPARSE: u64 = 2;
    /// For so many ticks without a packet a flow that is forwarded keeps its slot.
    pub const KEPT: u64 = 100;

    /// Whether its way is known, or was.
    #[must_use]
    #[inline(always)]
    pub fn is_forwarded(&self) -> bool {
        matches!(self.forward, Self::FORWARDED | Self::SPARSE)
    }
}

/// A flow's key as far as it takes little work to get it from a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MatchWords {
    /// IPv4: both addresses as they lie in the packet. IPv6: their four words xor-ed.
    pub addresses: u64,
    /// Lower half: the ports as they lie in the packet. Upper half, IPv4: bytes 6 to 9 of the header with all masked out
    /// but fragment offset, more-fragments flag (both 0 here) and protocol; IPv6: next header and [`MatchWords::V6`].
    pub rest: u64,
}

assert_layout!(MatchWords, 16, addresses @ 0, rest @ 8);

impl MatchWords {
    /// No IPv4 packet that matches has it.
    pub const V6: u64 = 1 << 8;

    /// Those of a key.
    #[inline(always)]
    pub fn of(key: &FlowKey) -> Self {
        let [a, b, c, d, _] = key.words();
        let [s0, s1] = key.src_port.to_be_bytes();
        let [d0, d1] = key.dst_port.to_be_bytes();
        let ports = u64::from(u32::from_ne_bytes([s0, s1, d0, d1]));
        if key.family == Family::V4 as u8 {
            Self::new(a & 0xffff_ffff | c << 32, ports, u32::from_ne_bytes([0, 0, 0, key.protocol]).into())
        } else {
            Self::new(a ^ b ^ c ^ d, ports, u64::from(key.protocol) | Self::V6)
        }
    }

    /// From their parts; of `ports` only the lower half may be used.
    #[inline(always)]
    pub fn new(addresses: u64, ports: u64, protocol: u64) -> Self {
        Self { addresses, rest: ports | protocol << 32 }
    }

    /// Which of [`HOT_SLOTS`] is theirs.
    #[inline(always)]
    pub fn slot(&self) -> u32 {
        // Fibonacci hashing: the upper bits of the product depend on all of the factor's. A factor of 32 bits is an instruction
        // less, and too short: clients' ports come one after the other, and shared a slot then.
        let product = (self.addresses ^ self.rest).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (product >> (u64::BITS - HOT_SLOTS.trailing_zeros())) as u32
    }
}
