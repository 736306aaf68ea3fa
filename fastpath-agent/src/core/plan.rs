//! A plan: the difference between what should be and what is, as data. Executing it takes no decisions.

use super::{
    expr::Expr,
    model::{IfIndex, IfName},
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
