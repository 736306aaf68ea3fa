//! Elements of sets in the kernel's messages, without a copy. libnftnl would allocate for each of them.

use crate::{
    core::ruleset::observed::Counter,
    kernel::nfnetlink::{Message, attributes},
};

/// Numbers of attributes (include/uapi/linux/netfilter/nf_tables.h).
mod nfta {
    pub(super) const SET_ELEM_LIST_ELEMENTS: u16 = 3;
    pub(super) const LIST_ELEM: u16 = 1;
    pub(super) const SET_ELEM_KEY: u16 = 1;
    pub(super) const SET_ELEM_DATA: u16 = 2;
    pub(super) const SET_ELEM_FLAGS: u16 = 3;
    pub(super) const SET_ELEM_EXPIRATION: u16 = 5;
    pub(super) const SET_ELEM_EXPR: u16 = 7;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const COUNTER_BYTES: u16 = 1;
    pub(super) const COUNTER_PACKETS: u16 = 2;
}

/// `NFT_SET_ELEM_INTERVAL_END`, in the last byte of the flags.
const INTERVAL_END: u8 = 1;

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
        let (kind, value) = (nla.kind(), nla.value());
        match kind {
            nfta::SET_ELEM_KEY => element.key = find(value, nfta::DATA_VALUE).unwrap_or_default(),
            nfta::SET_ELEM_FLAGS => {
                element.ends = value.last().is_some_and(|flags| flags & INTERVAL_END != 0)
            }
            nfta::SET_ELEM_DATA => element.data = Some(value),
            nfta::SET_ELEM_EXPIRATION => element.expires_ms = number(value),
            nfta::SET_ELEM_EXPR => element.counter = counter(value),
            _ => {}
        }
    }
    element
}

fn counter(instruction: &[u8]) -> Option<Counter> {
    if find(instruction, nfta::EXPR_NAME)? != b"counter\0" {
        return None;
    }
    let data = find(instruction, nfta::EXPR_DATA)?;
    let value = |kind| find(data, kind).and_then(number);
    Some(Counter { packets: value(nfta::COUNTER_PACKETS)?, bytes: value(nfta::COUNTER_BYTES)? })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|nla| nla.kind() == kind).map(|nla| nla.value())
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
