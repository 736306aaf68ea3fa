//! What evidence of both directions takes on this node: its sets, its rules, and the keys of its guards.

use std::collections::BTreeMap;

use super::{
    chain::OwnChain,
    conditions::Conditions,
    expr::Direction,
    rule::{Input, Rule, Traced},
    sets::{Key, OwnSet},
};

use crate::core::{
    link::kind::{is_bridge, is_vrf},
    model::{IfIndex, IfName, Link},
    route_rule::RouteRule,
    ruleset::{
        sets::Keys,
        wanted::{DesiredTable, Policy},
    },
};

/// What is wanted.
pub(super) struct Wanted {
    /// Where traces are left.
    pub(super) traced: Traced,
    /// Where input interfaces are read, in order.
    inputs: Vec<Input>,
    /// Conditions of packets that don't offload their flow.
    unguessed: Vec<Conditions>,
    /// Keys of the sets that are there only with keys.
    keys: BTreeMap<OwnSet, Keys>,
}

impl Wanted {
    /// Works it out from the managed links and from what other programs have.
    pub(super) fn of<'l>(policy: &Policy, managed: impl Iterator<Item = &'l Link>) -> Self {
        let mut inputs = vec![Input::Link];
        let mut indices: BTreeMap<&IfName, IfIndex> = BTreeMap::new();
        let mut keys: BTreeMap<OwnSet, Keys> = BTreeMap::new();
        for link in managed {
            indices.insert(&link.name, link.index);
            if is_vrf(link) && inputs.len() == 1 {
                inputs.insert(0, Input::VrfLink);
            }
            if is_bridge(link) {
                let index = link.index.0.to_ne_bytes();
                keys.entry(OwnSet::Bridges).or_default().push(Key::new(&[index, index].concat()));
                let address = link.address.map(|address| Key::new(&address));
                keys.entry(OwnSet::BridgeAddresses).or_default().extend(address);
            }
        }
        let mut unguessed = Vec::new();
        for rule in &policy.surroundings.unguessed {
            match input_of(rule) {
                Some(input) => {
                    let key = indices.get(input).map(|index| Key::new(&index.0.to_ne_bytes()));
                    keys.entry(OwnSet::RuleInputs).or_default().extend(key);
                }
                None => unguessed.extend(Conditions::reverse_of(rule, |name| indices.get(name).copied())),
            }
        }
        for keys in keys.values_mut() {
            keys.sort_unstable();
            keys.dedup();
        }
        keys.retain(|set, keys| *set != OwnSet::RuleInputs || !keys.is_empty());
        unguessed.dedup();
        let traced = match policy.surroundings.denying_postrouting {
            Some(_) => Traced::Postrouting,
            None => Traced::Forward,
        };
        Self { traced, inputs, unguessed, keys }
    }

    /// Whether there are bridges that packets may come in and leave by.
    pub(super) fn has_bridges(&self) -> bool {
        self.keys.contains_key(&OwnSet::Bridges)
    }

    /// Puts sets, keys and rules into the table.
    pub(super) fn fill(self, table: &mut DesiredTable) {
        table.sets.extend(Direction::ALL.map(OwnSet::Seen));
        table.sets.extend(self.keys.keys());
        let guards = self.guards();
        if !guards.is_empty() || self.traced == Traced::Postrouting {
            let [original, reply] = Direction::ALL.map(Rule::TraceOf);
            table.chains.insert(OwnChain::Trace, vec![original, reply, Rule::Untraced]);
        }
        for (direction, chain) in Direction::ALL.into_iter().zip([OwnChain::Original, OwnChain::Reply]) {
            table.chains.insert(chain, [guards.clone(), self.rules(direction)].concat());
        }
        table.keys = self.keys;
    }

    /// Rules for packets that leave their trace only.
    fn guards(&self) -> Vec<Rule> {
        let traced = self.traced;
        let rule_inputs = self.keys.contains_key(&OwnSet::RuleInputs).then_some(Rule::RuleInput { traced });
        let unguessed = self.unguessed.iter().cloned().map(|matches| Rule::Unguessed { matches, traced });
        rule_inputs.into_iter().chain(unguessed).collect()
    }

    fn rules(&self, direction: Direction) -> Vec<Rule> {
        let traced = self.traced;
        let mut rules = Vec::new();
        for input in self.inputs.iter().copied() {
            rules.push(Rule::Seen { direction, input, traced });
            rules.extend((traced == Traced::Forward).then_some(Rule::Trace { direction, input }));
        }
        rules.extend((traced == Traced::Forward).then_some(Rule::Untraced));
        rules
    }
}

/// The input interface of a policy rule that selects by nothing else which the guess doesn't have.
fn input_of(rule: &RouteRule) -> Option<&IfName> {
    let RouteRule { input, from: _, to: _, protocol, source_ports, destination_ports, ipv6: _ } = rule;
    input.as_ref().filter(|_| protocol.is_none() && source_ports.is_none() && destination_ports.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{model::test_link, ruleset::desired::desired, surroundings::Surroundings};

    fn table(links: &[Link], surroundings: Surroundings) -> DesiredTable {
        let policy = Policy { surroundings, ..Policy::default() };
        desired(&policy, links, &BTreeMap::new()).unwrap()
    }

    fn link(index: u32, kind: &str) -> Link {
        Link { index: IfIndex(index), kind: Some(kind.to_owned()), ..test_link(&format!("if{index}")) }
    }

    fn text(table: &DesiredTable, chain: OwnChain) -> Vec<String> {
        table.chains.get(&chain).into_iter().flatten().map(ToString::to_string).collect()
    }

    const SEEN_REPLY: &str = "ct id . oif . iif @kindnet-seen-reply fib saddr . mark . iif oif exists flow add @kindnet-flowtables counter return";
    const TRACE: &str = "update @kindnet-seen-original { ct id . iif . oif } return";
    const TRACE_ORIGINAL: &str =
        "ct direction original update @kindnet-seen-original { ct id . iif . oif } return";
    const TRACE_REPLY: &str = "ct direction reply update @kindnet-seen-reply { ct id . iif . oif } return";

    #[test]
    fn a_plain_node_offloads_or_leaves_a_trace() {
        let plain = table(&[link(1, "veth")], Surroundings::default());
        assert_eq!(text(&plain, OwnChain::Original), [SEEN_REPLY, TRACE, "counter"]);
        assert!(!plain.chains.contains_key(&OwnChain::Trace));
        assert!(!plain.chains.contains_key(&OwnChain::Postrouting));
        assert!(!plain.sets.contains(&OwnSet::RuleInputs) && !plain.sets.contains(&OwnSet::Bridges));
    }

    #[test]
    fn a_vrf_reads_the_slave() {
        let vrf = table(&[link(1, "vrf")], Surroundings::default());
        let rules = text(&vrf, OwnChain::Original);
        assert!(
            rules[0].starts_with("meta sdif != 0 ct id . oif . meta sdif @kindnet-seen-reply"),
            "{rules:?}"
        );
        assert_eq!(
            rules[1],
            "meta sdif != 0 update @kindnet-seen-original { ct id . meta sdif . oif } return"
        );
        assert_eq!(rules[2..], [SEEN_REPLY, TRACE, "counter"]);
    }

    #[test]
    fn policy_rules_become_guards() {
        let rule = |input: &str| RouteRule { input: IfName::new(input), ..RouteRule::default() };
        let surroundings = Surroundings {
            unguessed: vec![
                rule("if1"),
                rule("elsewhere"),
                RouteRule { protocol: Some(6), destination_ports: Some((443..=443).into()), ..rule("if2") },
                RouteRule { protocol: Some(17), ..rule("elsewhere") },
            ],
            ..Surroundings::default()
        };
        let table = table(&[link(1, "veth"), link(2, "veth")], surroundings);
        assert_eq!(table.keys(OwnSet::RuleInputs), [Key::new(&1_u32.to_ne_bytes())]);
        let rules = text(&table, OwnChain::Original);
        assert_eq!(rules[0], "oif @kindnet-rule-inputs goto kindnet-trace-chain");
        let guard = "oif 2 meta nfproto ipv4 meta l4proto 6 th sport 443";
        assert_eq!(rules[1], format!("{guard} goto kindnet-trace-chain"));
        assert_eq!(rules[2..], [SEEN_REPLY, TRACE, "counter"]);
        assert_eq!(text(&table, OwnChain::Trace), [TRACE_ORIGINAL, TRACE_REPLY, "counter"]);
    }

    #[test]
    fn where_postrouting_may_deny_both_directions_must_have_passed_it() {
        let surroundings = Surroundings { denying_postrouting: Some(0), ..Surroundings::default() };
        let table = table(&[link(1, "veth")], surroundings);
        assert_eq!(table.postrouting_priority, 1);
        assert_eq!(
            text(&table, OwnChain::Reply),
            ["ct id . oif . iif @kindnet-seen-original ct id . iif . oif @kindnet-seen-reply \
              fib saddr . mark . iif oif exists flow add @kindnet-flowtables counter return"]
        );
        assert_eq!(text(&table, OwnChain::Trace), [TRACE_ORIGINAL, TRACE_REPLY, "counter"]);
        assert_eq!(text(&table, OwnChain::Postrouting), ["ct packets > 19 goto kindnet-trace-chain"]);
    }

    #[test]
    fn a_bridge_is_known_by_its_address() {
        let bridge = Link { address: Some([2, 0, 0, 0, 0, 1]), ..link(7, "bridge") };
        let table = table(&[bridge], Surroundings::default());
        assert_eq!(table.keys(OwnSet::BridgeAddresses), [Key::new(&[2, 0, 0, 0, 0, 1])]);
        assert_eq!(OwnSet::Bridges.element(table.keys(OwnSet::Bridges)[0]), "7 . 7");
        assert!(
            text(&table, OwnChain::Offload).iter().any(|rule| rule.starts_with("iif . oif @kindnet-bridges"))
        );
    }

    #[test]
    fn the_chain_comes_after_the_last_of_others() {
        let forward =
            |last| table(&[], Surroundings { last_forward: last, ..Surroundings::default() }).chain_priority;
        assert_eq!([None, Some(0), Some(400), Some(i32::MAX)].map(forward), [300, 300, 401, i32::MAX]);
    }

    #[test]
    fn what_carries_an_inspected_vlan_is_left_out() {
        let vlan = |index, lower| Link { lower: Some(IfIndex(lower)), ..link(index, "vlan") };
        let links = [link(1, "veth"), vlan(2, 1), vlan(3, 2), link(4, "veth"), link(5, "ppp")];
        let pppoe: std::collections::BTreeSet<_> = [links[2].name.clone()].into();
        let devices = |inspected: &[u32]| {
            let inspected = inspected.iter().copied().map(IfIndex).collect();
            let pppoe = pppoe.clone();
            let table = table(&links, Surroundings { inspected, pppoe, ..Surroundings::default() });
            table.devices.keys().map(|index| index.0).collect::<Vec<_>>()
        };
        assert_eq!(devices(&[]), [1, 2, 3, 4, 5]);
        assert_eq!(devices(&[3]), [3, 4, 5]);
        assert_eq!(devices(&[2, 4]), [2, 3, 4, 5], "a veth's peer isn't what carries it");
        assert_eq!(devices(&[5]), [4, 5], "the session's VLAN, and what is below");
    }
}
