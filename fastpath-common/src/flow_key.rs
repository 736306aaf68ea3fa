//! The key of a flow's direction.

use crate::assert_layout;

/// The tuple of a packet as seen at ingress, before any NAT of this node. A connection has two keys, one for each
/// direction; with NAT the second isn't the mirror of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// Source address, network byte order. IPv4: the first four bytes, the others are zero.
    pub src: [u8; 16],
    /// Destination address, as `src`.
    pub dst: [u8; 16],
    /// Source port, host byte order.
    pub src_port: u16,
    /// Destination port, host byte order.
    pub dst_port: u16,
    /// IP protocol number: 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// 4 or 6, see [`Family`].
    pub family: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

assert_layout!(FlowKey, 40, src @ 0, dst @ 16, src_port @ 32, dst_port @ 34, protocol @ 36, family @ 37, reserved @ 38);

/// Values of [`FlowKey::family`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}
