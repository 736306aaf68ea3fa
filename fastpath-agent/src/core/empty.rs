//! Empties the flowtable: all flows in it go back to the normal path, and those that the filters still accept come back
//! with their next packet. Connections with their NAT mappings aren't touched.
//!
//! nftables has no such operation. The flowtable is deleted and made again with the same devices in one transaction,
//! and with it the rules that offer flows to it, since nothing may refer to a flowtable that is deleted.

use std::collections::BTreeSet;

use super::{
    diff::chunks,
    expr::Expr,
    model::{CHAIN, FLOWTABLE, IfName, MAX_DEVICES_PER_MESSAGE, OFFLOAD_CHAIN, TABLE},
    observed::{Counter, ObservedChain, ObservedRule, ObservedTable, Owner},
    plan::Op,
};

/// Why a flowtable can't be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Its devices have to be known to make it again.
    #[error(
        "its more than about 1,600 interfaces don't fit the kernel's answer. `nft delete table inet {TABLE}` does it: a running agent makes \
         the table again at once"
    )]
    Unreadable,
    /// Nobody else's rule is deleted for it.
    #[error("a rule that somebody else put into table inet {TABLE} refers to {FLOWTABLE}: delete that rule")]
    InUse,
}

/// Flows that our rules have offered to the flowtable so far; `None` where one of them doesn't count. The flowtable is
/// empty for certain if this is as it was when it was emptied.
pub fn offers(table: &ObservedTable) -> Option<u64> {
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.filter(|rule| refers(&rule.exprs)).map(|rule| Some(rule.counter?.packets)).sum()
}

/// The operations that empty the flowtable of our table; none where there is no flowtable.
///
/// They leave everything as it was observed: flags, priority, devices, and our rules with the values of their counters.
pub fn empty(table: &ObservedTable) -> Result<Vec<Op>, Obstacle> {
    let Some(flowtable) = table.flowtables.iter().find(|f| f.name == FLOWTABLE) else {
        return Ok(Vec::new());
    };
    let devices = flowtable.devices.as_ref().ok_or(Obstacle::Unreadable)?;
    let (delete_rules, add_rules) = rules(table)?;

    let mut ops = delete_rules;
    ops.extend(remove_most(devices));
    ops.push(Op::DeleteFlowtable);
    ops.push(Op::AddFlowtable {
        priority: flowtable.priority,
        counter: flowtable.counter,
        hw_offload: flowtable.hw_offload,
    });
    ops.extend(chunks(devices.iter()).map(Op::AddDevices));
    ops.extend(add_rules);
    Ok(ops)
}

/// The kernel names all devices when it announces that a flowtable is deleted. Where they don't fit one message every
/// listener is told that it has lost some, so no more are left in it than fit.
pub(super) fn remove_most(devices: &BTreeSet<IfName>) -> impl Iterator<Item = Op> {
    chunks(devices.iter().skip(MAX_DEVICES_PER_MESSAGE)).map(Op::RemoveDevices)
}

/// Deletes our rules from the first that refers to the flowtable on, and appends them again, so that they stay in order.
fn rules(table: &ObservedTable) -> Result<(Vec<Op>, Vec<Op>), Obstacle> {
    let (mut delete, mut add) = (Vec::new(), Vec::new());
    for ObservedChain { name, rules, .. } in &table.chains {
        let ours = [CHAIN, OFFLOAD_CHAIN].into_iter().find(|chain| chain == name);
        let in_the_way = |rule: &&ObservedRule| ours.is_none() || rule.owner == Owner::Foreign;
        if rules.iter().filter(in_the_way).any(|rule| refers(&rule.exprs)) {
            return Err(Obstacle::InUse);
        }
        let Some(chain) = ours else { continue };
        let behind = rules.iter().skip_while(|rule| !refers(&rule.exprs));
        for rule in behind.filter(|rule| rule.owner == Owner::Ours) {
            delete.push(Op::DeleteRule { chain, handle: rule.handle });
            add.push(Op::AddRule { chain, exprs: counting_from(rule.counter, rule.exprs.clone()) });
        }
    }
    Ok((delete, add))
}

pub(super) fn refers(exprs: &[Expr]) -> bool {
    exprs.iter().any(|e| matches!(e, Expr::FlowAdd { flowtable } if flowtable == FLOWTABLE))
}

/// The instructions of a rule with its counter's value (a packet that it counts in the meantime is lost to it).
pub(super) fn counting_from(counter: Option<Counter>, exprs: Vec<Expr>) -> Vec<Expr> {
    let Some(value) = counter else { return exprs };
    let on = |expr| if expr == Expr::Counter { Expr::CounterFrom(value) } else { expr };
    exprs.into_iter().map(on).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            desired::DesiredTable,
            diff::{self, Decision, ForeignTable},
            model::IfIndex,
            observed::ObservedRule,
            rule::Rule,
            sets::OwnSet,
        },
        kernel::{Ruleset, fake::FakeRuleset},
    };

    fn name(index: u32) -> IfName {
        IfName::new(&format!("eth{index}")).unwrap()
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
            sets: vec![OwnSet::Devices, OwnSet::SlowPath],
            base_rules: vec![Rule::Threshold { threshold: 20 }],
            offload_rules: vec![Rule::OnlyEstablished, Rule::Offload, Rule::Meter],
        });
        let mut kernel = FakeRuleset::new((1..=devices).map(name));
        let observed = kernel.observe().unwrap();
        let Decision::Apply(ops) = diff::diff(&want, &observed, ForeignTable::Refuse) else { panic!("ours") };
        kernel.commit(&ops, observed.generation).unwrap();
        let rules = rules(&mut kernel);
        rules[OFFLOADS].counter = Some(Counter { packets: 7, bytes: 100 });
        kernel
    }

    /// Place of the rule that refers to the flowtable.
    const OFFLOADS: usize = 1;

    fn rules(kernel: &mut FakeRuleset) -> &mut Vec<ObservedRule> {
        let chains = &mut kernel.table.as_mut().unwrap().chains;
        &mut chains.iter_mut().find(|chain| chain.name == OFFLOAD_CHAIN).unwrap().rules
    }

    fn ops(kernel: &FakeRuleset) -> Vec<Op> {
        empty(kernel.table.as_ref().unwrap()).unwrap()
    }

    /// Nothing but the rules' handles, which the kernel gives anew.
    fn without_handles(kernel: &FakeRuleset) -> ObservedTable {
        let mut table = kernel.table.clone().unwrap();
        table.chains.iter_mut().flat_map(|c| &mut c.rules).for_each(|rule| rule.handle = 0);
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
        let chain = OFFLOAD_CHAIN;
        let behind = rules[OFFLOADS..].iter().map(|r| Op::DeleteRule { chain, handle: r.handle });
        let behind: Vec<Op> = behind.collect();
        rules.insert(OFFLOADS + 1, foreign);
        assert_eq!(ops(&kernel)[..2], behind);
        assert!(matches!(ops(&kernel)[2], Op::DeleteFlowtable), "{:?}", ops(&kernel));
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
}
