//! Netlink messages as received, and what a refusal says.

use std::io;

use super::attribute::{Attribute, attributes, u32_at};

/// Header of a netlink message (`struct nlmsghdr`).
pub(in crate::kernel) const HEADER_BYTES: usize = 16;
/// Header of a netfilter message (`struct nfgenmsg`) behind [`HEADER_BYTES`].
const FAMILY_HEADER_BYTES: usize = 4;

/// The messages of a datagram, up to the first that isn't whole. (The iterator of the mnl crate panics where the last
/// message lacks its padding.)
pub(in crate::kernel) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if datagram.len() < HEADER_BYTES {
            return None;
        }
        let length = u32_at(datagram, 0)? as usize;
        let Some(bytes) = datagram.get(..length).filter(|bytes| bytes.len() >= HEADER_BYTES) else {
            datagram = &[];
            return Some(Err(io::ErrorKind::InvalidData.into()));
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message::new(bytes)))
    })
}

/// A netlink message as received, whole.
pub(in crate::kernel) struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// A message that is whole.
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

    /// The whole message.
    #[cfg(any(fuzzing, test))]
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
    pub(in crate::kernel) fn parse(message: &Message<'_>) -> Option<Self> {
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
                    MSG => refusal.message = Some(nla.string()),
                    OFFS => refusal.offset = u32_at(nla.value(), 0).map(|offset| offset as usize),
                    _ => {}
                }
            }
        }
        Some(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, payload: &[u8]) -> Vec<u8> {
        let kind = 18_u32;
        [length.to_ne_bytes(), kind.to_ne_bytes(), [0; 4], [0; 4]]
            .concat()
            .into_iter()
            .chain(payload.iter().copied())
            .collect()
    }

    fn lengths(datagram: &[u8]) -> Vec<Result<usize, io::ErrorKind>> {
        let length =
            |message: io::Result<Message<'_>>| message.map(|m| m.payload().len()).map_err(|e| e.kind());
        messages(datagram).map(length).collect()
    }

    #[test]
    fn messages_lie_one_behind_the_other() {
        let two = [message(20, &[1, 2, 3, 4]), message(16, &[])].concat();
        assert_eq!(lengths(&two), [Ok(4), Ok(0)]);
        let padded = [message(17, &[1, 0, 0, 0]), message(16, &[])].concat();
        assert_eq!(lengths(&padded), [Ok(1), Ok(0)]);
    }

    #[test]
    fn the_last_one_may_lack_its_padding() {
        assert_eq!(lengths(&message(17, &[1])), [Ok(1)]);
    }

    #[test]
    fn one_that_is_not_whole_ends_them() {
        let bad = Err(io::ErrorKind::InvalidData);
        for length in [0, 15, 21, u32::MAX] {
            assert_eq!(
                lengths(&[message(16, &[]), message(length, &[0; 4])].concat()),
                [Ok(0), bad],
                "{length}"
            );
        }
        assert_eq!(lengths(&[0; 15]), []);
    }
}
