//! More announcements than the agent's sockets hold (ENOBUFS), while it is stopped: everything is read again, and counted.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, rounds},
    table,
    topology::Topology,
    wait_until,
};
use nix::sys::signal::Signal;

use super::Traffic;

const LOST: &str = "events came too fast";

/// The ruleset is announced by one small message a transaction, and the agent's own table by many, which another socket takes.
#[test]
fn links_and_the_ruleset_at_once() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    node.ip("link add d0 type dummy\nlink add d1 type dummy\n");
    let traffic = Traffic::start(&topology);
    let listing = table::listing(node);
    let chains: String =
        (0..400).map(|number| format!("add chain inet kindnet-fastpath c{number}\n")).collect();
    let again = chains.replace("add ", "delete ");
    let mut held = None;
    for round in 1..=rounds(1, 20) {
        agent.signal(Signal::SIGSTOP);
        node.ip(&("link set d0 up\nlink set d0 down\n".repeat(2000) + "link set d1 up\n"));
        for _ in 0..3 {
            node.nft(&chains);
            node.nft(&again);
        }
        node.nft("flush chain inet kindnet-fastpath kindnet-fastpath-chain");
        agent.signal(Signal::SIGCONT);
        table::wait_for_devices(node, &["c0", "s0", "d1"], Duration::from_secs(1));
        agent.wait_for_count(LOST, round, Duration::from_secs(1));
        node.ip("link set d1 down\n");
        wait_until("the links out again", Duration::from_secs(1), || !table::devices(node).contains("d1"));
        assert_eq!(table::listing(node), listing);
        agent::wait_for_programs(node, &["c0", "s0"]);
        // The first backlog makes room for itself.
        held.get_or_insert_with(|| Held::by(&agent, node));
        if round % 4 == 0 {
            // More repairs in succession take ever longer.
            thread::sleep(Duration::from_secs(11));
        }
    }
    assert!(agent.log().iter().any(|line| line.contains(LOST) && line.contains("overruns=1")), "counted");
    let sent = traffic.stop_intact(&topology);
    Held::by(&agent, node).assert_no_more_than(&held.expect("a round"));
    println!("{sent} rounds of traffic, none lost");
    agent.stop();
}
