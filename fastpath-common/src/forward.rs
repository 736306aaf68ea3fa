//! Forwarding ahead of the flowtable, from one veth to the other end of another.

use crate::assert_layout;

/// A bit of an interface in [`MAP_FORWARD_DEVICES`](crate::MAP_FORWARD_DEVICES): packets that come in there may be forwarded.
pub const IN: u64 = 1;
/// The same: packets may be forwarded to its other end, whose [`address`] is in the same element.
pub const OUT: u64 = 2;
/// The bits of an address in such an element.
pub const ADDRESS: u64 = !0xffff;

/// An Ethernet address, given in half words as it lies in a frame, where [`ADDRESS`] has it.
#[must_use]
#[inline(always)]
pub const fn address(halves: [u16; 3]) -> u64 {
    (halves[0] as u64) << 16 | (halves[1] as u64) << 32 | (halves[2] as u64) << 48
}

/// What the agent tells [`PROGRAM_FORWARD`](crate::PROGRAM_FORWARD). Times are in ticks of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ForwardConfig {
    /// Counted up with every change of the node: ways of another generation are asked for again.
    pub generation: u64,
    /// The last generation that the flowtable has to judge by itself: a packet of each flow is left to it before the kernel is
    /// asked again.
    pub judged: u64,
    /// For how long a way is taken before the kernel is asked again.
    pub lease: u64,
    /// How often a packet is left to the flowtable, which would forget a flow without packets.
    pub refresh: u64,
    /// When a flow is looked at again that isn't offloaded yet, or has no way at the moment.
    pub retry: u64,
    /// When a flow is looked at again whose interfaces take no part.
    pub refused: u64,
}

assert_layout!(
    ForwardConfig, 48, generation @ 0, judged @ 8, lease @ 16, refresh @ 24, retry @ 32, refused @ 40,
);

/// The way of a flow's direction: what its packets look like when they leave. Only the CPU that has it reads and writes it.
/// Addresses, ports and differences lie as in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// Tick at which the kernel has to be asked again.
    pub until: u64,
    /// Tick from which on a packet has to be left to the flowtable.
    pub refresh: u64,
    /// As in [`ForwardConfig`].
    pub generation: u64,
    /// Source address; IPv4: the first word.
    pub src: [u32; 4],
    /// Destination address, as `src`.
    pub dst: [u32; 4],
    /// Source port, and destination port behind it.
    pub ports: u32,
    /// Destination and source of the Ethernet header, in halves of words.
    pub macs: [u16; 6],
    /// Index of the interface whose other end gets the packet.
    pub ifindex: u32,
    /// The most bytes of a packet, from the IP header on.
    pub mtu: u32,
    /// What the change of addresses adds to a checksum (RFC 1624); 0 if they stay.
    pub addresses: u32,
    /// What the change of ports adds to a checksum; 0 if they stay.
    pub changed_ports: u32,
    /// Index of the interface that the flow's packets come in by: the one that its answers leave by.
    pub into: u32,
    /// Zero.
    pub reserved: u32,
}

assert_layout!(
    Way, 96, until @ 0, refresh @ 8, generation @ 16, src @ 24, dst @ 40, ports @ 56, macs @ 60, ifindex @ 72, mtu @ 76,
    addresses @ 80, changed_ports @ 84, into @ 88, reserved @ 92,
);

/// Numbers in the program that the agent replaces by this kernel's before it loads it.
pub mod placeholder {
    /// The call of `bpf_skb_ct_lookup`.
    pub const LOOKUP: i32 = 0x7f_0001;
    /// The call of `bpf_ct_release`.
    pub const RELEASE: i32 = 0x7f_0002;
    /// What is added to a connection to get to the tuple of its original direction.
    pub const ORIGINAL: i32 = 0x7f_0003;
    /// The same for its reply direction.
    pub const REPLY: i32 = 0x7f_0004;
    /// Where a connection has its status.
    pub const STATUS: i16 = 31_233;
}
