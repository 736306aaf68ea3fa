//! What is read of other programs' rulesets, from any message. For fuzzing only.

use std::collections::BTreeSet;

use super::{decode, search, sets, survey};
use crate::kernel::{netlink::Message, nft::names::Names};

/// Reads it as every kind of object.
pub(in crate::kernel) fn read(message: &Message<'_>) {
    // A byte is shown with four characters at most.
    let most = message.bytes().len();
    if let Some((table, name, chain)) = decode::chain(message) {
        let devices = chain.base.map_or(0, |base| base.devices.len());
        assert!(table.len() + name.len() + devices <= 4 * most, "what is kept comes from the message");
    }
    let mut filled = BTreeSet::new();
    drop(decode::rule(message, &mut filled));
    assert!(filled.iter().map(String::len).sum::<usize>() <= 4 * most, "what is kept comes from the message");
    drop(sets::set(message));
    drop(survey::not_ours(message));
    drop(survey::flowtable(message));
    let mut found = search::Found::default();
    search::rule(message, &mut found);
    for nla in message.attributes() {
        let _ = decode::verdict(nla.value(), &Names::default());
    }
}
