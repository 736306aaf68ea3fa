//! Another program's objects of our names: reported, left alone, taken over only on request.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    monitor::Monitor,
    reference, table,
    topology::{Family, Layout, Topology},
    traffic::Proto,
};

const REFUSED: &str = "was made by another program";
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_table_of_our_name_is_left_alone_until_it_goes_away() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(&reference::kindnet(&["c0", "s0"]));
    let foreign = table::listing(node);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let before = topology.forwarded(7001);
    let background = flow.in_background();
    let mut monitor = Monitor::start(node);

    let mut agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
    agent.wait_for(REFUSED, SOON);
    let said = agent.log().into_iter().find(|line| line.contains(REFUSED)).expect("just seen");
    assert!(said.contains("--takeover"), "no remedy: {said}");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(monitor.commits_of_agent(), 0, "{:#?}", monitor.lines());
    assert_eq!(table::listing(node), foreign);
    background.stop_intact();
    assert_eq!(topology.forwarded(7001), before, "its flows notice nothing");

    node.nft("delete table inet kindnet-fastpath");
    agent.wait_for_ruleset();
    assert_eq!(agent.count(REFUSED), 1, "{}", agent.log().join("\n"));
    assert_ne!(table::listing(node), foreign);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7002));
}

#[test]
fn once_fails_on_it() {
    let topology = Topology::routed();
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    let foreign = table::listing(&topology.node);
    let output = agent::run(&topology.node, &["--ebpf=off", "--once"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(REFUSED) && errors.contains("error: "), "{errors}");
    assert_eq!(table::listing(&topology.node), foreign);
}

#[test]
fn takeover_adopts_it() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(&reference::kindnet(&["c0", "s0"]));
    Agent::start(node, &["--takeover"]).stop();
    let listing = table::listing(node).expect("the agent's now");
    assert!(listing.contains("priority 300") && listing.contains("iface_index"), "{listing}");
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    // It is the agent's from now on.
    let _agent = Agent::start(node, &[]);
    assert_eq!(table::listing(node), Some(listing));
}

/// The agent can't copy a rule that it doesn't understand.
#[test]
fn rules_of_others_in_our_chain_stay_until_it_moves() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start(node, &[]);
    node.nft("add rule inet kindnet-fastpath kindnet-fastpath-chain udp dport 9999 counter");
    agent.wait_for("holds other programs' objects", SOON);
    let stays = || table::listing(node).is_some_and(|listing| listing.contains("udp dport 9999"));
    node.nft("table inet late { chain c { type filter hook forward priority 200; }\n}");
    thread::sleep(Duration::from_secs(2));
    assert!(stays());
    node.nft("table inet later { chain c { type filter hook forward priority 400; udp dport 9 drop\n}\n}");
    agent.wait_for("deleted other programs' rules", SOON);
    assert!(!stays());
}

#[test]
fn cleanup_leaves_it_alone() {
    let topology = Topology::routed();
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    let foreign = table::listing(&topology.node);
    let said = agent::output(&topology.node, &["cleanup"]);
    assert!(said.contains(REFUSED), "{said}");
    assert_eq!(table::listing(&topology.node), foreign);
}

#[test]
fn rules_of_others_in_our_chain_are_reported_and_left_alone() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start(node, &[]);
    node.nft(
        "insert rule inet kindnet-fastpath kindnet-fastpath-chain tcp dport 9 drop
         add set inet kindnet-fastpath theirs { type ipv4_addr; }",
    );
    agent.wait_for("holds other programs' objects", SOON);
    let with_theirs = table::listing(node);
    // The agent's is put back around them.
    node.nft("flush set inet kindnet-fastpath kindnet-set-devices");
    agent.wait_for("putting it back", SOON);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(table::listing(node), with_theirs);
    assert_eq!(agent.count("holds other programs' objects"), 1, "{}", agent.log().join("\n"));
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    agent.stop();
    let _agent = Agent::start(node, &[]);
    assert_eq!(table::listing(node), with_theirs);
}

/// The kernel refuses a device that another flowtable of the same table has: others are served, the culprit is named
/// once, and taken in when the other lets go of it.
#[test]
fn a_device_that_the_kernel_refuses_is_named_and_tried_again() {
    let topology = Topology::build(Layout { pods: 4, ..Layout::default() });
    let node = &topology.node;
    node.ip("link set p3 down\nlink set p4 down\n");
    let mut agent = Agent::start(node, &[]);
    table::wait_for_devices(node, &["c0", "s0"], SOON);
    node.nft(
        "table inet kindnet-fastpath {
        flowtable theirs { hook ingress priority filter; devices = { p3 }; }
    }",
    );
    node.ip("link set p3 up\nlink set p4 up\n");
    agent.wait_for("refused this interface", SOON);
    let managed = || table::devices_of(node, "kindnet-flowtables");
    fastpath_tests::wait_until("the others are served", SOON, || {
        managed() == ["c0", "p4", "s0"].map(str::to_owned).into()
    });
    // Another object of another program: the agent tries again, and is refused again, which it doesn't repeat.
    node.nft("add chain inet kindnet-fastpath theirs");
    fastpath_tests::wait_until("the chain is seen", SOON, || agent.count("chain theirs") == 1);
    let culprits: Vec<_> =
        agent.log().into_iter().filter(|line| line.contains("refused this interface")).collect();
    assert!(culprits.len() == 1 && culprits[0].contains("p3"), "{culprits:#?}");
    let mut flow = topology.open_between(0, 3, Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    // The culprit's flows take the normal path.
    let mut flow = topology.open_between(0, 2, Proto::Udp, Family::V4, 7002);
    flow.settle();
    topology.assert_forwarded(&mut flow);

    node.nft("delete flowtable inet kindnet-fastpath theirs");
    table::wait_for_devices(node, &["c0", "s0", "p3", "p4"], SOON);
    topology.assert_becomes_accelerated(&mut flow);
    assert_eq!(agent.count("refused this interface"), 1, "{}", agent.log().join("\n"));
}
