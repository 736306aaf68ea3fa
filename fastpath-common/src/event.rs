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

/// Asks [`PROGRAM_MARK`](crate::PROGRAM_MARK) to change what is noted of a flow's signal, provided that it is `from`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SignalChange {
    /// Which direction of which flow.
    pub key: FlowKey,
    /// A [`Signal`](crate::Signal): what has to be there.
    pub from: u64,
    /// A [`Signal`](crate::Signal): what takes its place. The same: the flow is in the flowtable, which the programs hadn't seen.
    pub to: u64,
}

assert_layout!(SignalChange, 56, key @ 0, from @ 40, to @ 48);

/// Asks [`PROGRAM_ASK`](crate::PROGRAM_ASK) about so many keys, which lie one behind the other.
pub struct Ask;

impl Ask {
    /// At most, one for each bit of the answer.
    pub const KEYS: usize = u32::BITS as usize;
    /// As [`SignalChange::OFFSET`].
    pub const OFFSET: usize = SignalChange::OFFSET;
}

impl SignalChange {
    /// Where it begins in the packet that the program is run with: behind an Ethernet header of zeros.
    pub const OFFSET: usize = 14;
}
