//! Single cases of the difference, by their results.

use super::*;

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
    let Decision::Apply(ops) = step(&mut kernel, &want, ForeignTable::Refuse) else {
        panic!("not the agent's")
    };
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
            panic!("not the agent's")
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
            Op::AddRule { .. },
            Op::AddChain(OwnChain::Reply),
            Op::AddRule { .. },
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

    // What isn't wanted any more leaves the set, so that no rule refers to it, and the flowtable once it can be read.
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
    let Decision::Apply(ops) = step(kernel, &Some(want), ForeignTable::Refuse) else {
        panic!("not the agent's")
    };
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
        // Fewer exclusions put no flow out.
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
    // One that was never in it takes no flow along.
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
            owner: Owner::Agent,
            exprs: vec![Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() }, Expr::Counter],
            counter: None,
        }];
    });
    let Decision::Apply(ops) = step(&mut kernel, &Some(table(1..300)), ForeignTable::Refuse) else {
        panic!("not the agent's");
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
        let Decision::Apply(ops) = decision else { panic!("not the agent's") };
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
        ["chain another", "set others", "rule with handle 1099511627776 in chain kindnet-fastpath-chain"]
    );
    let _: BTreeMap<IfIndex, IfName> = table([1]).devices;
}
