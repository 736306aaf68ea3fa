//! Properties of the difference: a plan applied converges, applied twice is empty, what others made stays.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    core::observed::ObservedRule,
    kernel::{Ruleset, fake::FakeRuleset},
};

fn name(index: u32) -> IfName {
    IfName::new(&format!("eth{index}")).unwrap()
}

fn table(indices: impl IntoIterator<Item = u32>) -> DesiredTable {
    DesiredTable {
        flowtable_priority: 0,
        counter: true,
        hw_offload: false,
        chain_priority: 300,
        devices: indices.into_iter().map(|i| (IfIndex(i), name(i))).collect(),
        rules: vec![Rule::Offload { threshold: 20, spare_ipsec: true }],
    }
}

fn fake() -> FakeRuleset {
    FakeRuleset::new((1..2000).map(name))
}

/// Diffs and applies once.
fn step(kernel: &mut FakeRuleset, desired: &Desired, foreign: ForeignTable) -> Decision {
    let observed = kernel.observe().unwrap();
    let decision = diff(desired, &observed, foreign);
    if let Decision::Apply(ops) = &decision
        && !ops.is_empty()
    {
        kernel.commit(ops, observed.generation).unwrap_or_else(|e| panic!("{e}: {ops:#?}\non {observed:#?}"));
    }
    decision
}

fn some_desired() -> impl Strategy<Value = Desired> {
    let table = (
        prop::sample::select(vec![0, 5]),
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![-110, 300]),
        prop::collection::btree_set(1u32..400, 0..300),
        prop::collection::vec(1u32..4, 0..3),
    )
        .prop_map(|(flowtable_priority, counter, hw_offload, chain_priority, devices, rules)| {
            DesiredTable {
                flowtable_priority,
                counter,
                hw_offload,
                chain_priority,
                rules: rules
                    .into_iter()
                    .map(|threshold| Rule::Offload { threshold, spare_ipsec: threshold % 2 == 0 })
                    .collect(),
                ..self::table(devices)
            }
        });
    prop::option::weighted(0.9, table)
}

/// What others may do to our table.
#[derive(Clone, Debug)]
enum Disturbance {
    DeleteTable,
    DeleteChain,
    DeleteOurRules,
    WrongPolicy,
    ClearSet,
    WrongSetType,
    DropDevices(usize),
    ForeignRule,
    ForeignChain,
    ForeignSet,
}

fn some_disturbance() -> impl Strategy<Value = Disturbance> {
    use Disturbance::*;
    prop_oneof![
        Just(DeleteTable),
        Just(DeleteChain),
        Just(DeleteOurRules),
        Just(WrongPolicy),
        Just(ClearSet),
        Just(WrongSetType),
        (0usize..200).prop_map(DropDevices),
        Just(ForeignRule),
        Just(ForeignChain),
        Just(ForeignSet),
    ]
}

fn disturb(table: &mut Option<ObservedTable>, disturbance: &Disturbance) {
    if matches!(disturbance, Disturbance::DeleteTable) {
        *table = None;
    }
    let Some(table) = table else { return };
    let chain = table.chains.iter_mut().find(|c| c.name == CHAIN);
    let set = table.sets.iter_mut().find(|s| s.name == DEVICE_SET);
    let flowtable = table.flowtables.iter_mut().find(|f| f.name == FLOWTABLE);
    match (disturbance, chain, set, flowtable) {
        (Disturbance::DeleteChain, Some(_), ..) => table.chains.retain(|c| c.name != CHAIN),
        (Disturbance::DeleteOurRules, Some(chain), ..) => chain.rules.retain(|r| r.owner == Owner::Foreign),
        (Disturbance::WrongPolicy, Some(chain), ..) => {
            chain.hook.as_mut().into_iter().for_each(|h| h.accept = false);
        }
        (Disturbance::ClearSet, _, Some(set), _) => set.elements.clear(),
        (Disturbance::WrongSetType, _, Some(set), _) => set.key_type = 7,
        (Disturbance::DropDevices(n), _, _, Some(flowtable)) => {
            flowtable.devices = flowtable.devices.take().map(|d| d.into_iter().skip(*n).collect());
        }
        (Disturbance::ForeignRule, Some(chain), ..) => chain.rules.insert(
            0,
            ObservedRule {
                handle: 1 << 40,
                owner: Owner::Foreign,
                exprs: vec![Expr::Counter],
                counter: None,
            },
        ),
        (Disturbance::ForeignChain, ..) => table.chains.push(ObservedChain {
            name: "somebody".to_owned(),
            hook: None,
            rules: vec![ObservedRule {
                handle: 1 << 41,
                owner: Owner::Foreign,
                exprs: vec![Expr::Counter],
                counter: None,
            }],
        }),
        (Disturbance::ForeignSet, ..) => table.sets.push(ObservedSet {
            name: "somebodys".to_owned(),
            key_type: KEY_TYPE_IFINDEX,
            elements: BTreeSet::from([IfIndex(3)]),
        }),
        _ => {}
    }
}

fn foreign_parts(table: &ObservedTable) -> (Vec<ObservedChain>, Vec<ObservedSet>, Vec<ObservedRule>) {
    (
        table.chains.iter().filter(|c| c.name != CHAIN).cloned().collect(),
        table.sets.iter().filter(|s| s.name != DEVICE_SET).cloned().collect(),
        table
            .chains
            .iter()
            .filter(|c| c.name == CHAIN)
            .flat_map(|c| c.rules.iter().filter(|r| r.owner == Owner::Foreign))
            .cloned()
            .collect(),
    )
}

proptest! {
    #[test]
    fn any_plan_converges_and_applied_twice_is_empty(
        wanted in prop::collection::vec((some_desired(), prop::collection::vec(some_disturbance(), 0..4)), 1..5)
    ) {
        let mut kernel = fake();
        for (desired, disturbances) in wanted {
            step(&mut kernel, &desired, ForeignTable::Refuse);
            prop_assert_eq!(step(&mut kernel, &desired, ForeignTable::Refuse), Decision::Apply(Vec::new()));
            if let (Some(want), Some(has)) = (&desired, &kernel.table) {
                let devices: BTreeSet<_> = want.devices.values().cloned().collect();
                let flowtable = has.flowtables.iter().find(|f| f.name == FLOWTABLE).unwrap();
                prop_assert_eq!(flowtable.devices.as_ref(), Some(&devices));
                let chain = has.chains.iter().find(|c| c.name == CHAIN).unwrap();
                let rules: Vec<_> =
                    chain.rules.iter().filter(|r| r.owner == Owner::Ours).map(|r| r.exprs.clone()).collect();
                prop_assert_eq!(rules, want.rules.iter().map(Rule::exprs).collect::<Vec<_>>());
            } else {
                prop_assert!(desired.is_none() && kernel.table.is_none());
            }
            for disturbance in disturbances {
                kernel.disturb(|t| disturb(t, &disturbance));
            }
        }
    }

    #[test]
    fn what_others_put_into_our_table_stays(
        before in some_desired().prop_filter("a table", Option::is_some),
        disturbances in prop::collection::vec(some_disturbance(), 0..6),
        devices in prop::collection::btree_set(1u32..400, 0..300),
    ) {
        let mut kernel = fake();
        step(&mut kernel, &before, ForeignTable::Refuse);
        for disturbance in &disturbances {
            kernel.disturb(|t| disturb(t, disturbance));
        }
        // The chain itself stays as long as it is right, and so do rules of others in it.
        let chain_wrong = disturbances.iter().any(
            |d| matches!(d, Disturbance::WrongPolicy | Disturbance::WrongSetType | Disturbance::DeleteTable));
        prop_assume!(!chain_wrong);
        let foreign = kernel.table.as_ref().map(foreign_parts);
        let after = before.map(|t| DesiredTable { devices: table(devices).devices, ..t });
        step(&mut kernel, &after, ForeignTable::Refuse);
        prop_assert_eq!(kernel.table.as_ref().map(foreign_parts), foreign);
    }

    #[test]
    fn a_foreign_table_is_never_touched_unless_taken_over(desired in some_desired(), had in some_desired()) {
        let mut kernel = fake();
        step(&mut kernel, &had, ForeignTable::Refuse);
        prop_assume!(kernel.table.is_some());
        kernel.disturb(|t| t.as_mut().unwrap().owner = Owner::Foreign);
        let table = kernel.table.clone();
        prop_assert_eq!(step(&mut kernel, &desired, ForeignTable::Refuse), Decision::Foreign);
        prop_assert_eq!(&kernel.table, &table);
        step(&mut kernel, &desired, ForeignTable::TakeOver);
        if desired.is_some() {
            prop_assert_eq!(&kernel.table.as_ref().unwrap().owner, &Owner::Ours);
            prop_assert_eq!(
                step(&mut kernel, &desired, ForeignTable::Refuse), Decision::Apply(Vec::new()));
        } else {
            prop_assert_eq!(&kernel.table, &table, "nothing is wanted, so nothing is taken");
        }
    }

    #[test]
    fn a_change_of_devices_concerns_only_those(
        before in prop::collection::btree_set(1u32..1500, 0..600),
        after in prop::collection::btree_set(1u32..1500, 0..600),
    ) {
        let mut kernel = fake();
        step(&mut kernel, &Some(table(before.clone())), ForeignTable::Refuse);
        let observed = kernel.observe().unwrap();
        let Decision::Apply(ops) = diff(&Some(table(after.clone())), &observed, ForeignTable::Refuse) else {
            panic!("ours");
        };
        let mut added = BTreeSet::new();
        let mut removed = BTreeSet::new();
        for op in &ops {
            match op {
                Op::AddDevices(names) => {
                    prop_assert!(names.len() <= MAX_DEVICES_PER_MESSAGE);
                    added.extend(names.iter().cloned());
                }
                Op::RemoveDevices(names) => {
                    prop_assert!(names.len() <= MAX_DEVICES_PER_MESSAGE);
                    removed.extend(names.iter().cloned());
                }
                Op::AddIndices(_) | Op::RemoveIndices(_) => {}
                other => prop_assert!(false, "{other:?} has no business here"),
            }
        }
        prop_assert_eq!(added, after.difference(&before).map(|i| name(*i)).collect());
        prop_assert_eq!(removed, before.difference(&after).map(|i| name(*i)).collect());
        if !ops.is_empty() {
            kernel.commit(&ops, observed.generation).unwrap();
        }
        prop_assert_eq!(super::after(&observed, &ops), kernel.table.clone(), "the cache agrees with the kernel");
    }
}

#[test]
fn the_first_plan_puts_things_in_the_order_that_the_kernel_needs() {
    let ops = create(&table([1, 2]));
    assert!(matches!(
        ops.as_slice(),
        [
            Op::AddTable,
            Op::AddFlowtable { .. },
            Op::AddDeviceSet,
            Op::AddDevices(_),
            Op::AddIndices(_),
            Op::AddChain { .. },
            Op::AddRule { .. }
        ]
    ));
}

#[test]
fn a_renamed_interface_changes_devices_only() {
    let mut kernel = fake();
    step(&mut kernel, &Some(table([1, 2])), ForeignTable::Refuse);
    let mut want = table([1]);
    want.devices.insert(IfIndex(2), name(99));
    let observed = kernel.observe().unwrap();
    assert_eq!(
        diff(&Some(want), &observed, ForeignTable::Refuse),
        Decision::Apply(vec![Op::RemoveDevices(vec![name(2)]), Op::AddDevices(vec![name(99)])])
    );
}

#[test]
fn a_flowtable_too_long_to_be_read_is_kept_and_changed_by_what_the_set_lacks() {
    let mut kernel = fake();
    kernel.readable_devices = 3;
    let settled = Decision::Apply(Vec::new());
    let want = |devices: std::ops::Range<u32>| Some(DesiredTable { flowtable_priority: 5, ..table(devices) });
    step(&mut kernel, &want(1..6), ForeignTable::Refuse);
    assert_eq!(kernel.observe().unwrap().table.unwrap().flowtables[0].devices, None);
    assert_eq!(step(&mut kernel, &want(1..6), ForeignTable::Refuse), settled);

    let one_more = [Op::AddDevices(vec![name(6)]), Op::AddIndices(vec![IfIndex(6)])];
    assert_eq!(step(&mut kernel, &want(1..7), ForeignTable::Refuse), Decision::Apply(one_more.into()));
    assert_eq!(step(&mut kernel, &want(1..7), ForeignTable::Refuse), settled);

    // What nobody wants any more leaves the set, so that no rule refers to it, and the flowtable once it can be read.
    let fewer = [Op::RemoveIndices(vec![IfIndex(1)])];
    assert_eq!(step(&mut kernel, &want(2..7), ForeignTable::Refuse), Decision::Apply(fewer.into()));
    assert_eq!(step(&mut kernel, &want(2..7), ForeignTable::Refuse), settled);
    kernel.readable_devices = 300;
    let late = [Op::RemoveDevices(vec![name(1)])];
    assert_eq!(step(&mut kernel, &want(2..7), ForeignTable::Refuse), Decision::Apply(late.into()));
    assert_eq!(step(&mut kernel, &want(2..7), ForeignTable::Refuse), settled);
}

#[test]
fn foreign_objects_are_named() {
    let mut kernel = fake();
    step(&mut kernel, &Some(table([1])), ForeignTable::Refuse);
    assert_eq!(foreign_objects(kernel.table.as_ref().unwrap()), Vec::<String>::new());
    for disturbance in [Disturbance::ForeignRule, Disturbance::ForeignChain, Disturbance::ForeignSet] {
        kernel.disturb(|t| disturb(t, &disturbance));
    }
    assert_eq!(
        foreign_objects(kernel.table.as_ref().unwrap()),
        ["chain somebody", "set somebodys", "rule with handle 1099511627776 in chain kindnet-fastpath-chain"]
    );
    let _: BTreeMap<IfIndex, IfName> = table([1]).devices;
}
