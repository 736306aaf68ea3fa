//! The maps. Their types are part of the object's BTF, so that `bpftool map dump` prints fields by name.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use fastpath_common::{
    Config, FlowCounters, FlowEvent, FlowKey, ForwardConfig, HotFlow, NoXdp, PacketStats, Probe, Way, limits,
};

/// One entry for each direction of a flow. The agent sets the size when it loads the programs.
#[btf_map(name = "fastpath_flows")]
pub static FLOWS: LruHashMap<FlowKey, FlowCounters, { limits::DEFAULT_MAX_FLOWS as usize }> =
    LruHashMap::new();

/// One element.
#[btf_map(name = "fastpath_stats")]
pub static STATS: PerCpuArray<PacketStats, 1> = PerCpuArray::new();

/// One element.
#[btf_map(name = "fastpath_config")]
pub static CONFIG: Array<Config, 1> = Array::new();

#[btf_map(name = "fastpath_events")]
pub static EVENTS: RingBuf<FlowEvent, { limits::EVENT_RING_BYTES as usize }> = RingBuf::new();

/// A slot is chosen by the flow's key; a CPU uses its own.
#[btf_map(name = "fastpath_hot")]
pub static HOT: PerCpuArray<HotFlow, { limits::HOT_SLOTS as usize }> = PerCpuArray::new();

/// One element.
#[btf_map(name = "fastpath_probe")]
pub static PROBE: Array<Probe, 1> = Array::new();

/// Interfaces with TC instead of XDP; only the agent and its commands read it.
#[btf_map(name = "fastpath_no_xdp")]
pub static NO_XDP: HashMap<u32, NoXdp, { limits::MAX_NO_XDP as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// One element.
#[btf_map(name = "fastpath_tail")]
pub static FORWARD_PROGRAMS: ProgramArray<1> = ProgramArray::new();

/// One element.
#[btf_map(name = "fastpath_fwd")]
pub static FORWARD_CONFIG: Array<ForwardConfig, 1> = Array::new();

/// Interfaces and their parts in forwarding.
#[btf_map(name = "fastpath_fwddev")]
pub static FORWARD_DEVICES: HashMap<
    u32,
    u64,
    { limits::MAX_FORWARD_DEVICES as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// The ways of the flows in `HOT`. The agent makes it one element where nothing is forwarded.
#[btf_map(name = "fastpath_ways")]
pub static WAYS: PerCpuArray<Way, { limits::HOT_SLOTS as usize }> = PerCpuArray::new();
