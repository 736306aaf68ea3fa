//! What the kernel should have: configuration and links in, table out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    chain::OwnChain,
    conditions::Conditions,
    evidence,
    expr::Direction,
    observed::Observed,
    rule::{Rule, Traced},
    sets::OwnSet,
};

use crate::core::{
    link::{
        kind::{is_bridge, is_bridged, is_vrf},
        select::Unmanaged,
        table::LinkTable,
    },
    model::{IfIndex, IfName, Link},
    ruleset::wanted::{Desired, DesiredTable, Policy},
};

/// Computes the table for `links`. `refused` are interfaces whose hook the kernel refused.
pub fn desired<'a>(
    policy: &Policy,
    links: impl IntoIterator<Item = &'a Link>,
    refused: &BTreeMap<IfIndex, String>,
) -> Desired {
    if policy.threshold == 0 {
        return None;
    }
    let mut managed = BTreeMap::new();
    let mut excluded_devices = BTreeSet::new();
    for link in links {
        match reject(policy, link, refused) {
            None => drop(managed.insert(link.index, link)),
            Some(Unmanaged::FlowsExcluded) => drop(excluded_devices.insert(link.name.clone())),
            Some(_) => {}
        }
    }
    let carriers = carriers(policy, &managed);
    excluded_devices
        .extend(carriers.iter().filter_map(|index| managed.get(index)).map(|link| link.name.clone()));
    let is_device =
        |link: &Link| policy.hw_offload || !is_bridged(link, |index| managed.get(&index).copied());
    let devices: BTreeMap<IfIndex, IfName> = managed
        .values()
        .filter(|link| is_device(link) && !carriers.contains(&link.index))
        .map(|link| (link.index, link.name.clone()))
        .collect();
    let evidence = evidence::Wanted::of(policy, managed.values().copied());
    let mut table = DesiredTable {
        flowtable_priority: policy.flowtable_priority,
        counter: policy.counter,
        hw_offload: policy.hw_offload,
        chain_priority: policy.chain_priority.max(after(policy.surroundings.last_forward)),
        postrouting_priority: after(policy.surroundings.denying_postrouting),
        devices,
        excluded_devices,
        exclusions: Arc::clone(&policy.exclusions),
        keys: BTreeMap::new(),
        sets: vec![OwnSet::Devices, OwnSet::SlowPath],
        chains: BTreeMap::new(),
    };
    table.sets.extend(policy.exclusions.sets().map(|(set, _)| OwnSet::Exclude(set)));
    let threshold = policy.threshold;
    let mut base = vec![Rule::Threshold { threshold, to: OwnChain::Offload }];
    if policy.assist {
        table.sets.push(OwnSet::Assist);
        base.insert(0, Rule::Assist { to: OwnChain::Offload });
    }
    if evidence.traced == Traced::Postrouting {
        let mut base = vec![Rule::Threshold { threshold, to: OwnChain::Trace }];
        if policy.assist {
            base.insert(0, Rule::Assist { to: OwnChain::Trace });
        }
        table.chains.insert(OwnChain::Postrouting, base);
    }
    table.chains.insert(OwnChain::Base, base);
    table.chains.insert(OwnChain::Offload, offload_rules(policy, &evidence));
    evidence.fill(&mut table);
    wanted_by_others(policy, &managed, &mut table);
    Some(table)
}

/// With more rules than this that want every packet, they aren't told apart any more: no flow is offloaded.
const MOST_WANTED: usize = 256;

/// Leaves out flows that other programs' rules want every packet of. Where traces are left in postrouting, packets that leave one
/// there must meet the guards too: a packet of the other direction offloads the flow by it.
fn wanted_by_others(policy: &Policy, managed: &BTreeMap<IfIndex, &Link>, table: &mut DesiredTable) {
    // In a VRF a packet that is forwarded comes in by the VRF's interface, one before routing by the link's.
    let in_vrf = managed.values().any(|link| is_vrf(link));
    let mut wanted: Vec<Conditions> = Vec::new();
    for rule in policy.surroundings.rules.iter().filter(|rule| rule.wants_every_packet()) {
        for conditions in rule.left_out(in_vrf) {
            if !wanted.contains(&conditions) {
                wanted.push(conditions);
            }
        }
    }
    if wanted.len() > MOST_WANTED || wanted.iter().any(|conditions| conditions.0.is_empty()) {
        wanted = vec![Conditions::default()];
    }
    let guards = |wanted: &[Conditions]| -> Vec<Rule> {
        wanted.iter().map(|conditions| Rule::EveryPacket { conditions: conditions.clone() }).collect()
    };
    if let Some(rules) = table.chains.get_mut(&OwnChain::Offload) {
        let at = rules.iter().position(|rule| *rule == Rule::MeterOffloaded).unwrap_or(rules.len());
        rules.splice(at..at, guards(&wanted));
    }
    if table.postrouting_priority > SNAT {
        wanted = wanted.iter().map(Conditions::without_addresses).collect();
    }
    let traced_last = table.chains.contains_key(&OwnChain::Postrouting);
    if let Some(rules) = table.chains.get_mut(&OwnChain::Trace).filter(|_| traced_last) {
        rules.splice(0..0, guards(&wanted));
    }
}

/// Where NAT changes a packet's source in the postrouting hook (`NF_IP_PRI_NAT_SRC`).
const SNAT: i32 = 100;

/// The priority behind a chain with this one; the earliest of all where there is none.
fn after(priority: Option<i32>) -> i32 {
    priority.map_or(i32::MIN, |priority| priority.saturating_add(1))
}

/// Managed links that carry a VLAN or a ppp interface on which others look at what comes in, at any depth. The flowtable's hook
/// on the carrier would take packets before they get there, so the upper one's own does the work.
fn carriers(policy: &Policy, managed: &BTreeMap<IfIndex, &Link>) -> BTreeSet<IfIndex> {
    let mut carriers = BTreeSet::new();
    let mut uppers: Vec<IfIndex> = policy.surroundings.inspected.iter().copied().collect();
    while let Some(upper) = uppers.pop().and_then(|index| managed.get(&index)) {
        let of_ppp = |lower: &&&Link| is_ppp(upper) && policy.surroundings.pppoe.contains(&lower.name);
        let of_vlan = upper.lower.filter(|_| is_vlan(upper));
        for lower in managed.values().filter(of_ppp).map(|lower| lower.index).chain(of_vlan) {
            if carriers.insert(lower) {
                uppers.push(lower);
            }
        }
    }
    carriers
}

fn is_ppp(link: &Link) -> bool {
    link.kind.as_deref() == Some("ppp")
}

fn is_vlan(link: &Link) -> bool {
    link.kind.as_deref() == Some("vlan")
}

impl DesiredTable {
    /// Makes this table what [`desired`] computes, if since then nothing but the `changed` links came, went or changed.
    /// Returns those of them that were among its devices. `None` if other links may be concerned too, and the table is as it was:
    /// a bridge replaces its ports, and excluded flows may have to leave.
    pub fn follow(
        &mut self,
        policy: &Policy,
        links: &LinkTable,
        refused: &BTreeMap<IfIndex, String>,
        changed: &BTreeSet<IfIndex>,
    ) -> Option<BTreeMap<IfIndex, IfName>> {
        let accepted = |index| links.get(index).filter(|link| reject(policy, link, refused).is_none());
        let there = || changed.iter().filter_map(|index| links.get(*index));
        let inspects = !policy.surroundings.inspected.is_empty();
        let decides = |link: &Link| is_bridge(link) || is_vrf(link);
        if policy.exclusions.names_interfaces() || inspects || there().any(decides) {
            return None;
        }
        let before = changed.iter().filter_map(|index| self.devices.remove_entry(index)).collect();
        for link in there() {
            let is_device = policy.hw_offload || !is_bridged(link, accepted);
            if is_device && accepted(link.index).is_some() {
                self.devices.insert(link.index, link.name.clone());
            }
        }
        Some(before)
    }
}

/// Keeps what `fastpath-agent revoke` has put into our table: it isn't in the agent's configuration.
pub fn keep_revoked(desired: &mut Desired, observed: &Observed) {
    let has_set = observed.table.as_ref().is_some_and(|table| table.set(OwnSet::Revoked).is_some());
    if let (Some(desired), true) = (desired, has_set) {
        desired.sets.push(OwnSet::Revoked);
        desired.chains.entry(OwnChain::Offload).or_default().insert(0, Rule::Revoked);
    }
}

fn offload_rules(policy: &Policy, evidence: &evidence::Wanted) -> Vec<Rule> {
    let mut rules = vec![Rule::OnlyEstablished];
    rules.extend(policy.spare_ipsec.then_some(Rule::SpareIpsec));
    rules.extend([Rule::OnlyManagedInput, Rule::OnlyManagedOutput]);
    rules.extend(evidence.has_bridges().then_some(Rule::Bridged));
    rules.extend(policy.exclusions.rules());
    rules.push(Rule::MeterOffloaded);
    rules.extend(Direction::ALL.map(Rule::ByDirection));
    rules
}

/// Why `link` isn't managed; `None` if it should be.
pub fn reject(policy: &Policy, link: &Link, refused: &BTreeMap<IfIndex, String>) -> Option<Unmanaged> {
    policy
        .selection
        .reject(link)
        .or_else(|| policy.exclusions.has_interface(&link.name).then_some(Unmanaged::FlowsExcluded))
        .or_else(|| refused.get(&link.index).map(|error| Unmanaged::Refused { error: error.clone() }))
}

/// How many links aren't among `managed` and why, by [`Unmanaged::name`].
pub fn left_out(
    policy: &Policy,
    links: &LinkTable,
    refused: &BTreeMap<IfIndex, String>,
    managed: &BTreeSet<IfIndex>,
) -> BTreeMap<&'static str, u64> {
    let mut reasons = BTreeMap::new();
    for link in links.iter().filter(|link| !managed.contains(&link.index)) {
        let bridged = is_bridged(link, |index| links.get(index).filter(|_| managed.contains(&index)));
        let reason = match reject(policy, link, refused) {
            Some(reason) => reason,
            None if bridged => Unmanaged::Port,
            None => Unmanaged::NoRuleset,
        };
        *reasons.entry(reason.name()).or_default() += 1;
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{link::select::Selection, model::test_link};

    fn policy() -> Policy {
        Policy { spare_ipsec: true, ..Policy::default() }
    }

    fn link(index: u32, kind: &str, master: Option<u32>) -> Link {
        Link {
            index: IfIndex(index),
            kind: Some(kind.to_owned()),
            master: master.map(IfIndex),
            ..test_link(&format!("if{index}"))
        }
    }

    fn devices(policy: &Policy, links: &[Link]) -> Vec<u32> {
        desired(policy, links, &BTreeMap::new()).unwrap().devices.keys().map(|index| index.0).collect()
    }

    #[test]
    fn a_managed_bridge_stands_for_its_ports() {
        let links = [
            link(1, "veth", Some(9)),
            link(2, "veth", Some(8)),
            link(3, "veth", None),
            link(8, "bond", None),
            link(9, "bridge", None),
        ];
        assert_eq!(devices(&policy(), &links), [2, 3, 8, 9]);
        // A port whose bridge isn't there for flows does no harm: they don't pass it.
        let selection = Selection::new(&[], &["if9".to_owned()]).unwrap();
        assert_eq!(devices(&Policy { selection, ..policy() }, &links), [1, 2, 3, 8]);
        assert_eq!(devices(&Policy { hw_offload: true, ..policy() }, &links), [1, 2, 3, 8, 9]);
    }

    #[test]
    fn every_link_that_is_left_out_has_a_reason() {
        let down = Link { admin_up: false, ..link(4, "veth", None) };
        let links = [
            link(1, "veth", Some(9)),
            link(3, "veth", None),
            down,
            link(5, "dummy", None),
            link(9, "bridge", None),
        ];
        let refused = [(IfIndex(5), "no".to_owned())].into();
        let managed = |list: &[u32]| list.iter().copied().map(IfIndex).collect();
        let table: LinkTable = links.into_iter().collect();
        let found = left_out(&policy(), &table, &refused, &managed(&[3, 9]));
        assert_eq!(found, [("down", 1), ("port", 1), ("refused", 1)].into());
        let found = left_out(&policy(), &table, &refused, &managed(&[]));
        assert_eq!(found, [("down", 1), ("no-ruleset", 3), ("refused", 1)].into());
        assert!(found.keys().all(|reason| Unmanaged::names().any(|name| name == *reason)));
    }
}
