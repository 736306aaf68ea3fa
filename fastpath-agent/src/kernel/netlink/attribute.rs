//! Attributes of netlink messages, read without a copy.

use std::borrow::Cow;

use netlink_packet_core::NLA_TYPE_MASK;

use crate::core::printable::printable;

/// An attribute (`struct nlattr`, include/uapi/linux/netlink.h).
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// What it is, without the bits that say how its value is coded.
    pub(in crate::kernel) fn kind(&self) -> u16 {
        self.kind
    }

    /// Its value, without padding.
    pub(in crate::kernel) fn value(&self) -> &'a [u8] {
        self.value
    }

    /// Its value if it has this many bytes.
    pub(in crate::kernel) fn fixed<const N: usize>(&self) -> Option<[u8; N]> {
        self.value.try_into().ok()
    }

    /// Its value, 32 bits in network byte order.
    pub(in crate::kernel) fn be32(&self) -> Option<u32> {
        self.fixed().map(u32::from_be_bytes)
    }

    /// Its value as a name, without the closing NUL and what is behind it.
    pub(in crate::kernel) fn name(&self) -> &'a [u8] {
        self.value.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// The same as printable text, which is another one for each name.
    pub(in crate::kernel) fn text(&self) -> Cow<'a, str> {
        printable(self.name())
    }

    /// The same, owned.
    pub(in crate::kernel) fn string(&self) -> String {
        self.text().into_owned()
    }
}

/// Well-formed attributes up to the first malformed one. Reading a large conntrack is for a good part this, which is
/// why it isn't the general one of netlink-packet-core.
pub(in crate::kernel) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    const HEADER: usize = 4;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, value })
    })
}

/// The first attribute of this kind.
pub(in crate::kernel) fn find(bytes: &[u8], kind: u16) -> Option<Attribute<'_>> {
    attributes(bytes).find(|nla| nla.kind() == kind)
}

/// The u32 in host byte order at `at`.
pub(in crate::kernel) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_malformed_attribute_ends_the_list() {
        let good = [8, 0, 1, 0x80, 1, 2, 3, 4];
        let found: Vec<_> = attributes(&[good, [3, 0, 2, 0, 0, 0, 0, 0]].concat())
            .map(|nla| (nla.kind(), nla.value().to_vec()))
            .collect();
        assert_eq!(found, [(1, vec![1, 2, 3, 4])]);
        assert_eq!(attributes(&[9, 0, 1, 0, 1, 2, 3, 4]).count(), 0, "longer than the message");
    }

    #[test]
    fn names_end_at_their_nul() {
        let name = |bytes: &[u8]| Attribute { kind: 0, value: bytes }.string();
        assert_eq!(name(b"filter\0"), "filter");
        assert_eq!(name(b"filter"), "filter");
        assert_eq!(name(b"\0filter"), "");
        assert_eq!(name(b"\xff\0"), r"\xff");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            for nla in attributes(&bytes) {
                let _ = (nla.kind(), nla.be32(), nla.text(), nla.string());
                attributes(nla.value()).for_each(drop);
            }
        }
    }
}
