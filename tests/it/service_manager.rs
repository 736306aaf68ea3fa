//! What the agent tells systemd of its ruleset.

use std::time::Duration;

use fastpath_tests::{
    agent::{self, Agent},
    service_manager::ServiceManager,
    table,
    topology::{Family, Topology},
    traffic::Proto,
};

const LIMIT: Duration = Duration::from_secs(10);

/// An agent whose table is another program's has started: waiting longer changes nothing. What is amiss is in the status.
#[test]
fn started_means_that_all_was_done_that_can_be() {
    let topology = Topology::routed();
    topology.node.nft("add table inet kindnet-fastpath");
    let mut manager = ServiceManager::new();
    let mut command = agent::command(&[]);
    command.env("NOTIFY_SOCKET", manager.address());
    let _agent = Agent::spawn(&topology.node, &mut command);
    manager.wait_for("READY=1", LIMIT);
    let status = manager.wait_for("STATUS=", LIMIT);
    assert!(status.contains("another program"), "{status}");
    topology.node.nft("delete table inet kindnet-fastpath");
    assert_eq!(
        manager.wait_for("STATUS=", LIMIT),
        "STATUS=offloading flows of more than 20 packets between 2 interfaces"
    );
    assert!(table::devices(&topology.node).contains("c0"), "said without a ruleset");
    assert!(!manager.said.iter().any(|line| line == "READY=1"), "said twice: {:?}", manager.said);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
}
