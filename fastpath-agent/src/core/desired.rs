//! What the kernel should have: configuration and links in, table out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    exclude::Exclusions,
    model::{IfIndex, IfName, Link},
    rule::{End, Marked, Rule},
    select::{Selection, Unmanaged},
    sets::{ExcludeSet, OwnSet},
};

/// The part of the configuration that decides what the table looks like.
#[derive(Clone, Debug)]
pub struct Policy {
    /// A flow is offloaded with the packet after this many, both directions counted; 0 offloads nothing.
    pub threshold: u32,
    /// Priority of the chain in the forward hook.
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
}

/// The table as it should be; `None` if there should be none.
pub type Desired = Option<DesiredTable>;

/// What should stand in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTable {
    /// Priority of the flowtable.
    pub flowtable_priority: i32,
    /// See [`Policy::counter`].
    pub counter: bool,
    /// See [`Policy::hw_offload`].
    pub hw_offload: bool,
    /// Priority of the chain.
    pub chain_priority: i32,
    /// Devices of the flowtable; the indices are the elements of the set.
    pub devices: BTreeMap<IfIndex, IfName>,
    /// Interfaces that aren't among them since their flows are excluded. Where one is, its flows may be offloaded.
    pub excluded_devices: BTreeSet<IfName>,
    /// Keys of the sets of exclusions.
    pub exclusions: Arc<Exclusions>,
    /// Sets that there should be; of ours, no other.
    pub sets: Vec<OwnSet>,
    /// Our rules of the base chain, in order.
    pub base_rules: Vec<Rule>,
    /// Our rules of the chain behind it, in order.
    pub offload_rules: Vec<Rule>,
}

/// Computes the table for `links`. `refused` are interfaces whose hook the kernel refused.
pub fn desired<'a>(
    policy: &Policy,
    links: impl IntoIterator<Item = &'a Link>,
    refused: &BTreeMap<IfIndex, String>,
) -> Desired {
    if policy.threshold == 0 {
        return None;
    }
    let mut devices = BTreeMap::new();
    let mut excluded_devices = BTreeSet::new();
    for link in links {
        match reject(policy, link, refused) {
            None => drop(devices.insert(link.index, link.name.clone())),
            Some(Unmanaged::FlowsExcluded) => drop(excluded_devices.insert(link.name.clone())),
            Some(_) => {}
        }
    }
    let mut table = DesiredTable {
        flowtable_priority: policy.flowtable_priority,
        counter: policy.counter,
        hw_offload: policy.hw_offload,
        chain_priority: policy.chain_priority,
        devices,
        excluded_devices,
        exclusions: Arc::clone(&policy.exclusions),
        sets: vec![OwnSet::Devices, OwnSet::SlowPath],
        base_rules: vec![Rule::Threshold { threshold: policy.threshold }],
        offload_rules: offload_rules(policy),
    };
    table.sets.extend(policy.exclusions.sets().map(|(set, _)| OwnSet::Exclude(set)));
    if policy.assist {
        table.sets.push(OwnSet::Assist);
        table.base_rules.insert(0, Rule::Assist);
    }
    Some(table)
}

fn offload_rules(policy: &Policy) -> Vec<Rule> {
    let mut rules = vec![Rule::OnlyEstablished];
    rules.extend(policy.spare_ipsec.then_some(Rule::SpareIpsec));
    rules.extend([Rule::OnlyManagedInput, Rule::OnlyManagedOutput]);
    rules.extend(exclusion_rules(&policy.exclusions));
    rules.extend([Rule::Offload, Rule::Meter]);
    rules
}

fn exclusion_rules(exclusions: &Exclusions) -> Vec<Rule> {
    let mut rules = Vec::new();
    for mark in exclusions.marks() {
        rules.extend([Marked::Packet, Marked::Connection].map(|of| Rule::ExcludedMark { mark, of }));
    }
    for (set, _) in exclusions.sets() {
        match set {
            ExcludeSet::Protocols => rules.push(Rule::ExcludedProtocol),
            set => rules.extend(End::ALL.map(|end| Rule::Excluded { set, end })),
        }
    }
    rules
}

/// Why `link` isn't in the flowtable; `None` if it should be.
pub fn reject(policy: &Policy, link: &Link, refused: &BTreeMap<IfIndex, String>) -> Option<Unmanaged> {
    policy
        .selection
        .reject(link)
        .or_else(|| policy.exclusions.has_interface(&link.name).then_some(Unmanaged::FlowsExcluded))
        .or_else(|| refused.get(&link.index).map(|error| Unmanaged::Refused { error: error.clone() }))
}
