//! A plan: the difference between what should be and what is, as data. Executing it takes no decisions.

use std::fmt;

use super::{
    expr::Expr,
    model::{CHAIN, DEVICE_SET, FLOWTABLE, IfIndex, IfName, TABLE},
    rule::Rule,
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
    /// Make the set of interface indices.
    AddDeviceSet,
    /// Delete that set.
    DeleteDeviceSet,
    /// Make the chain (filter, forward, policy accept).
    AddChain {
        /// Priority in the forward hook.
        priority: i32,
    },
    /// Delete the chain with its rules.
    DeleteChain,
    /// Append a rule with our marker to the chain.
    AddRule {
        /// Its instructions.
        exprs: Vec<Expr>,
    },
    /// Delete one rule of the chain.
    DeleteRule {
        /// The kernel's handle.
        handle: u64,
    },
    /// Add devices to the live flowtable (at most [`MAX_DEVICES_PER_MESSAGE`](super::model::MAX_DEVICES_PER_MESSAGE)).
    AddDevices(Vec<IfName>),
    /// Remove devices from the live flowtable (as many at most).
    RemoveDevices(Vec<IfName>),
    /// Add elements to the set of interface indices.
    AddIndices(Vec<IfIndex>),
    /// Remove elements from that set.
    RemoveIndices(Vec<IfIndex>),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => write!(f, "add table inet {TABLE}"),
            Self::DeleteTable => write!(f, "delete table inet {TABLE}"),
            Self::AddFlowtable { priority, .. } => write!(f, "add flowtable {FLOWTABLE} priority {priority}"),
            Self::DeleteFlowtable => write!(f, "delete flowtable {FLOWTABLE}"),
            Self::AddDeviceSet => write!(f, "add set {DEVICE_SET}"),
            Self::DeleteDeviceSet => write!(f, "delete set {DEVICE_SET}"),
            Self::AddChain { priority } => write!(f, "add chain {CHAIN} priority {priority}"),
            Self::DeleteChain => write!(f, "delete chain {CHAIN}"),
            Self::AddRule { exprs } => match Rule::recognise(exprs) {
                Some(rule) => write!(f, "add rule {rule}"),
                None => write!(f, "add rule {exprs:?}"),
            },
            Self::DeleteRule { handle } => write!(f, "delete rule handle {handle}"),
            Self::AddDevices(names) => write!(f, "add devices {}", List(names)),
            Self::RemoveDevices(names) => write!(f, "remove devices {}", List(names)),
            Self::AddIndices(indices) => write!(f, "add indices {}", List(indices)),
            Self::RemoveIndices(indices) => write!(f, "remove indices {}", List(indices)),
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

/// The first few of a list, and how many more.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
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
