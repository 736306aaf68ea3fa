//! A plan: the difference between what should be and what is, as data. Executing it takes no decisions.

use std::fmt;

use super::{chain::OwnChain, expr::Expr, rule::Rule, sets::OwnSet};

use crate::core::{
    flow::one_way::Answer,
    model::{FLOWTABLE, IfIndex, IfName, MAX_DEVICES_PER_MESSAGE, TABLE},
    ruleset::sets::Keys,
};

/// One change of the ruleset, in our table only. A plan's operations go into one transaction, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make the table with comment and marker.
    AddTable,
    /// Delete the table with all that is in it.
    DeleteTable,
    /// Make the flowtable, without devices yet.
    AddFlowtable {
        /// Priority of the ingress hook.
        priority: i32,
        /// With `NFT_FLOWTABLE_COUNTER`.
        counter: bool,
        /// With `NFT_FLOWTABLE_HW_OFFLOAD`.
        hw_offload: bool,
    },
    /// Delete the flowtable; every flow in it goes back to the normal path.
    DeleteFlowtable,
    /// Make a set, without elements yet.
    AddSet(OwnSet),
    /// Make a set with keys, with room for so many.
    AddKeySet(OwnSet, u32),
    /// Delete a set with its elements.
    DeleteSet(OwnSet),
    /// Make a base chain (filter, policy accept) in its hook.
    AddBaseChain {
        /// [`OwnChain::Base`] or [`OwnChain::Postrouting`].
        chain: OwnChain,
        /// Priority in the hook.
        priority: i32,
    },
    /// Make a chain that others go to.
    AddChain(OwnChain),
    /// Delete one of our chains with its rules.
    DeleteChain(OwnChain),
    /// Append a rule with our marker to one of our chains.
    AddRule {
        /// The chain.
        chain: OwnChain,
        /// Its instructions.
        exprs: Vec<Expr>,
    },
    /// Delete one rule of one of our chains.
    DeleteRule {
        /// The chain.
        chain: OwnChain,
        /// The kernel's handle.
        handle: u64,
    },
    /// Add devices to the live flowtable (at most [`MAX_DEVICES_PER_MESSAGE`]).
    AddDevices(Vec<IfName>),
    /// Remove devices from the live flowtable (as many at most).
    RemoveDevices(Vec<IfName>),
    /// Add elements to the set of interface indices.
    AddIndices(Vec<IfIndex>),
    /// Remove elements from that set.
    RemoveIndices(Vec<IfIndex>),
    /// Add keys to a set with keys, as many as there are.
    AddKeys(OwnSet, Keys),
    /// Take keys out of such a set.
    RemoveKeys(OwnSet, Keys),
    /// Have the flows with these conntrack ids (`ct id`, the bytes of `CTA_ID`) offloaded with their next packet, if the
    /// guards allow it and they have no packet counters: adds them to [`OwnSet::Assist`]. One that is listed already
    /// stays as it is, with its old timeout.
    AddAssisted {
        /// Conntrack ids.
        ids: Vec<u32>,
        /// Milliseconds until they are forgotten.
        timeout_ms: u64,
    },
    /// Have the flows with these conntrack ids offloaded no more: adds them to [`OwnSet::Revoked`]. One that is listed
    /// already stays as it is.
    AddRevoked {
        /// Conntrack ids.
        ids: Vec<u32>,
        /// Milliseconds without a packet until they are forgotten.
        timeout_ms: u64,
    },
    /// Leave traces of packets that weren't seen, for as long as others live.
    AddTraces(Vec<Answer>),
    /// Take ids out of [`OwnSet::Assist`] again. One that isn't there (any more) refuses the transaction (ENOENT).
    RemoveAssisted(Vec<u32>),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => write!(f, "add table inet {TABLE}"),
            Self::DeleteTable => write!(f, "delete table inet {TABLE}"),
            Self::AddFlowtable { priority, .. } => write!(f, "add flowtable {FLOWTABLE} priority {priority}"),
            Self::DeleteFlowtable => write!(f, "delete flowtable {FLOWTABLE}"),
            Self::AddSet(set) => write!(f, "add set {set}"),
            Self::AddKeySet(set, size) => write!(f, "add set {set} size {size}"),
            Self::DeleteSet(set) => write!(f, "delete set {set}"),
            Self::AddBaseChain { chain, priority } => write!(f, "add chain {chain} priority {priority}"),
            Self::AddChain(chain) => write!(f, "add chain {chain}"),
            Self::DeleteChain(chain) => write!(f, "delete chain {chain}"),
            Self::AddRule { chain, exprs } => match Rule::recognise(exprs) {
                Some(rule) => write!(f, "add rule {chain} {rule}"),
                None => write!(f, "add rule {chain} {exprs:?}"),
            },
            Self::DeleteRule { chain, handle } => write!(f, "delete rule {chain} handle {handle}"),
            Self::AddDevices(names) => write!(f, "add devices {}", List(names)),
            Self::RemoveDevices(names) => write!(f, "remove devices {}", List(names)),
            Self::AddIndices(indices) => write!(f, "add indices {}", List(indices)),
            Self::RemoveIndices(indices) => write!(f, "remove indices {}", List(indices)),
            Self::AddKeys(set, keys) => write!(f, "add to {set} {}", Described(*set, keys)),
            Self::RemoveKeys(set, keys) => write!(f, "remove from {set} {}", Described(*set, keys)),
            Self::AddAssisted { ids, timeout_ms } => {
                write!(f, "assist conntrack ids {} for {timeout_ms} ms", List(ids))
            }
            Self::AddRevoked { ids, .. } => write!(f, "revoke conntrack ids {}", List(ids)),
            Self::AddTraces(answers) => {
                let ids: Vec<u32> = answers.iter().map(|answer| answer.id).collect();
                write!(f, "leave traces of answers for conntrack ids {}", List(&ids))
            }
            Self::RemoveAssisted(ids) => write!(f, "stop assisting conntrack ids {}", List(ids)),
        }
    }
}

/// Operations in words, for logs.
pub struct Plan<'a>(pub &'a [Op]);

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, op) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{op}")?;
        }
        Ok(())
    }
}

/// Keys as people write them, the first few.
struct Described<'a>(OwnSet, &'a Keys);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(set, keys) = self;
        let more = keys.len().saturating_sub(SHOWN);
        let shown: Vec<String> = keys.iter().take(SHOWN).map(|key| set.describe(*key)).collect();
        write!(f, "{}", shown.join(", "))?;
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

/// How many items of a list are shown.
const SHOWN: usize = 8;

/// The first few of a list, and how many more.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, item) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{item}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Splits into what one netlink message may carry.
pub(super) fn chunks<'a, T: Clone + 'a>(items: impl Iterator<Item = &'a T>) -> impl Iterator<Item = Vec<T>> {
    let items: Vec<T> = items.cloned().collect();
    let chunks: Vec<Vec<T>> = items.chunks(MAX_DEVICES_PER_MESSAGE).map(<[T]>::to_vec).collect();
    chunks.into_iter()
}
