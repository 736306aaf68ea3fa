//! Emptying against a ruleset in memory: all is as before, and what can't be done right isn't done.

use std::collections::BTreeMap;

use super::*;
use crate::{
    core::{
        model::{Counter, IfIndex},
        ruleset::{
            diff::{self, Decision, ForeignTable},
            rule::{Input, Traced},
            wanted::DesiredTable,
        },
    },
    kernel::{Ruleset, fake::FakeRuleset},
};

fn name(index: u32) -> IfName {
    IfName::new(&format!("eth{index}")).unwrap()
}

fn evidence(direction: Direction) -> Vec<Rule> {
    let (input, traced) = (Input::Link, Traced::Forward);
    vec![Rule::Seen { direction, input, traced }, Rule::Trace { direction, input }, Rule::Untraced]
}

/// A kernel with our table over so many devices, whose rules have counted.
fn kernel(devices: u32) -> FakeRuleset {
    let want = Some(DesiredTable {
        flowtable_priority: -3,
        counter: true,
        hw_offload: false,
        chain_priority: 300,
        devices: (1..=devices).map(|i| (IfIndex(i), name(i))).collect(),
        excluded_devices: BTreeSet::new(),
        exclusions: Default::default(),
        sets: vec![OwnSet::Devices, OwnSet::SlowPath, EVIDENCE[0], EVIDENCE[1]],
        postrouting_priority: 0,
        keys: BTreeMap::new(),
        chains: [
            (OwnChain::Original, evidence(Direction::Original)),
            (OwnChain::Reply, evidence(Direction::Reply)),
            (OwnChain::Offload, vec![Rule::OnlyEstablished, Rule::ByDirection(Direction::Reply)]),
            (OwnChain::Base, vec![Rule::Threshold { threshold: 20, to: OwnChain::Offload }]),
        ]
        .into(),
    });
    let mut kernel = FakeRuleset::new((1..=devices).map(name));
    let observed = kernel.observe().unwrap();
    let Decision::Apply(ops) = diff::diff(&want, &observed, ForeignTable::Refuse) else {
        panic!("not the agent's")
    };
    kernel.commit(&ops, observed.generation).unwrap();
    let rules = rules(&mut kernel);
    rules[OFFLOADS].counter = Some(Counter { packets: 7, bytes: 100 });
    kernel
}

/// Place of the rule that refers to the flowtable.
const OFFLOADS: usize = 0;

fn rules(kernel: &mut FakeRuleset) -> &mut Vec<ObservedRule> {
    rules_of(kernel, OwnChain::Original)
}

fn rules_of(kernel: &mut FakeRuleset, chain: OwnChain) -> &mut Vec<ObservedRule> {
    let chains = &mut kernel.table.as_mut().unwrap().chains;
    &mut chains.iter_mut().find(|observed| observed.name == chain.name()).unwrap().rules
}

fn ops(kernel: &FakeRuleset) -> Vec<Op> {
    empty(kernel.table.as_ref().unwrap()).unwrap()
}

/// Without handles, which the kernel gives again.
fn without_handles(kernel: &FakeRuleset) -> ObservedTable {
    let mut table = kernel.table.clone().unwrap();
    table.chains.iter_mut().flat_map(|c| &mut c.rules).for_each(|rule| rule.handle = 0);
    table.sets.iter_mut().for_each(|set| set.handle = 0);
    table
}

#[test]
fn all_stands_as_before_with_any_number_of_devices() {
    for devices in [0, 1, 128, 129, 256, 257, 1000] {
        let mut kernel = kernel(devices);
        let before = without_handles(&kernel);
        let ops = ops(&kernel);
        assert!(ops.contains(&Op::DeleteFlowtable));
        let removed: usize =
            ops.iter().map(|op| if let Op::RemoveDevices(d) = op { d.len() } else { 0 }).sum();
        assert_eq!(removed, (devices as usize).saturating_sub(MAX_DEVICES_PER_MESSAGE));
        let generation = kernel.observe().unwrap().generation;
        kernel.commit(&ops, generation).unwrap_or_else(|error| panic!("{devices} devices: {error}"));
        assert_eq!(without_handles(&kernel), before, "{devices} devices");
        assert_eq!(offers(kernel.table.as_ref().unwrap()), Some(7));
    }
}

#[test]
fn without_a_flowtable_there_is_nothing_to_do() {
    let mut kernel = kernel(2);
    kernel.table.as_mut().unwrap().chains.clear();
    kernel.table.as_mut().unwrap().flowtables.clear();
    assert_eq!(ops(&kernel), []);
    assert_eq!(offers(kernel.table.as_ref().unwrap()), Some(0));
}

#[test]
fn rules_that_do_not_refer_to_it_stay_unless_they_come_after() {
    let mut kernel = kernel(2);
    let foreign =
        ObservedRule { handle: 99, owner: Owner::Foreign, exprs: vec![Expr::Counter], counter: None };
    let rules = rules(&mut kernel);
    let chain = OwnChain::Original;
    let behind = rules[OFFLOADS..].iter().map(|r| Op::DeleteRule { chain, handle: r.handle });
    let behind: Vec<Op> = behind.collect();
    rules.insert(OFFLOADS + 1, foreign);
    assert!(behind.iter().all(|op| ops(&kernel).contains(op)));
    let deletes_rule = |op: &&Op| matches!(op, Op::DeleteRule { .. });
    assert_eq!(ops(&kernel).iter().filter(deletes_rule).count(), 2 * 3, "{:?}", ops(&kernel));
}

#[test]
fn revoking_puts_set_and_rule_first_and_then_only_adds() {
    let mut kernel = kernel(2);
    let revoke = |kernel: &mut FakeRuleset, id| {
        let observed = kernel.observe().unwrap();
        let ops = revoke(observed.table.as_ref().unwrap(), vec![id], 1).unwrap();
        kernel.commit(&ops, observed.generation).unwrap();
        ops
    };
    let ops = revoke(&mut kernel, 7);
    assert_eq!(ops[..2], [Op::AddSet(OwnSet::Revoked), Op::AddRevoked { ids: vec![7], timeout_ms: 1 }]);
    let first = [Rule::Revoked, Rule::OnlyEstablished, Rule::ByDirection(Direction::Reply)];
    let recognised = |kernel: &mut FakeRuleset| -> Vec<Rule> {
        rules_of(kernel, OwnChain::Offload).iter().filter_map(|rule| Rule::recognise(&rule.exprs)).collect()
    };
    assert_eq!(recognised(&mut kernel), first);
    let again = revoke(&mut kernel, 8);
    assert_eq!(again[0], Op::AddRevoked { ids: vec![8], timeout_ms: 1 });
    assert_eq!(recognised(&mut kernel), first);
    assert_eq!(offers(kernel.table.as_ref().unwrap()), Some(7));
}

#[test]
fn what_it_cannot_do_right_it_does_not() {
    let mut unreadable = kernel(2);
    unreadable.table.as_mut().unwrap().flowtables[0].devices = None;
    assert_eq!(empty(unreadable.table.as_ref().unwrap()), Err(Obstacle::Unreadable));
    let mut in_use = kernel(2);
    rules(&mut in_use)[OFFLOADS].owner = Owner::Foreign;
    assert_eq!(empty(in_use.table.as_ref().unwrap()), Err(Obstacle::InUse));
}
