//! SIGKILL at any moment. The moments are drawn by a seed, which is printed.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, Random, rounds},
    monitor::Monitor,
    table,
    topology::{Family, Topology},
    traffic::Proto,
};

use super::Traffic;

/// From the start of an agent, with and without its programs, to well after its first reconcile.
fn moment(random: &Random) -> Duration {
    Duration::from_millis(random.below([50, 200, 800][random.below(3) as usize]))
}

/// What is right is left alone: no packet is lost or takes the forward path, and nothing is written.
#[test]
fn under_traffic() {
    let random = Random::seeded();
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let held = Held::by(&agent, node);
    agent.kill();
    let listing = table::listing(node);
    let traffic = Traffic::start(&topology);
    let before = Traffic::forwarded(&topology);
    let mut monitor = Monitor::start(node);
    let kills = rounds(8, 500);
    for _ in 0..kills {
        let agent = Agent::spawn(node, &mut agent::command(&[]));
        thread::sleep(moment(&random));
        agent.kill();
    }
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    assert_eq!(monitor.commits_of_agent(), 0, "{:#?}", monitor.lines());
    assert_eq!(Traffic::forwarded(&topology), before, "packets took the forward path");
    let sent = traffic.stop_intact(&topology);
    assert_eq!(table::listing(node), listing);
    Held::by(&agent, node).assert_no_more_than(&held);
    println!("killed {kills} times; {sent} rounds of traffic, none lost or forwarded");
    agent.stop();
}

/// There is a whole table afterwards, or none.
#[test]
fn while_it_installs() {
    let random = Random::seeded();
    let topology = Topology::routed();
    let node = &topology.node;
    Agent::start(node, &[]).kill();
    let whole = table::listing(node);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    let mut halves = [0, 0];
    for _ in 0..rounds(8, 200) {
        node.nft("add table inet kindnet-fastpath\ndelete table inet kindnet-fastpath");
        let moment = Duration::from_millis(random.below(120));
        let agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
        thread::sleep(moment);
        agent.kill();
        let left = table::listing(node);
        halves[usize::from(left.is_some())] += 1;
        assert!(left.is_none() || left == whole, "half a table after {moment:?}:\n{left:?}");
        assert_eq!(flow.rounds(3), 3);
    }
    println!("no table {} times, a whole one {} times", halves[0], halves[1]);
    node.nft("add table inet kindnet-fastpath\ndelete table inet kindnet-fastpath");
    let _agent = Agent::start(node, &[]);
    assert_eq!(table::listing(node), whole);
    topology.assert_becomes_accelerated(&mut flow);
}
