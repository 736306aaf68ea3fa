//! What the eBPF programs and the agent share: names, map keys, map values and limits, and nothing else.
//!
//! Every type is `repr(C)` without hidden padding. Its size and the offset of each field are asserted here, so both
//! sides are checked when they are compiled; [`ABI_VERSION`] covers a program and an agent of different versions.
#![no_std]

pub mod counters;
pub mod event;
pub mod flow_key;
pub mod forward;
pub mod hot;
pub mod limits;
pub mod probe;

pub use counters::{Config, FlowCounters, NoXdp, PacketStats, Signal, Tally};
pub use event::{Ask, FlowEvent, SignalChange};
pub use flow_key::{Family, FlowKey};
pub use forward::{ForwardConfig, Way};
pub use hot::{HotFlow, MatchWords};
pub use probe::Probe;

/// Version of everything in this crate that the kernel side and the agent must agree on. It is the first field of
/// the pinned [`Config`]; count it up with every change of a shared type or of what a field means.
pub const ABI_VERSION: u32 = if cfg!(feature = "other-maps") { u32::MAX } else { 7 };

/// Program for devices with an Ethernet header.
pub const PROGRAM_ETHERNET: &str = "fastpath_tc";
/// The same, which hands packets of offloaded flows to [`PROGRAM_FORWARD`].
pub const PROGRAM_ETHERNET_FORWARD: &str = "fastpath_tc_fwd";
/// Program that forwards packets of offloaded flows between pods. It isn't attached: [`MAP_FORWARD_PROGRAMS`] has it.
pub const PROGRAM_FORWARD: &str = "fastpath_peer";
/// Program for devices whose packets begin with the IP header (WireGuard, tun, ipip).
pub const PROGRAM_L3: &str = "fastpath_tc_l3";
/// Program that is never attached: the agent runs it (`BPF_PROG_TEST_RUN`) with a [`SignalChange`], since only programs can change
/// one field of a map's element without losing counts of the others. Returns 1 if it did.
pub const PROGRAM_MARK: &str = "fastpath_mark";
/// Program that is never attached: the agent runs it with the keys of an [`Ask`]. Returns a bit for each: whether its flow was
/// seen to go into the flowtable.
pub const PROGRAM_ASK: &str = "fastpath_ask";
/// Program that the kernel runs when a flow goes into a flowtable (a kprobe): notes in the flows map that it did.
pub const PROGRAM_ADDED: &str = "fastpath_added";
/// Program for devices with an Ethernet header, at XDP.
pub const PROGRAM_XDP: &str = "fastpath_xdp";
/// Program at XDP that counts nothing.
pub const PROGRAM_XDP_IDLE: &str = "fastpath_idle";

/// LRU hash: [`FlowKey`] → [`FlowCounters`].
pub const MAP_FLOWS: &str = "fastpath_flows";
/// Per-CPU array with one element: [`PacketStats`].
pub const MAP_STATS: &str = "fastpath_stats";
/// Array with one element: [`Config`].
pub const MAP_CONFIG: &str = "fastpath_config";
/// Per-CPU array with [`limits::HOT_SLOTS`] elements: [`HotFlow`].
pub const MAP_HOT: &str = "fastpath_hot";
/// Ring buffer of [`FlowEvent`].
pub const MAP_EVENTS: &str = "fastpath_events";
/// Array with one element: [`Probe`]. The only map that isn't pinned: it is the running agent's.
pub const MAP_PROBE: &str = "fastpath_probe";
/// Hash: interface index (`u32`) → [`NoXdp`].
pub const MAP_NO_XDP: &str = "fastpath_no_xdp";

/// Program array with one element: [`PROGRAM_FORWARD`]. The kernel empties it when the agent is gone, since nothing else holds
/// it (`prog_array_map_clear`, kernel/bpf/arraymap.c).
pub const MAP_FORWARD_PROGRAMS: &str = "fastpath_tail";
/// Array with one element: [`ForwardConfig`]. The running agent's.
pub const MAP_FORWARD_CONFIG: &str = "fastpath_fwd";
/// Hash: interface index (`u32`) → which side of forwarding it may be on, [`forward::IN`] and [`forward::OUT`], and the Ethernet
/// address of its other end (`u64`). The running agent's.
pub const MAP_FORWARD_DEVICES: &str = "fastpath_fwddev";
/// Per-CPU array with an element for each of [`limits::HOT_SLOTS`]: the [`Way`] of the flow in that slot. The running agent's.
pub const MAP_WAYS: &str = "fastpath_ways";

/// Asserts size and field offsets of a shared type.
macro_rules! assert_layout {
    ($type:ty, $size:literal, $($field:ident @ $offset:literal),+ $(,)?) => {
        const _: () = {
            assert!(core::mem::size_of::<$type>() == $size);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)+
        };
    };
}
pub(crate) use assert_layout;

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya reads and writes these types as plain bytes")]
mod pod {
    use super::{
        Config, FlowCounters, FlowEvent, FlowKey, ForwardConfig, HotFlow, NoXdp, PacketStats, Probe,
        SignalChange,
    };

    // SAFETY: repr(C), integers only, no padding (the layouts are asserted): any bytes are a value.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PacketStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HotFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NoXdp {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SignalChange {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Probe {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ForwardConfig {}
}
