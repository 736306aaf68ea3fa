//! Netlink messages as received, and what a refusal says.

use super::attribute::{Attribute, attributes, u32_at};

/// Header of a netlink message (`struct nlmsghdr`).
pub(in crate::kernel) const HEADER_BYTES: usize = 16;
/// Header of a netfilter message (`struct nfgenmsg`) behind [`HEADER_BYTES`].
const FAMILY_HEADER_BYTES: usize = 4;

/// A netlink message as received, whole.
pub(in crate::kernel) struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// A message that is whole and aligned for `struct nlmsghdr`.
    pub(in crate::kernel) fn new(bytes: &'a [u8]) -> Self {
        debug_assert_eq!(u32_at(bytes, 0).map(|length| length as usize), Some(bytes.len()));
        Self { bytes }
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// `nlmsg_type`.
    pub(in crate::kernel) fn kind(&self) -> u16 {
        self.u16_at(4)
    }

    /// `nlmsg_flags`.
    pub(in crate::kernel) fn flags(&self) -> u16 {
        self.u16_at(6)
    }

    /// `nlmsg_seq`.
    pub(in crate::kernel) fn sequence(&self) -> u32 {
        u32_at(self.bytes, 8).expect("a message is at least its header")
    }

    /// `nlmsg_pid`: the port of the socket whose request this answers or announces.
    pub(in crate::kernel) fn port(&self) -> u32 {
        u32_at(self.bytes, 12).expect("a message is at least its header")
    }

    /// Everything behind the netlink header.
    pub(in crate::kernel) fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// Family of a netfilter message (`nfgen_family`).
    pub(in crate::kernel) fn family(&self) -> Option<u8> {
        self.payload().first().copied()
    }

    /// Attributes of a netfilter message.
    pub(in crate::kernel) fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        attributes(self.payload().get(FAMILY_HEADER_BYTES..).unwrap_or_default())
    }

    /// The whole message; its address is aligned for `struct nlmsghdr`, its length is `nlmsg_len`.
    pub(in crate::kernel) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// One message that the kernel refused (`NLMSG_ERROR`).
pub(in crate::kernel) struct Refusal {
    /// Sequence number of the refused message.
    pub(in crate::kernel) sequence: u32,
    /// errno, positive.
    pub(in crate::kernel) errno: i32,
    /// Text of the extended acknowledgement.
    pub(in crate::kernel) message: Option<String>,
    /// Where in the refused message the kernel saw the fault, in bytes from its header.
    pub(in crate::kernel) offset: Option<usize>,
}

impl Refusal {
    /// Reads an `NLMSG_ERROR`; `None` if it is an acknowledgement.
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        // enum nlmsgerr_attrs, include/uapi/linux/netlink.h
        const MSG: u16 = 1;
        const OFFS: u16 = 2;
        let payload = message.payload();
        let errno = u32_at(payload, 0)?.cast_signed().wrapping_neg();
        if errno == 0 {
            return None;
        }
        let mut refusal = Self { sequence: message.sequence(), errno, message: None, offset: None };
        if message.flags() & libc::NLM_F_ACK_TLVS as u16 != 0 {
            // struct nlmsgerr: errno, header of the refused message, and (unless capped) the rest of it.
            let refused = match message.flags() & libc::NLM_F_CAPPED as u16 {
                0 => u32_at(payload, 4)? as usize,
                _ => HEADER_BYTES,
            };
            for nla in attributes(payload.get(4 + refused.next_multiple_of(4)..).unwrap_or_default()) {
                match nla.kind() {
                    MSG => refusal.message = Some(nla.text_lossy()),
                    OFFS => refusal.offset = u32_at(nla.value(), 0).map(|offset| offset as usize),
                    _ => {}
                }
            }
        }
        Some(refusal)
    }
}
