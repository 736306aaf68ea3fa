//! What is wanted of the table: what decides it, and the table that follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    chain::OwnChain,
    exclude::Exclusions,
    rule::Rule,
    sets::{Key, Keys, OwnSet},
};
use crate::core::{
    link::select::Selection,
    model::{IfIndex, IfName},
    surroundings::Surroundings,
};

/// The part of the configuration that decides what the table looks like.
#[derive(Clone, Debug)]
pub struct Policy {
    /// A flow is offloaded with the packet after this many, both directions counted; 0 offloads nothing.
    pub threshold: u32,
    /// Priority of the chain in the forward hook, where other programs' filters don't move it back.
    pub chain_priority: i32,
    /// Priority of the flowtable in the ingress hook.
    pub flowtable_priority: i32,
    /// The flowtable counts (`NFT_FLOWTABLE_COUNTER`), so that conntrack's counters go on.
    pub counter: bool,
    /// The flowtable asks the devices to do it in hardware.
    pub hw_offload: bool,
    /// Flows to an IPsec policy stay on the normal path; kernels without IPsec don't know the question.
    pub spare_ipsec: bool,
    /// Connections that the agent lists in [`OwnSet::Assist`] are offloaded too. Every packet that isn't offloaded pays
    /// for that, so it is for while there are any.
    pub assist: bool,
    /// Which interfaces.
    pub selection: Selection,
    /// Flows that are never offloaded.
    pub exclusions: Arc<Exclusions>,
    /// What other programs have on this node.
    pub surroundings: Surroundings,
}

impl Default for Policy {
    /// All interfaces, nothing excluded, a node without other programs: an agent without flags, but for the flowtable's priority,
    /// which is that of kindnet's document.
    fn default() -> Self {
        Self {
            threshold: 20,
            chain_priority: 300,
            flowtable_priority: 0,
            counter: true,
            hw_offload: false,
            spare_ipsec: false,
            assist: false,
            selection: Selection::default(),
            exclusions: Arc::default(),
            surroundings: Surroundings::default(),
        }
    }
}

/// The table as it should be; `None` if there should be none.
pub type Desired = Option<DesiredTable>;

/// What the table should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTable {
    /// Priority of the flowtable.
    pub flowtable_priority: i32,
    /// See [`Policy::counter`].
    pub counter: bool,
    /// See [`Policy::hw_offload`].
    pub hw_offload: bool,
    /// Priority of the chain in the forward hook.
    pub chain_priority: i32,
    /// Priority of the chain in the postrouting hook, if one is wanted.
    pub postrouting_priority: i32,
    /// Devices of the flowtable; the indices are the elements of the set.
    pub devices: BTreeMap<IfIndex, IfName>,
    /// Interfaces that aren't among them since their flows mustn't be offloaded there. Where one is, its flows may be.
    pub excluded_devices: BTreeSet<IfName>,
    /// Keys of the sets of exclusions.
    pub exclusions: Arc<Exclusions>,
    /// Keys of other sets with keys, in order.
    pub keys: BTreeMap<OwnSet, Keys>,
    /// Sets that there should be, and none besides.
    pub sets: Vec<OwnSet>,
    /// Our chains with our rules in order, and none besides.
    pub chains: BTreeMap<OwnChain, Vec<Rule>>,
}

impl DesiredTable {
    /// Keys of a set with keys.
    pub fn keys(&self, set: OwnSet) -> &[Key] {
        match set {
            OwnSet::Exclude(set) => self.exclusions.keys(set),
            set => self.keys.get(&set).map_or(&[], Vec::as_slice),
        }
    }
}
