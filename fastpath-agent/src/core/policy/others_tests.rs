//! What follows from chains and rules as real programs make them.

use super::*;
use crate::core::policy::{
    outcome::{Established, Outcome},
    rule::Rule,
};

fn rule(outcome: Outcome, established: Established) -> Rule {
    Rule::asking_nothing(1, outcome, established)
}

fn base(kind: &str, hook: u32, priority: i32) -> Chain {
    let base = Base { kind: kind.to_owned(), hook, priority, accepts: true, devices: Vec::new() };
    Chain { base: Some(base), ..Chain::default() }
}

fn others(tables: impl IntoIterator<Item = (u8, &'static str, &'static str, Chain)>) -> Others {
    let mut others = Others::default();
    for (family, table, name, chain) in tables {
        others.0.entry((family, table.to_owned())).or_default().insert(name.to_owned(), chain);
    }
    others
}

#[test]
fn the_last_filter_in_the_forward_hook_is_found_in_all_families() {
    assert_eq!(Others::default().last_forward(), None);
    let mut denying = base("filter", FORWARD, 400);
    denying.rules.push(rule(Outcome::Deny, Established::Some));
    let others = others([
        (INET, "firewalld", "filter_FORWARD", base("filter", FORWARD, 10)),
        (IPV4, "filter", "FORWARD", base("filter", FORWARD, 0)),
        (IPV6, "late", "c", denying),
        (IPV4, "later", "counts-only", base("filter", FORWARD, 500)),
        (IPV4, "nat", "c", base("nat", FORWARD, 500)),
        (IPV4, "out", "c", base("filter", POSTROUTING, 600)),
        (NETDEV, "n", "c", base("filter", FORWARD, 700)),
        (7, "bridge", "c", base("filter", FORWARD, 800)),
    ]);
    assert_eq!(others.last_forward(), Some(400));
    assert_eq!(others.denying_postrouting(), None);
    let read: Vec<_> = others.to_read().into_iter().map(|(_, table)| table).collect();
    assert_eq!(read, ["firewalld", "filter", "later", "out", "bridge", "late"]);
}

#[test]
fn chains_of_type_nat_translate_for_their_family() {
    let of = |family| others([(family, "t", "c", base("nat", POSTROUTING, 100))]);
    for (family, v4, v6) in
        [(INET, true, true), (IPV4, true, false), (IPV6, false, true), (NETDEV, false, false)]
    {
        assert_eq!([false, true].map(|ipv6| of(family).translates(ipv6)), [v4, v6], "{family}");
    }
    assert!(!others([(INET, "t", "c", base("filter", POSTROUTING, 100))]).translates(false));
}

/// Chains of one table, the first of them in the postrouting hook.
fn denies(policy_accepts: bool, chains: &[(&'static str, &[(Outcome, Established)])]) -> bool {
    let mut table = BTreeMap::new();
    for (name, rules) in chains {
        let rules = rules.iter().map(|(outcome, established)| rule(outcome.clone(), *established)).collect();
        table.insert((*name).to_owned(), Chain { rules, ..Chain::default() });
    }
    let first = table.get_mut(chains[0].0).expect("a chain");
    first.base = base("filter", POSTROUTING, 5).base;
    first.base.as_mut().expect("a base chain").accepts = policy_accepts;
    let others = Others([((IPV4, "t".to_owned()), table)].into());
    assert_eq!(others.to_read().len(), 1);
    others.denying_postrouting() == Some(5)
}

#[test]
fn what_can_deny_in_postrouting() {
    use Established::{All, None, Some};
    let jump = |to: &str| Outcome::Jump(to.into());
    let goto = |to: &str| Outcome::Goto(to.into());
    let [accept, deny, back, on] = [Outcome::Accept, Outcome::Deny, Outcome::Return, Outcome::Continue];
    assert!(!denies(true, &[("c", &[])]));
    assert!(denies(false, &[("c", &[])]));
    assert!(!denies(true, &[("c", &[(on.clone(), All), (accept.clone(), Some)])]));
    assert!(denies(true, &[("c", &[(accept.clone(), Some), (deny.clone(), Some)])]));
    // Rules for other states, and behind what accepts all that is established.
    assert!(!denies(true, &[("c", &[(deny.clone(), None)])]));
    assert!(!denies(true, &[("c", &[(accept.clone(), All), (deny.clone(), Some)])]));
    assert!(!denies(false, &[("c", &[(accept.clone(), All)])]));
    assert!(denies(false, &[("c", &[(accept.clone(), None)])]));
    // Jumps.
    let d: (&str, &[(Outcome, Established)]) = ("d", &[(deny.clone(), Some)]);
    assert!(denies(true, &[("c", &[(jump("d"), Some)]), d]));
    assert!(denies(true, &[("c", &[(goto("d"), Some)]), d]));
    assert!(!denies(true, &[("c", &[(jump("d"), None)]), d]));
    assert!(!denies(true, &[("c", &[(back.clone(), All), (jump("d"), All)]), d]));
    assert!(denies(true, &[("c", &[(back, Some), (jump("d"), All)]), d]));
    assert!(denies(true, &[("c", &[(jump("nowhere"), Some)])]));
    let a: (&str, &[(Outcome, Established)]) = ("a", &[(accept, All)]);
    assert!(!denies(true, &[("c", &[(jump("a"), All), (deny.clone(), All)]), a]));
    assert!(denies(true, &[("c", &[(jump("a"), Some), (deny.clone(), All)]), a]));
    assert!(!denies(true, &[("c", &[(goto("e"), All), (deny.clone(), All)]), ("e", &[])]));
    // Twice through the same chain, and in circles.
    assert!(!denies(true, &[("c", &[(jump("e"), Some), (jump("e"), Some)]), ("e", &[])]));
    assert!(denies(true, &[("c", &[(jump("c"), Some)])]));
}

/// Only ahead of conntrack can a rule take a packet from its connection.
#[test]
fn what_takes_packets_from_their_connection() {
    let with = |hook, priority, rules: Vec<Rule>| {
        let base = Chain { rules, ..base("filter", hook, priority) };
        others([(IPV4, "t", "c", base)]).can_deny()
    };
    let untracks = Rule { untracks: true, ..rule(Outcome::Continue, Established::Some) };
    let accepts = rule(Outcome::Accept, Established::All);
    assert!(with(PREROUTING, -300, vec![untracks.clone()]));
    assert!(with(PREROUTING, -200, vec![untracks.clone()]));
    assert!(!with(PREROUTING, -199, vec![untracks.clone()]));
    assert!(!with(FORWARD, -300, vec![untracks.clone()]));
    assert!(!with(PREROUTING, -300, vec![accepts, untracks.clone()]));
    let jumps = Chain {
        rules: vec![rule(Outcome::Jump("d".into()), Established::All)],
        ..base("filter", PREROUTING, -300)
    };
    let jumped_to = Chain { rules: vec![untracks], ..Chain::default() };
    assert!(others([(IPV4, "t", "c", jumps), (IPV4, "t", "d", jumped_to)]).can_deny());
}

#[test]
fn devices_with_chains_at_ingress() {
    let at = |hook, devices: &[Device]| {
        let mut chain = base("filter", hook, -10);
        chain.base.as_mut().expect("a base chain").devices = devices.to_vec();
        chain
    };
    let name = |name: &str| Device::Name(name.to_owned());
    let others = others([
        (NETDEV, "a", "in", at(NETDEV_INGRESS, &[name("eth0"), Device::Prefix("vlan".to_owned())])),
        (NETDEV, "a", "out", at(1, &[name("eth1")])),
        (INET, "b", "in", at(INET_INGRESS, &[name("eth2")])),
        (INET, "b", "pre", at(0, &[])),
    ]);
    let devices = others.ingress();
    let met = |name: &str| devices.iter().any(|device| device.is(name));
    assert_eq!(["eth0", "eth1", "eth2", "vlan7", "eth"].map(met), [true, false, true, true, false]);
}
