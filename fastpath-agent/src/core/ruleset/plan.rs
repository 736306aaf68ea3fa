//! A plan: the difference between what should be and what is, as data. Executing it takes no decisions.

use std::fmt;

use super::{
    exclude::Keys,
    expr::Expr,
    rule::Rule,
    sets::{ExcludeSet, OwnSet},
};
use crate::core::model::{CHAIN, FLOWTABLE, IfIndex, IfName, OFFLOAD_CHAIN, TABLE};

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
    /// Make a set of what is never offloaded, with room for so many keys.
    AddExcludeSet(ExcludeSet, u32),
    /// Delete a set with its elements.
    DeleteSet(OwnSet),
    /// Make the base chain [`CHAIN`] (filter, forward, policy accept).
    AddBaseChain {
        /// Priority in the forward hook.
        priority: i32,
    },
    /// Make the chain [`OFFLOAD_CHAIN`].
    AddOffloadChain,
    /// Delete a chain of ours with its rules.
    DeleteChain {
        /// [`CHAIN`] or [`OFFLOAD_CHAIN`].
        chain: &'static str,
    },
    /// Append a rule with our marker to a chain of ours.
    AddRule {
        /// [`CHAIN`] or [`OFFLOAD_CHAIN`].
        chain: &'static str,
        /// Its instructions.
        exprs: Vec<Expr>,
    },
    /// Delete one rule of a chain of ours.
    DeleteRule {
        /// [`CHAIN`] or [`OFFLOAD_CHAIN`].
        chain: &'static str,
        /// The kernel's handle.
        handle: u64,
    },
    /// Add devices to the live flowtable (at most [`MAX_DEVICES_PER_MESSAGE`](crate::core::model::MAX_DEVICES_PER_MESSAGE)).
    AddDevices(Vec<IfName>),
    /// Remove devices from the live flowtable (as many at most).
    RemoveDevices(Vec<IfName>),
    /// Add elements to the set of interface indices.
    AddIndices(Vec<IfIndex>),
    /// Remove elements from that set.
    RemoveIndices(Vec<IfIndex>),
    /// Add keys to a set of what is never offloaded, as many as there are.
    AddExcluded(ExcludeSet, Keys),
    /// Take keys out of such a set.
    RemoveExcluded(ExcludeSet, Keys),
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
            Self::AddExcludeSet(set, size) => write!(f, "add set {} size {size}", OwnSet::Exclude(*set)),
            Self::DeleteSet(set) => write!(f, "delete set {set}"),
            Self::AddBaseChain { priority } => write!(f, "add chain {CHAIN} priority {priority}"),
            Self::AddOffloadChain => write!(f, "add chain {OFFLOAD_CHAIN}"),
            Self::DeleteChain { chain } => write!(f, "delete chain {chain}"),
            Self::AddRule { chain, exprs } => match Rule::recognise(exprs) {
                Some(rule) => write!(f, "add rule {chain} {rule}"),
                None => write!(f, "add rule {chain} {exprs:?}"),
            },
            Self::DeleteRule { chain, handle } => write!(f, "delete rule {chain} handle {handle}"),
            Self::AddDevices(names) => write!(f, "add devices {}", List(names)),
            Self::RemoveDevices(names) => write!(f, "remove devices {}", List(names)),
            Self::AddIndices(indices) => write!(f, "add indices {}", List(indices)),
            Self::RemoveIndices(indices) => write!(f, "remove indices {}", List(indices)),
            Self::AddExcluded(set, keys) => write!(f, "exclude {}", Described(*set, keys)),
            Self::RemoveExcluded(set, keys) => write!(f, "exclude no more {}", Described(*set, keys)),
            Self::AddAssisted { ids, timeout_ms } => {
                write!(f, "assist conntrack ids {} for {timeout_ms} ms", List(ids))
            }
            Self::AddRevoked { ids, .. } => write!(f, "revoke conntrack ids {}", List(ids)),
            Self::RemoveAssisted(ids) => write!(f, "assist conntrack ids {} no more", List(ids)),
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
struct Described<'a>(ExcludeSet, &'a Keys);

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
