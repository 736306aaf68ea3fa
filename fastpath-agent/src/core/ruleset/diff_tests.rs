//! Properties of the difference: a plan applied converges, applied twice is empty, what other programs made stays. Single cases are
//! in `examples`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{
    core::{
        model::MAX_DEVICES_PER_MESSAGE,
        ruleset::{
            desired, exclude,
            expr::Direction,
            observed::ObservedRule,
            rule::{Input, Traced},
            sets::{ExcludeSet, SetShape},
            wanted::Policy,
        },
    },
    kernel::{Ruleset, fake::FakeRuleset},
};

#[path = "diff_examples.rs"]
mod examples;

fn name(index: u32) -> IfName {
    IfName::new(&format!("eth{index}")).unwrap()
}

fn threshold(threshold: u32) -> Rule {
    Rule::Threshold { threshold, to: OwnChain::Offload }
}

fn evidence(direction: Direction) -> Vec<Rule> {
    let (input, traced) = (Input::Link, Traced::Forward);
    vec![Rule::Seen { direction, input, traced }, Rule::Trace { direction, input }, Rule::Untraced]
}

fn rules_mut(table: &mut DesiredTable, chain: OwnChain) -> &mut Vec<Rule> {
    table.chains.entry(chain).or_default()
}

fn table(indices: impl IntoIterator<Item = u32>) -> DesiredTable {
    DesiredTable {
        flowtable_priority: 0,
        counter: true,
        hw_offload: false,
        chain_priority: 300,
        postrouting_priority: i32::MIN,
        devices: indices.into_iter().map(|i| (IfIndex(i), name(i))).collect(),
        excluded_devices: BTreeSet::new(),
        exclusions: Default::default(),
        sets: vec![OwnSet::Devices, OwnSet::SlowPath, EVIDENCE[0], EVIDENCE[1]],
        keys: BTreeMap::new(),
        chains: [
            (OwnChain::Original, evidence(Direction::Original)),
            (OwnChain::Reply, evidence(Direction::Reply)),
            (
                OwnChain::Offload,
                vec![
                    Rule::OnlyEstablished,
                    Rule::OnlyManagedInput,
                    Rule::MeterOffloaded,
                    Rule::ByDirection(Direction::Original),
                    Rule::ByDirection(Direction::Reply),
                ],
            ),
            (OwnChain::Base, vec![threshold(20)]),
        ]
        .into(),
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

const EXCLUSIONS: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.1.0.0/16", "fd00::1", "tcp/443", "udp/50-60", "protocol/gre", "mark/1/3"];

/// The table with these exclusions.
fn excluding(table: DesiredTable, entries: &[&str]) -> DesiredTable {
    let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
    let exclusions = Arc::new(exclude::Exclusions::new(&entries, "").unwrap());
    let policy = Policy { exclusions, ..Policy::default() };
    let of_policy = desired::desired(&policy, [], &BTreeMap::new()).unwrap();
    let sets = of_policy.sets.into_iter().filter(|set| matches!(set, OwnSet::Exclude(_)));
    let rules = of_policy.chains[&OwnChain::Offload].iter().filter(|rule| rule.is_exclusion()).cloned();
    let rules: Vec<Rule> = rules.collect();
    let mut table = DesiredTable { exclusions: of_policy.exclusions, ..table };
    table.sets.extend(sets);
    rules_mut(&mut table, OwnChain::Offload).splice(1..1, rules);
    table
}

fn some_desired() -> impl Strategy<Value = Desired> {
    let table = (
        prop::sample::select(vec![0, 5]),
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![-110, 300]),
        prop::collection::btree_set(1u32..400, 0..300),
        prop::collection::vec(1u32..4, 0..3),
        any::<bool>(),
        any::<bool>(),
        any::<(bool, bool)>(),
        prop::collection::vec(prop::sample::select(EXCLUSIONS.as_slice()), 0..5),
    )
        .prop_map(
            |(
                priority,
                counter,
                hw_offload,
                chain_priority,
                devices,
                thresholds,
                assist,
                spare_ipsec,
                (postrouting, guarded),
                exclude,
            )| {
                let mut table = DesiredTable {
                    flowtable_priority: priority,
                    counter,
                    hw_offload,
                    chain_priority,
                    ..self::table(devices)
                };
                *rules_mut(&mut table, OwnChain::Base) = thresholds.into_iter().map(threshold).collect();
                if assist {
                    table.sets.push(OwnSet::Assist);
                    rules_mut(&mut table, OwnChain::Base).insert(0, Rule::Assist { to: OwnChain::Offload });
                }
                if spare_ipsec {
                    rules_mut(&mut table, OwnChain::Offload).insert(1, Rule::SpareIpsec);
                }
                if postrouting {
                    table.chains.insert(OwnChain::Trace, vec![Rule::TraceOf(Direction::Original)]);
                    let base = Rule::Threshold { threshold: 20, to: OwnChain::Trace };
                    table.chains.insert(OwnChain::Postrouting, vec![base]);
                }
                if guarded {
                    table.sets.push(OwnSet::RuleInputs);
                    table.keys.insert(OwnSet::RuleInputs, vec![Key::new(&7_u32.to_ne_bytes())]);
                    let guard = Rule::RuleInput { traced: Traced::Forward };
                    rules_mut(&mut table, OwnChain::Original).insert(0, guard);
                    table.chains.entry(OwnChain::Trace).or_insert_with(|| vec![Rule::Untraced]);
                }
                excluding(table, &exclude)
            },
        );
    prop::option::weighted(0.9, table)
}

/// What other programs may do to our table.
#[derive(Clone, Debug)]
enum Disturbance {
    DeleteTable,
    DeleteChain,
    DeleteBothChains,
    DeleteOurRules,
    DeleteOffloadRules,
    HookOffloadChain,
    WrongPolicy,
    ClearSet,
    WrongSetType,
    WrongMeter,
    StrangeExclusions,
    NoExclusions,
    DropDevices(usize),
    ForeignRule,
    ForeignRuleBehind,
    ForeignChain,
    ForeignSet,
}

fn some_disturbance() -> impl Strategy<Value = Disturbance> {
    use Disturbance::*;
    prop_oneof![
        Just(DeleteTable),
        Just(DeleteChain),
        Just(DeleteBothChains),
        Just(DeleteOurRules),
        Just(DeleteOffloadRules),
        Just(HookOffloadChain),
        Just(WrongPolicy),
        Just(ClearSet),
        Just(WrongSetType),
        Just(WrongMeter),
        Just(StrangeExclusions),
        Just(NoExclusions),
        (0usize..200).prop_map(DropDevices),
        Just(ForeignRule),
        Just(ForeignRuleBehind),
        Just(ForeignChain),
        Just(ForeignSet),
    ]
}

fn disturb(table: &mut Option<ObservedTable>, disturbance: &Disturbance) {
    if matches!(disturbance, Disturbance::DeleteTable) {
        *table = None;
    }
    let Some(table) = table else { return };
    let find = |name: &str| table.chains.iter().position(|c| c.name == name);
    let (base, offload) = (find(OwnChain::Base.name()), find(OwnChain::Offload.name()));
    let set = |name: OwnSet| table.sets.iter().position(|s| s.name == name.name());
    let (devices, meter) = (set(OwnSet::Devices), set(OwnSet::SlowPath));
    let delete_ours = |chain: &mut ObservedChain| chain.rules.retain(|r| r.owner == Owner::Foreign);
    let wrong = SetShape { key_type: 7, ..OwnSet::SlowPath.shape() };
    let foreign =
        |handle| ObservedRule { handle, owner: Owner::Foreign, exprs: vec![Expr::Counter], counter: None };
    match (disturbance, base, offload) {
        (Disturbance::DeleteChain, Some(_), _) => table.chains.retain(|c| c.name != OwnChain::Base.name()),
        (Disturbance::DeleteBothChains, ..) => {
            table.chains.retain(|c| OwnChain::named(&c.name).is_none());
        }
        (Disturbance::DeleteOurRules, Some(base), _) => delete_ours(&mut table.chains[base]),
        (Disturbance::DeleteOffloadRules, _, Some(offload)) => delete_ours(&mut table.chains[offload]),
        (Disturbance::HookOffloadChain, Some(base), Some(offload)) => {
            table.chains[offload].hook = table.chains[base].hook.clone();
        }
        (Disturbance::WrongPolicy, Some(base), _) => {
            table.chains[base].hook.as_mut().into_iter().for_each(|h| h.accept = false);
        }
        (Disturbance::ClearSet, ..) => {
            devices.into_iter().for_each(|set| table.sets[set].elements.clear());
        }
        (Disturbance::WrongSetType, ..) => {
            devices.into_iter().for_each(|set| table.sets[set].shape = wrong);
        }
        (Disturbance::WrongMeter, ..) => meter.into_iter().for_each(|set| table.sets[set].shape = wrong),
        (Disturbance::StrangeExclusions, ..) => {
            table.sets.iter_mut().for_each(|set| set.keys.insert(0, Key::new(&[0, 9])));
        }
        (Disturbance::NoExclusions, ..) => table.sets.iter_mut().for_each(|set| set.keys.clear()),
        (Disturbance::DropDevices(n), ..) => {
            for flowtable in table.flowtables.iter_mut().filter(|f| f.name == FLOWTABLE) {
                flowtable.devices = flowtable.devices.take().map(|d| d.into_iter().skip(*n).collect());
            }
        }
        (Disturbance::ForeignRule, Some(base), _) => table.chains[base].rules.insert(0, foreign(1 << 40)),
        (Disturbance::ForeignRuleBehind, _, Some(offload)) => {
            table.chains[offload].rules.insert(0, foreign(1 << 42));
        }
        (Disturbance::ForeignChain, ..) => table.chains.push(ObservedChain {
            name: "another".to_owned(),
            hook: None,
            rules: vec![ObservedRule {
                handle: 1 << 41,
                owner: Owner::Foreign,
                exprs: vec![Expr::Counter],
                counter: None,
            }],
        }),
        (Disturbance::ForeignSet, ..) => table.sets.push(ObservedSet {
            name: "others".to_owned(),
            handle: 4,
            shape: OwnSet::Devices.shape(),
            elements: BTreeSet::from([IfIndex(3)]),
            keys: Vec::new(),
        }),
        _ => {}
    }
}

fn foreign_parts(table: &ObservedTable) -> (Vec<ObservedChain>, Vec<ObservedSet>, Vec<ObservedRule>) {
    let own = |chain: &&ObservedChain| OwnChain::named(&chain.name).is_some();
    let (in_ours, foreign): (Vec<_>, Vec<_>) = table.chains.iter().partition(own);
    let foreign_rules = |chain: &&ObservedChain| {
        chain.rules.iter().filter(|r| r.owner == Owner::Foreign).cloned().collect::<Vec<_>>()
    };
    let mut rules: Vec<_> = in_ours.iter().flat_map(foreign_rules).collect();
    rules.sort_by_key(|rule| rule.handle);
    (
        foreign.into_iter().cloned().collect(),
        table.sets.iter().filter(|s| OwnSet::named(&s.name).is_none()).cloned().collect(),
        rules,
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
                for (chain, want) in &want.chains {
                    let rules = &has.chain(*chain).unwrap().rules;
                    let rules: Vec<_> =
                        rules.iter().filter(|r| r.owner == Owner::Agent).map(|r| r.exprs.clone()).collect();
                    prop_assert_eq!(rules, want.iter().map(Rule::exprs).collect::<Vec<_>>());
                }
                let own: BTreeSet<_> = has.sets.iter().filter_map(|s| OwnSet::named(&s.name)).collect();
                prop_assert_eq!(own, want.sets.iter().copied().collect());
                for set in &want.sets {
                    prop_assert!(set.fits(&has.set(*set).unwrap().shape, 100), "{set}");
                }
                for set in want.sets.iter().filter(|set| set.has_keys()) {
                    prop_assert_eq!(&has.set(*set).unwrap().keys, want.keys(*set));
                }
                let chains: BTreeSet<_> =
                    has.chains.iter().filter_map(|chain| OwnChain::named(&chain.name)).collect();
                prop_assert_eq!(chains, want.chains.keys().copied().collect());
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
        // The chain itself stays as long as it is right, and so do other programs' rules in it.
        use Disturbance::*;
        let chain_wrong = disturbances.iter().any(
            |d| matches!(d, WrongPolicy | WrongSetType | WrongMeter | DeleteTable | HookOffloadChain));
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
        kernel.disturb(|t| {
            disturb(t, &Disturbance::ForeignChain);
            t.as_mut().unwrap().owner = Owner::Foreign;
        });
        let table = kernel.table.clone();
        prop_assert_eq!(step(&mut kernel, &desired, ForeignTable::Refuse), Decision::Foreign);
        prop_assert_eq!(&kernel.table, &table);
        step(&mut kernel, &desired, ForeignTable::TakeOver);
        if desired.is_some() {
            prop_assert_eq!(&kernel.table.as_ref().unwrap().owner, &Owner::Agent);
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
            panic!("not the agent's");
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
        prop_assert_eq!(super::after(observed.clone(), &ops), kernel.table.clone(), "the cache agrees with the kernel");
    }
}
