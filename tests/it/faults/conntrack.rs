//! A conntrack table without room: what is offloaded goes on, and of new flows as many get through as without the agent.

use std::{fs, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, rounds},
    netns::Netns,
    reference,
    topology::{Family, Topology},
    traffic::Proto,
};

use super::{Traffic, accelerated_soon};

const MAX: &str = "net/netfilter/nf_conntrack_max";

/// Limits the table to what it has, while it lives. The limit is the first namespace's, and holds for each.
struct Full {
    before: String,
}

impl Full {
    fn new(node: &Netns) -> Self {
        let read = |ns: &Netns, key: &str| {
            ns.run(|| fs::read_to_string(format!("/proc/sys/{key}"))).expect("procfs")
        };
        let count = read(node, "net/netfilter/nf_conntrack_count");
        let before = read(&Netns::of_process_1(), MAX).trim().to_owned();
        Netns::of_process_1().sysctl(MAX, count.trim());
        Self { before }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        Netns::of_process_1().sysctl(MAX, &self.before);
    }
}

/// How many of so many new flows get an answer, and how many rounds of those that are offloaded are lost.
fn through(topology: &Topology, flows: usize) -> (usize, usize) {
    let traffic = Traffic::start(topology);
    let full = Full::new(&topology.node);
    let answered = (0..flows).filter(|_| {
        let mut flow = topology.open(Proto::Udp, Family::V4, 7005);
        flow.set_patience(Duration::from_millis(100));
        flow.rounds(1) == 1
    });
    let answered = answered.count();
    let (mut old, _, lost) = traffic.stop();
    topology.assert_accelerated(&mut old[0]);
    drop(full);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7006);
    assert_eq!(flow.rounds(30), 30, "there is room again");
    accelerated_soon(topology, &mut flow);
    (answered, lost)
}

#[test]
fn its_table_is_full() {
    let flows = rounds(10, 200);
    let plain = Topology::routed();
    plain.node.nft(&reference::kindnet(&["c0", "s0"]));
    let without = through(&plain, flows);
    let topology = Topology::routed();
    let agent = Agent::start_with(&topology.node, &[]);
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    let held = Held::by(&agent, &topology.node);
    let with = through(&topology, flows);
    println!("of {flows} new flows {} were answered, without the agent {}", with.0, without.0);
    assert!(without.0 < flows, "the table wasn't full: {without:?}");
    assert!(with.0 >= without.0 && with.1 <= without.1, "{with:?}, without the agent {without:?}");
    Held::by(&agent, &topology.node).assert_no_more_than(&held);
    agent.stop();
}
