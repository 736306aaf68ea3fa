//! Sizes and bounds that both sides rely on.

/// Entries of the flows map (one for each direction of a flow) unless the agent is told otherwise.
pub const DEFAULT_MAX_FLOWS: u32 = 65_536;
/// Fewest entries of the flows map that an operator may ask for: below, an LRU on many CPUs evicts long before it is full.
pub const MIN_FLOWS: u32 = 1024;
/// Most entries of the flows map that an operator may ask for. They take about 742 MB.
pub const MAX_FLOWS: u32 = 4 * 1024 * 1024;
/// Size of the ring buffer: a power of two and a multiple of any page size. Holds 7,281 events. In the memory of the process that
/// reads it counts twice.
pub const EVENT_RING_BYTES: u32 = 1 << 19;
/// VLAN tags in the frame that are looked behind; one more may have been taken out of it (hardware acceleration).
pub const MAX_VLAN_TAGS: usize = 2;
/// The same for XDP, which comes before the kernel takes one out; the card may have.
pub const MAX_VLAN_TAGS_XDP: usize = MAX_VLAN_TAGS + 1;
/// IPv6 extension headers that are looked behind.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// Slots for hot flows on each CPU; a power of two.
pub const HOT_SLOTS: u32 = 512;
/// Interfaces that it can be said of why they are watched without XDP.
pub const MAX_NO_XDP: u32 = 4096;
/// Interfaces that can take part in forwarding.
pub const MAX_FORWARD_DEVICES: u32 = 4096;
