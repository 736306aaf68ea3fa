//! The key of a flow's direction.

use crate::assert_layout;

/// The tuple of a packet as seen at ingress, before any NAT of this node. A connection has two keys, one for each
/// direction; with NAT the second isn't the mirror of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// Source address, network byte order. IPv4: the first four bytes, the others are zero.
    pub src: [u8; 16],
    /// Destination address, as `src`.
    pub dst: [u8; 16],
    /// Destination port, host byte order. It comes first so that both ports are one swap away from the packet's
    /// four bytes.
    pub dst_port: u16,
    /// Source port, host byte order.
    pub src_port: u16,
    /// IP protocol number: 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// 4 or 6, see [`Family`].
    pub family: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

assert_layout!(FlowKey, 40, src @ 0, dst @ 16, dst_port @ 32, src_port @ 34, protocol @ 36, family @ 37, reserved @ 38);

impl FlowKey {
    /// The key as five words, in memory order.
    #[inline(always)]
    pub fn words(&self) -> [u64; 5] {
        let word = |bytes: &[u8; 16], at: usize| {
            u64::from_ne_bytes([
                bytes[at],
                bytes[at + 1],
                bytes[at + 2],
                bytes[at + 3],
                bytes[at + 4],
                bytes[at + 5],
                bytes[at + 6],
                bytes[at + 7],
            ])
        };
        let [d0, d1] = self.dst_port.to_ne_bytes();
        let [s0, s1] = self.src_port.to_ne_bytes();
        let [r0, r1] = self.reserved;
        let rest = u64::from_ne_bytes([d0, d1, s0, s1, self.protocol, self.family, r0, r1]);
        [word(&self.src, 0), word(&self.src, 8), word(&self.dst, 0), word(&self.dst, 8), rest]
    }
}

/// Values of [`FlowKey::family`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}
