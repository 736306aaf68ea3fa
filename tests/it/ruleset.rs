//! The agent's view of nftables where there is a flowtable: devices that come, go, change their names, and many.

use std::collections::BTreeSet;

use fastpath_agent::{
    core::{
        model::{FLOWTABLE, IfIndex, IfName, MAX_DEVICES_PER_MESSAGE, TABLE},
        ruleset::{
            chain::OwnChain,
            expr::Direction,
            observed::{Generation, ObservedFlowtable},
            plan::Op,
            rule::{Input, Rule, Traced},
            sets::OwnSet,
        },
    },
    kernel::{
        Ruleset,
        nft::{CommitError, Nft, Rejection},
        probe,
    },
};
use fastpath_tests::netns::Netns;

fn name(name: &str) -> IfName {
    IfName::new(name).expect("a valid name")
}

fn names(count: usize) -> Vec<IfName> {
    (0..count).map(|n| name(&format!("d{n}"))).collect()
}

/// Names as long as names can be.
fn long_names(count: usize) -> Vec<IfName> {
    (0..count).map(|n| name(&format!("device-{n:08}"))).collect()
}

/// A namespace with these devices.
fn node_with(names: &[IfName]) -> Netns {
    let node = Netns::new("node");
    node.ip(&names.iter().map(|name| format!("link add {name} type dummy\n")).collect::<String>());
    node
}

/// A namespace with that many devices d0, d1 …
fn node_with_devices(count: usize) -> Netns {
    node_with(&names(count))
}

/// Rules of the chain behind the base chain.
const OFFLOAD_RULES: [Rule; 5] =
    [Rule::OnlyEstablished, Rule::SpareIpsec, Rule::OnlyManagedInput, Rule::OnlyManagedOutput, SEEN];

/// A rule that offloads.
const SEEN: Rule = Rule::Seen { direction: Direction::Original, input: Input::Link, traced: Traced::Forward };

fn install() -> Vec<Op> {
    let mut ops = vec![
        Op::AddTable,
        Op::AddFlowtable { priority: 0, counter: true, hw_offload: false },
        Op::AddSet(OwnSet::Devices),
        Op::AddSet(OwnSet::SlowPath),
        Op::AddSet(OwnSet::Assist),
        Op::AddSet(OwnSet::Seen(Direction::Reply)),
        Op::AddIndices(vec![IfIndex(1)]),
        Op::AddChain(OwnChain::Offload),
    ];
    ops.extend(OFFLOAD_RULES.map(|rule| Op::AddRule { chain: OwnChain::Offload, exprs: rule.exprs() }));
    ops.push(Op::AddBaseChain { chain: OwnChain::Base, priority: 300 });
    let to = OwnChain::Offload;
    let base = [Rule::Assist { to }, Rule::Threshold { threshold: 20, to }];
    ops.extend(base.map(|rule| Op::AddRule { chain: OwnChain::Base, exprs: rule.exprs() }));
    ops
}

fn add(names: &[IfName]) -> Vec<Op> {
    names.chunks(MAX_DEVICES_PER_MESSAGE).map(|chunk| Op::AddDevices(chunk.to_vec())).collect()
}

fn flowtable(nft: &mut Nft) -> (Generation, ObservedFlowtable) {
    let observed = nft.observe().expect("observe");
    let mut flowtables = observed.table.expect("our table").flowtables;
    assert_eq!(flowtables.len(), 1);
    (observed.generation, flowtables.remove(0))
}

#[track_caller]
fn assert_devices(nft: &mut Nft, expected: impl IntoIterator<Item = IfName>) -> Generation {
    let (generation, flowtable) = flowtable(nft);
    let attributes = (flowtable.name.as_str(), flowtable.priority, flowtable.counter, flowtable.hw_offload);
    assert_eq!(attributes, (FLOWTABLE, 0, true, false));
    let devices = flowtable.devices.expect("readable");
    let expected: BTreeSet<_> = expected.into_iter().collect();
    let difference: Vec<_> = devices.symmetric_difference(&expected).collect();
    assert!(difference.is_empty(), "not as expected: {difference:?}");
    generation
}

/// The table with everything and these devices; the generation after it.
fn installed(nft: &mut Nft, names: &[IfName]) -> Generation {
    let generation = nft.observe().expect("observe").generation;
    nft.commit(&[install(), add(names)].concat(), generation).expect("commit")
}

#[track_caller]
fn rejected(result: Result<Generation, CommitError>) -> Rejection {
    match result {
        Err(CommitError::Rejected(mut rejections)) if rejections.len() == 1 => rejections.remove(0),
        other => panic!("not one refusal: {other:?}"),
    }
}

#[test]
fn the_whole_table_is_observed_and_listed_as_committed() {
    let node = node_with_devices(2);
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = installed(&mut nft, &[]);
        assert_eq!(assert_devices(&mut nft, []), generation, "a flowtable without devices");
        let generation = nft.commit(&add(&names(2)), generation).expect("commit");
        assert_eq!(assert_devices(&mut nft, names(2)), generation);
        let table = nft.observe().expect("observe").table.expect("our table");
        let rules = |name| table.chain(name).expect("the chain").rules.iter().map(|rule| &rule.exprs);
        assert!(
            rules(OwnChain::Offload).eq(OFFLOAD_RULES.iter().map(Rule::exprs).collect::<Vec<_>>().iter())
        );
        assert_eq!(rules(OwnChain::Base).count(), 2);
        assert_eq!(table.threshold(), Some(20));
        for set in [OwnSet::Devices, OwnSet::SlowPath, OwnSet::Assist] {
            assert_eq!(table.set(set).expect("the set").shape, set.shape(), "{set}");
        }
    });
    assert_eq!(
        node.output("nft", &["list", "table", "inet", TABLE]),
        r#"table inet kindnet-fastpath {
	comment "rules for kindnet fastpath"
	set kindnet-set-devices {
		type iface_index
		elements = { "lo" }
	}

	set kindnet-slow-path {
		typeof ct id
		size 65536
		flags dynamic,timeout
		timeout 1m
		gc-interval 10s
	}

	set kindnet-assist {
		typeof ct id
		size 65536
		flags timeout
		gc-interval 10s
	}

	set kindnet-seen-reply {
		typeof ct id . iif . oif
		size 65536
		flags dynamic,timeout
		timeout 2s
		gc-interval 2s
	}

	flowtable kindnet-flowtables {
		hook ingress priority filter
		devices = { d0, d1 }
		counter
	}

	chain kindnet-offload-chain {
		ct state != established return
		rt ipsec exists return
		iif != @kindnet-set-devices return
		oif != @kindnet-set-devices return
		ct id . oif . iif @kindnet-seen-reply fib saddr . mark . iif oif exists flow add @kindnet-flowtables counter packets 0 bytes 0 return
	}

	chain kindnet-fastpath-chain {
		type filter hook forward priority 300; policy accept;
		ct packets 0 ct id @kindnet-assist goto kindnet-offload-chain
		ct packets > 19 goto kindnet-offload-chain
	}
}
"#
    );
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let (generation, _) = flowtable(&mut nft);
        let table = nft.observe().expect("observe").table.expect("table");
        let chain = OwnChain::Offload;
        let handle = table.chain(chain).expect("the chain").rules[4].handle;
        let ops = [Op::DeleteRule { chain, handle }, Op::DeleteFlowtable];
        nft.commit(&ops, generation).expect("commit");
        assert_eq!(nft.observe().expect("observe").table.expect("table").flowtables, []);
    });
}

#[test]
fn flags_and_priority_are_observed() {
    let node = Netns::new("node");
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = nft.observe().expect("observe").generation;
        let ops = [Op::AddTable, Op::AddFlowtable { priority: -7, counter: false, hw_offload: true }];
        nft.commit(&ops, generation).expect("commit");
        let (_, flowtable) = flowtable(&mut nft);
        assert_eq!((flowtable.priority, flowtable.counter, flowtable.hw_offload), (-7, false, true));
    });
}

#[test]
fn devices_come_and_go_in_any_number() {
    let names = long_names(1000);
    let node = node_with(&names);
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let mut generation = installed(&mut nft, &names[..300]);
        assert_devices(&mut nft, names[..300].iter().cloned());
        // More than the kernel puts into an answer to those who haven't shown that they take more.
        for count in [600, 1000] {
            generation = nft.commit(&add(&names[..count]), generation).expect("commit");
            assert_eq!(assert_devices(&mut nft, names[..count].iter().cloned()), generation);
        }
        let ops: Vec<Op> =
            names[1..].chunks(MAX_DEVICES_PER_MESSAGE).map(|c| Op::RemoveDevices(c.to_vec())).collect();
        nft.commit(&ops, generation).expect("commit");
        assert_devices(&mut nft, [names[0].clone()]);
    });
}

#[test]
fn a_flowtable_too_large_to_be_read_is_told_from_none() {
    let names = long_names(1700);
    let node = node_with(&names);
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let mut generation = installed(&mut nft, &names[..1600]);
        assert_devices(&mut nft, names[..1600].iter().cloned());
        generation = nft.commit(&add(&names[1600..]), generation).expect("commit");
        let (observed, flowtable) = flowtable(&mut nft);
        assert_eq!((observed, flowtable.name.as_str()), (generation, FLOWTABLE));
        assert!(
            flowtable.devices.is_none(),
            "{} devices were read",
            flowtable.devices.map_or(0, |d| d.len())
        );
    });
}

#[test]
fn a_device_that_is_in_it_already_may_be_added_again() {
    let node = node_with_devices(3);
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = installed(&mut nft, &names(2));
        nft.commit(&add(&names(3)), generation).expect("commit");
        let generation = assert_devices(&mut nft, names(3));
        // Even twice in one transaction.
        nft.commit(&[add(&names(3)), add(&names(3))].concat(), generation).expect("commit");
        assert_devices(&mut nft, names(3));
    });
}

#[test]
fn a_device_that_does_not_exist_is_named_with_its_operation() {
    let node = node_with_devices(3);
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = installed(&mut nft, &names(1));
        let ops = [
            Op::AddDevices(vec![name("d1")]),
            Op::AddDevices(vec![name("d2"), name("gone0"), name("d0")]),
            Op::AddIndices(vec![IfIndex(5)]),
        ];
        let rejection = rejected(nft.commit(&ops, generation));
        assert_eq!((rejection.index, rejection.source.raw_os_error()), (1, Some(nix::libc::ENOENT)));
        // Linux 6.1 doesn't say which of them.
        let silent = node.output("uname", &["-r"]).starts_with("6.1.");
        assert_eq!(rejection.device, (!silent).then(|| name("gone0")));
        assert_eq!(assert_devices(&mut nft, names(1)), generation);
    });
}

#[test]
fn removing_a_device_that_is_not_in_it_is_refused() {
    let node = node_with_devices(2);
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = installed(&mut nft, &names(1));
        for device in ["d1", "gone0"] {
            let rejection = rejected(nft.commit(&[Op::RemoveDevices(vec![name(device)])], generation));
            assert_eq!(rejection.source.raw_os_error(), Some(nix::libc::ENOENT));
        }
        assert_devices(&mut nft, names(1));
    });
}

#[test]
fn a_device_that_is_removed_or_moved_away_leaves_by_itself() {
    let node = node_with_devices(3);
    let elsewhere = Netns::new("elsewhere");
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = installed(&mut nft, &names(3));
        node.ip("link del d0");
        assert_eq!(assert_devices(&mut nft, [name("d1"), name("d2")]), generation, "no new generation");
        node.ip(&format!("link set d1 netns {}", elsewhere.path()));
        assert_eq!(assert_devices(&mut nft, [name("d2")]), generation);
        // Back again, it is a stranger.
        elsewhere.ip(&format!("link set d1 netns {}", node.path()));
        assert_devices(&mut nft, [name("d2")]);
        nft.commit(&add(&names(3)[1..]), generation).expect("commit");
        assert_devices(&mut nft, [name("d1"), name("d2")]);
    });
}

#[test]
fn a_renamed_device_stays_under_its_new_name() {
    let node = node_with_devices(2);
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = installed(&mut nft, &names(2));
        node.ip("link set d0 name fresh");
        assert_eq!(assert_devices(&mut nft, [name("fresh"), name("d1")]), generation);
        // Another device under the old name is not taken for it.
        node.ip("link add d0 type dummy");
        let generation = nft.commit(&add(&[name("d0"), name("fresh")]), generation).expect("commit");
        assert_devices(&mut nft, [name("d0"), name("fresh"), name("d1")]);
        nft.commit(&[Op::RemoveDevices(vec![name("fresh")])], generation).expect("commit");
        assert_devices(&mut nft, [name("d0"), name("d1")]);
    });
}

#[test]
fn this_kernel_has_all_that_the_agent_uses() {
    let node = Netns::new("node");
    let kernel = node.run(probe::probe);
    assert_eq!(kernel.lacks_flowtable(), None);
    for support in
        [&kernel.nf_tables, &kernel.ct, &kernel.flowtable, &kernel.flowtable_counter, &kernel.flow_offload]
    {
        assert_eq!(support.known(), Some(true), "{kernel:?}");
    }
}
