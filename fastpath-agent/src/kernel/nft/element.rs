//! Elements of sets in the kernel's messages, without a copy. libnftnl would allocate for each of them.

use super::nfta;
use crate::{
    core::model::Counter,
    kernel::netlink::{Message, attribute::find, attributes},
};

/// An element of a set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Element<'a> {
    /// Its key; of an interval the beginning.
    pub(super) key: &'a [u8],
    /// It is the end of an interval, before its key.
    pub(super) ends: bool,
    /// What a map has for it: attributes of the value or the verdict.
    pub(super) data: Option<&'a [u8]>,
    /// Milliseconds until it goes, if it does.
    pub(super) expires_ms: Option<u64>,
    /// Value of its counter, if that is all it has.
    pub(super) counter: Option<Counter>,
}

/// The elements in an `NFT_MSG_NEWSETELEM`.
pub(super) fn of<'a>(message: &Message<'a>) -> impl Iterator<Item = Element<'a>> + use<'a> {
    message
        .attributes()
        .filter(|nla| nla.kind() == nfta::SET_ELEM_LIST_ELEMENTS)
        .flat_map(|nla| attributes(nla.value()))
        .filter(|nla| nla.kind() == nfta::LIST_ELEM)
        .map(|nla| element(nla.value()))
}

fn element(bytes: &[u8]) -> Element<'_> {
    let mut element = Element::default();
    for nla in attributes(bytes) {
        match nla.kind() {
            nfta::SET_ELEM_KEY => {
                element.key = find(nla.value(), nfta::DATA_VALUE).map_or(&[], |key| key.value());
            }
            nfta::SET_ELEM_FLAGS => {
                element.ends = nla.be32().is_some_and(|flags| flags & nfta::SET_ELEM_INTERVAL_END != 0);
            }
            nfta::SET_ELEM_DATA => element.data = Some(nla.value()),
            nfta::SET_ELEM_EXPIRATION => element.expires_ms = nla.fixed().map(u64::from_be_bytes),
            nfta::SET_ELEM_EXPR => element.counter = counter(nla.value()),
            _ => {}
        }
    }
    element
}

fn counter(instruction: &[u8]) -> Option<Counter> {
    if find(instruction, nfta::EXPR_NAME)?.name() != b"counter" {
        return None;
    }
    let data = find(instruction, nfta::EXPR_DATA)?.value();
    let value = |kind| find(data, kind)?.fixed().map(u64::from_be_bytes);
    Some(Counter { packets: value(nfta::COUNTER_PACKETS)?, bytes: value(nfta::COUNTER_BYTES)? })
}
