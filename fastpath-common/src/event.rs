//! What the programs tell the agent.

use crate::{FlowKey, assert_layout};

/// One direction of a flow has crossed the threshold. Sent once for each entry of the flows map: a direction that
/// was evicted and comes back may be signalled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEvent {
    /// Which.
    pub key: FlowKey,
    /// When, `CLOCK_MONOTONIC` in ns, at the resolution of the kernel's tick.
    pub time_ns: u64,
    /// Packets of this direction so far, the crossing one included.
    pub packets: u64,
    /// Index of the interface that the crossing packet came in on.
    pub ifindex: u32,
    /// Threshold that was crossed.
    pub threshold: u32,
}

assert_layout!(FlowEvent, 64, key @ 0, time_ns @ 40, packets @ 48, ifindex @ 56, threshold @ 60);
