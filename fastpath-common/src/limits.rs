//! Sizes and bounds that both sides rely on.

/// Entries of the flows map (one for each direction of a flow) unless the agent is told otherwise.
pub const DEFAULT_MAX_FLOWS: u32 = 65_536;
/// Most entries of the flows map that the agent accepts.
pub const MAX_FLOWS: u32 = 16 * 1024 * 1024;
/// Size of the ring buffer: a power of two and a multiple of any page size. Holds 14,563 events.
pub const EVENT_RING_BYTES: u32 = 1 << 20;
/// VLAN tags in the frame that are looked behind; one more may have been taken out of it (hardware acceleration).
pub const MAX_VLAN_TAGS: usize = 2;
/// IPv6 extension headers that are looked behind.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// Slots for hot flows on each CPU; a power of two.
pub const HOT_SLOTS: u32 = 512;
