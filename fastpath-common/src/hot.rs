//! Flows with many packets in the current tick of the kernel, ahead of the flows map.

use crate::{FlowKey, assert_layout, limits::HOT_SLOTS};

/// What one CPU has counted of a flow in one tick and not yet added to the flow's entry in the flows map. Only that
/// CPU writes it; with the flow's first packet of a later tick it adds all to the map and begins again at 0.
///
/// Whoever wants a flow's counts adds what is here to what is in the map, and looks whether `tick` and `key` have
/// stayed the same meanwhile: if not, it looks again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HotFlow {
    /// Which flow; all zero in a slot that was never used.
    pub key: FlowKey,
    /// As in [`FlowCounters`](crate::FlowCounters).
    pub packets: u64,
    /// Segments beyond one for each packet.
    pub extra_segments: u64,
    /// As in [`FlowCounters`](crate::FlowCounters).
    pub bytes: u64,
    /// As in [`FlowCounters`](crate::FlowCounters).
    pub tcp_flags: u64,
    /// Number of the tick (the kernel's `jiffies64`).
    pub tick: u64,
}

assert_layout!(HotFlow, 80, key @ 0, packets @ 40, extra_segments @ 48, bytes @ 56, tcp_flags @ 64, tick @ 72);

impl HotFlow {
    /// Which slot of a CPU's is a flow's, from the xor of its addresses' 32-bit words with its ports' word.
    #[inline(always)]
    pub fn index(fold: u32) -> u32 {
        // Fibonacci hashing: the upper bits of the product depend on all of the factor's.
        fold.wrapping_mul(0x9e37_79b1) >> (u32::BITS - HOT_SLOTS.trailing_zeros())
    }

    /// Which slot of a CPU's is a flow's.
    #[inline(always)]
    pub fn index_of(key: &FlowKey) -> u32 {
        let [a, b, c, d, rest] = key.words();
        let addresses = a ^ b ^ c ^ d;
        Self::index(addresses as u32 ^ (addresses >> 32) as u32 ^ rest as u32)
    }
}
