//! Properties of the difference: a plan applied converges, applied twice is empty, what others made stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{
    core::{
        link::select::Selection,
        ruleset::{
            desired::{self, Policy},
            exclude,
            expr::Direction,
            observed::ObservedRule,
            rule::{Input, Traced},
            sets::{ExcludeSet, SetShape},
        },
    },
    kernel::{Ruleset, fake::FakeRuleset},
};

fn name(index: u32) -> IfName {
    IfName::new(&format!("eth{index}")).unwrap()
}

fn threshold(threshold: u32) -> Rule {
    Rule::Threshold { threshold, to: OwnChain::Offload }
}

fn evidence(direction: Direction) -> Vec<Rule> {
    let (input, traced) = (Input::Link, Traced::Forward);
    vec![Rule::Seen { direction, input, traced }, Rule::Trace { direction, input, last: true }]
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
    let policy = Policy {
        threshold: 20,
        chain_priority: 300,
        flowtable_priority: 0,
        counter: true,
        hw_offload: false,
        spare_ipsec: false,
        assist: false,
        selection: Selection::new(&[], &[]).unwrap(),
        exclusions: Arc::new(exclude::Exclusions::new(&entries, "").unwrap()),
        surroundings: Default::default(),
    };
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
                    table.chains.insert(OwnChain::Trace, vec![Rule::TraceOriginal]);
                    let base = Rule::Threshold { threshold: 20, to: OwnChain::Trace };
                    table.chains.insert(OwnChain::Postrouting, vec![base]);
                }
                if guarded {
                    table.sets.push(OwnSet::RuleInputs);
                    table.keys.insert(OwnSet::RuleInputs, vec![Key::new(&7_u32.to_ne_bytes())]);
                    let guard = Rule::RuleInput { direction: Direction::Original, traced: Traced::Forward };
                    rules_mut(&mut table, OwnChain::Original).insert(0, guard);
                }
                excluding(table, &exclude)
            },
        );
    prop::option::weighted(0.9, table)
}

/// What others may do to our table.
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
            handle: 4,
            shape: OwnSet::Devices.shape(),
            elements: BTreeSet::from([IfIndex(3)]),
            keys: Vec::new(),
        }),
        _ => {}
    }
}

fn foreign_parts(table: &ObservedTable) -> (Vec<ObservedChain>, Vec<ObservedSet>, Vec<ObservedRule>) {
    let ours = |chain: &&ObservedChain| OwnChain::named(&chain.name).is_some();
    let (in_ours, foreign): (Vec<_>, Vec<_>) = table.chains.iter().partition(ours);
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
                        rules.iter().filter(|r| r.owner == Owner::Ours).map(|r| r.exprs.clone()).collect();
                    prop_assert_eq!(rules, want.iter().map(Rule::exprs).collect::<Vec<_>>());
                }
                let ours: BTreeSet<_> = has.sets.iter().filter_map(|s| OwnSet::named(&s.name)).collect();
                prop_assert_eq!(ours, want.sets.iter().copied().collect());
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
        // The chain itself stays as long as it is right, and so do rules of others in it.
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
        prop_assert_eq!(super::after(observed.clone(), &ops), kernel.table.clone(), "the cache agrees with the kernel");
    }
}

/// As `nft list ruleset > file; nft -f file` leaves it: without our marks.
#[test]
fn a_rendering_of_ours_is_taken_over_whoever_loaded_it() {
    let mut kernel = fake();
    let want = Some(table([1, 2]));
    step(&mut kernel, &want, ForeignTable::Refuse);
    let unmarked = |table: &mut Option<ObservedTable>| {
        let table = table.as_mut().unwrap();
        table.owner = Owner::Foreign;
        table
            .chains
            .iter_mut()
            .flat_map(|chain| &mut chain.rules)
            .for_each(|rule| rule.owner = Owner::Foreign);
    };
    kernel.disturb(unmarked);
    let Decision::Apply(ops) = step(&mut kernel, &want, ForeignTable::Refuse) else { panic!("ours") };
    assert_eq!(ops[0], Op::DeleteTable);
    assert_eq!(step(&mut kernel, &want, ForeignTable::Refuse), Decision::Apply(Vec::new()));
    kernel.disturb(unmarked);
    assert_eq!(step(&mut kernel, &None, ForeignTable::Refuse), Decision::Apply(vec![Op::DeleteTable]));
    // What another program makes under the same name has other chains, or none but the first.
    for change in [
        |t: &mut ObservedTable| t.chains.retain(|chain| chain.name == OwnChain::Base.name()),
        |t: &mut ObservedTable| t.chains.iter_mut().for_each(|chain| chain.name += "-of-theirs"),
        |t: &mut ObservedTable| t.flowtables[0].name = "theirs".to_owned(),
    ] {
        step(&mut kernel, &want, ForeignTable::Refuse);
        kernel.disturb(|t| {
            unmarked(t);
            change(t.as_mut().unwrap());
        });
        assert_eq!(step(&mut kernel, &want, ForeignTable::Refuse), Decision::Foreign);
        kernel.disturb(|t| *t = None);
    }
}

#[test]
fn a_chain_that_moves_behind_others_puts_flows_out_and_one_that_moves_forward_does_not() {
    let mut kernel = fake();
    let at = |priority| Some(DesiredTable { chain_priority: priority, ..table([1]) });
    step(&mut kernel, &at(300), ForeignTable::Refuse);
    for (priority, expected) in [(401, true), (300, false)] {
        let Decision::Apply(ops) = step(&mut kernel, &at(priority), ForeignTable::Refuse) else {
            panic!("ours")
        };
        assert_eq!(empties(&ops), expected, "{priority}: {ops:#?}");
        assert!(ops.contains(&Op::AddBaseChain { chain: OwnChain::Base, priority }));
        assert_eq!(step(&mut kernel, &at(priority), ForeignTable::Refuse), Decision::Apply(Vec::new()));
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
            Op::AddSet(OwnSet::Devices),
            Op::AddSet(OwnSet::SlowPath),
            Op::AddSet(OwnSet::Seen(_)),
            Op::AddSet(OwnSet::Seen(_)),
            Op::AddDevices(_),
            Op::AddIndices(_),
            Op::AddChain(OwnChain::Original),
            Op::AddRule { .. },
            Op::AddRule { .. },
            Op::AddChain(OwnChain::Reply),
            Op::AddRule { .. },
            Op::AddRule { .. },
            Op::AddChain(OwnChain::Offload),
            Op::AddRule { .. },
            Op::AddRule { .. },
            Op::AddRule { .. },
            Op::AddRule { .. },
            Op::AddRule { .. },
            Op::AddBaseChain { .. },
            Op::AddRule { chain: OwnChain::Base, .. }
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

/// Operations that make the kernel have `want`.
fn ops(kernel: &mut FakeRuleset, want: DesiredTable) -> Vec<Op> {
    let Decision::Apply(ops) = step(kernel, &Some(want), ForeignTable::Refuse) else { panic!("ours") };
    ops
}

fn empties(ops: &[Op]) -> bool {
    ops.contains(&Op::DeleteFlowtable)
}

#[test]
fn flows_that_are_excluded_from_now_on_leave_the_flowtable() {
    let plain = || table(1..200);
    for entry in EXCLUSIONS {
        let mut kernel = fake();
        assert!(!empties(&ops(&mut kernel, excluding(plain(), &["10.9.9.9"]))), "there was no flowtable");
        let (offloads, both) = (Counter { packets: 5, bytes: 6 }, Counter { packets: 10, bytes: 12 });
        for chain in &mut kernel.table.as_mut().unwrap().chains {
            chain.rules.iter_mut().filter_map(|rule| rule.counter.as_mut()).for_each(|c| *c = offloads);
        }
        let added = ops(&mut kernel, excluding(plain(), &["10.9.9.9", entry]));
        assert!(empties(&added), "{entry}: {added:#?}");
        assert_eq!(kernel.table.as_ref().unwrap().offloads(), Some(both), "it counts on");
        assert!(!added.iter().any(|op| matches!(op, Op::DeleteChain(_))), "{added:#?}");
        for set in EVIDENCE {
            assert!(added.contains(&Op::DeleteSet(set)) && added.contains(&Op::AddSet(set)), "{added:#?}");
        }
        // Fewer exclusions put nobody out.
        let removed = ops(&mut kernel, excluding(plain(), &["10.9.9.9"]));
        assert!(!removed.is_empty() && !empties(&removed), "{entry}: {removed:#?}");
    }
}

#[test]
fn an_excluded_interface_leaves_with_its_flows() {
    let mut kernel = fake();
    ops(&mut kernel, table([1, 2]));
    let want = || DesiredTable { excluded_devices: [name(2), name(7)].into(), ..table([1]) };
    let out = ops(&mut kernel, want());
    assert!(empties(&out), "{out:#?}");
    assert_eq!(ops(&mut kernel, want()), []);
    // One that was never in it takes nobody along.
    let more = DesiredTable { excluded_devices: [name(2), name(7), name(8)].into(), ..table([1]) };
    assert_eq!(ops(&mut kernel, more), []);
}

#[test]
fn a_change_of_many_exclusions_is_only_that_change() {
    let file = |from: u32| {
        (from..from + 100_000).map(|n| format!("{}\n", std::net::Ipv4Addr::from(n))).collect::<String>()
    };
    let want = |file: &str| {
        let exclusions = Arc::new(exclude::Exclusions::new(&[], file).unwrap());
        DesiredTable { exclusions, ..excluding(table([1]), &["10.0.0.1"]) }
    };
    let mut kernel = fake();
    ops(&mut kernel, want(&file(0x0a00_0000)));
    let changed = ops(&mut kernel, want(&file(0x0a00_0003)));
    let count = |wanted: fn(&Op) -> Option<usize>| changed.iter().find_map(wanted);
    assert_eq!(count(|op| if let Op::AddKeys(_, keys) = op { Some(keys.len()) } else { None }), Some(3));
    assert_eq!(count(|op| if let Op::RemoveKeys(_, keys) = op { Some(keys.len()) } else { None }), Some(3));
    assert_eq!(ops(&mut kernel, want(&file(0x0a00_0003))), []);
    // What doesn't fit any more gets a larger set in its place, and chains stay.
    let more: String = (0..3).map(|n| file(0x0a00_0000 + n * 100_000)).collect();
    let larger = ops(&mut kernel, want(&more));
    let set = OwnSet::Exclude(ExcludeSet::V4(32));
    for op in [Op::DeleteSet(set), Op::AddKeySet(set, 1 << 20), Op::DeleteFlowtable] {
        assert!(larger.contains(&op), "{op}");
    }
    assert!(!larger.iter().any(|op| matches!(op, Op::DeleteChain(_))));
    assert_eq!(ops(&mut kernel, want(&more)), []);
}

/// An agent of before the second chain left everything in one rule.
#[test]
fn the_table_of_an_earlier_agent_is_upgraded_around_its_flowtable() {
    let mut kernel = fake();
    step(&mut kernel, &Some(table(1..300)), ForeignTable::Refuse);
    kernel.disturb(|t| {
        let t = t.as_mut().unwrap();
        t.chains.retain(|c| c.name == OwnChain::Base.name());
        t.sets.retain(|s| s.name == OwnSet::Devices.name());
        t.chains[0].rules = vec![ObservedRule {
            handle: 4711,
            owner: Owner::Ours,
            exprs: vec![Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() }, Expr::Counter],
            counter: None,
        }];
    });
    let Decision::Apply(ops) = step(&mut kernel, &Some(table(1..300)), ForeignTable::Refuse) else {
        panic!("ours");
    };
    assert_eq!(ops[0], Op::DeleteRule { chain: OwnChain::Base, handle: 4711 });
    let added = |op: &Op| matches!(op, Op::AddSet(_) | Op::AddChain(_) | Op::AddRule { .. });
    assert!(ops[1..].iter().all(added), "{ops:#?}");
    assert_eq!(step(&mut kernel, &Some(table(1..300)), ForeignTable::Refuse), Decision::Apply(Vec::new()));
}

#[test]
fn assist_comes_and_goes_without_touching_anything_else() {
    let mut kernel = fake();
    step(&mut kernel, &Some(table([1, 2])), ForeignTable::Refuse);
    let mut assisting = table([1, 2]);
    assisting.sets.push(OwnSet::Assist);
    rules_mut(&mut assisting, OwnChain::Base).insert(0, Rule::Assist { to: OwnChain::Offload });
    let base_only = |decision: Decision, set: Op| {
        let Decision::Apply(ops) = decision else { panic!("ours") };
        assert!(ops.contains(&set), "{ops:#?}");
        for op in ops.iter().filter(|op| **op != set) {
            assert!(
                matches!(
                    op,
                    Op::AddRule { chain: OwnChain::Base, .. } | Op::DeleteRule { chain: OwnChain::Base, .. }
                ),
                "{op}"
            );
        }
    };
    let foreign = ForeignTable::Refuse;
    base_only(step(&mut kernel, &Some(assisting), foreign), Op::AddSet(OwnSet::Assist));
    base_only(step(&mut kernel, &Some(table([1, 2])), foreign), Op::DeleteSet(OwnSet::Assist));
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
