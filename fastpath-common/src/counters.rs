//! Values of the maps.

use crate::assert_layout;

/// What is known of one direction of a flow. Times are `CLOCK_MONOTONIC` at the resolution of the kernel's tick
/// (`bpf_ktime_get_coarse_ns`: 1 to 10 ms). What [`HotFlow`](crate::HotFlow) holds of the flow comes on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowCounters {
    /// Always 0: what follows is elsewhere than usual.
    #[cfg(feature = "other-maps")]
    pub other: u64,
    /// Packets as the stack handles them (skbs): what `ct packets` counts, a GRO packet once. Of a fragmented
    /// packet the first fragment only.
    pub packets: u64,
    /// Packets as they were on the wire: the segments of GSO/GRO packets each.
    pub segments: u64,
    /// Bytes from the IP header on, of the packets counted in `packets`, without link-layer padding.
    pub bytes: u64,
    /// When the first of them was seen, in ns.
    pub first_seen_ns: u64,
    /// When the last of them was seen, in ns.
    pub last_seen_ns: u64,
    /// All that was seen of its packets so far, or-ed: TCP flags in the low byte ([`FlowCounters::TCP_FLAGS`]), above it
    /// [`FlowCounters::IPV4_OPTIONS`], [`FlowCounters::FIRST_FRAGMENT`], [`FlowCounters::WENT_OVER`] and
    /// [`FlowCounters::ARMED`].
    pub flags: u64,
    /// Whether the crossing of the threshold was signalled, see [`Signal`].
    pub signal: u64,
    /// Index of the interface that the first of them came in on.
    pub ifindex: u32,
    /// Number of the kernel's tick at `last_seen_ns`, the lower half.
    pub last_tick: u32,
    /// Of the packets those that a program forwarded, ahead of the flowtable. It may be a packet behind.
    pub forwarded: u64,
}

#[cfg(feature = "other-maps")]
assert_layout!(FlowCounters, 80, other @ 0, packets @ 8, last_tick @ 68, forwarded @ 72);
#[cfg(not(feature = "other-maps"))]
assert_layout!(
    FlowCounters, 72, packets @ 0, segments @ 8, bytes @ 16, first_seen_ns @ 24, last_seen_ns @ 32, flags @ 40,
    signal @ 48, ifindex @ 56, last_tick @ 60, forwarded @ 64,
);

impl FlowCounters {
    /// In [`FlowCounters::flags`]: byte 13 of the TCP header (FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32).
    pub const TCP_FLAGS: u64 = 0xff;
    /// In [`FlowCounters::flags`]: a packet had IPv4 options. Such packets are never offloaded.
    pub const IPV4_OPTIONS: u64 = 0x100;
    /// In [`FlowCounters::flags`]: a packet was the first of several fragments. They never take the fast path.
    pub const FIRST_FRAGMENT: u64 = 0x200;
    /// In [`FlowCounters::flags`]: the kernel has put the flow into a flowtable, at some time.
    pub const WENT_OVER: u64 = 0x400;
    /// In [`FlowCounters::flags`]: the agent wants another signal for it, so it isn't settled any more.
    pub const ARMED: u64 = 0x800;
}

/// Values of [`FlowCounters::signal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Signal {
    /// Not signalled: at or below the threshold, or events are off.
    None = 0,
    /// An event was sent, or none is needed: the flow was seen to be offloaded.
    Sent = 1,
    /// The ring buffer was full: no event will come, a sweep of the map finds the flow.
    Lost = 2,
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Packets (skbs).
    pub packets: u64,
    /// Bytes: of packets in flows from the IP header on, of other packets all (the link-layer header too).
    pub bytes: u64,
}

assert_layout!(Tally, 16, packets @ 0, bytes @ 8);

/// Packets seen, by how they were counted, per CPU: each packet is in exactly one tally. Reasons for not being
/// counted in a flow come in the order in which they are tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PacketStats {
    /// Counted in a flow. What [`HotFlow`](crate::HotFlow)s hold comes on top.
    pub counted: Tally,
    /// Neither IPv4 nor IPv6 (ARP, LLDP, PPPoE, MPLS, more than two VLAN tags).
    pub not_ip: Tally,
    /// Cut short, lengths that contradict each other, or headers that the program couldn't read.
    pub malformed: Tally,
    /// A fragment that isn't the first: it carries no ports.
    pub later_fragment: Tally,
    /// Neither TCP nor UDP (ICMP, ESP, GRE, SCTP).
    pub other_protocol: Tally,
    /// More IPv6 extension headers than [`MAX_EXTENSION_HEADERS`](crate::limits::MAX_EXTENSION_HEADERS).
    pub too_many_headers: Tally,
    /// A new flow for which the map had no room, not even after evicting.
    pub no_room: Tally,
    /// Flows that were entered into the map. Less those still in it: evicted or deleted.
    pub flows_entered: u64,
    /// Crossings of the threshold that were sent.
    pub events_sent: u64,
    /// Crossings of the threshold for which the ring buffer had no room.
    pub events_lost: u64,
    /// Connections that were seen to go into the flowtable, each once for as long as it is in the map.
    pub went_over: u64,
    /// Packets that a program forwarded, ahead of the flowtable. What [`HotFlow`](crate::HotFlow)s hold comes on top.
    pub forwarded: u64,
}

assert_layout!(
    PacketStats, 152, counted @ 0, not_ip @ 16, malformed @ 32, later_fragment @ 48, other_protocol @ 64,
    too_many_headers @ 80, no_room @ 96, flows_entered @ 112, events_sent @ 120, events_lost @ 128,
    went_over @ 136, forwarded @ 144,
);

/// What the agent tells the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`ABI_VERSION`](crate::ABI_VERSION) of the agent that made the maps; the first field in every version.
    pub abi_version: u32,
    /// A direction of a flow is signalled with its packet number `threshold + 1`; 0: never.
    pub threshold: u32,
    /// The greatest threshold that flows may have crossed which began before `changed_ns`; 0 if there was no other.
    pub highest: u32,
    /// Always 0.
    pub reserved: u32,
    /// When the threshold was last changed, in ns of `CLOCK_MONOTONIC`.
    pub changed_ns: u64,
}

assert_layout!(Config, 24, abi_version @ 0, threshold @ 4, highest @ 8, reserved @ 12, changed_ns @ 16);

impl Config {
    /// The same with another threshold, from `now_ns` on.
    #[must_use]
    pub fn with_threshold(self, threshold: u32, now_ns: u64) -> Self {
        if self.threshold == threshold || self.threshold == 0 {
            return Self { threshold, ..self };
        }
        Self { threshold, highest: self.highest.max(self.threshold), changed_ns: now_ns, ..self }
    }
}

/// Why an interface is watched with TC although XDP was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NoXdp {
    /// One of the constants.
    pub reason: u32,
    /// What the kernel said; 0 if it wasn't asked.
    pub errno: u32,
}

assert_layout!(NoXdp, 8, reason @ 0, errno @ 4);

impl NoXdp {
    /// The device has no Ethernet header.
    pub const NO_ETHERNET: u32 = 1;
    /// The device gets its packets from other devices (bridge, bond, VLAN), which are where XDP is.
    pub const STACKED: u32 = 2;
    /// The kernel or the driver refused; `errno` has what they said.
    pub const REFUSED: u32 = 3;
}
