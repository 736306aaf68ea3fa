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

/// Ready comes with the ruleset and not before, though the agent runs long since.
#[test]
fn ready_means_that_the_ruleset_is_there() {
    let topology = Topology::routed();
    topology.node.nft("add table inet kindnet-fastpath");
    let mut manager = ServiceManager::new();
    let mut command = agent::command(&[]);
    command.env("NOTIFY_SOCKET", manager.address());
    let _agent = Agent::spawn(&topology.node, &mut command);
    let status = manager.wait_for("STATUS=", LIMIT);
    assert!(status.contains("somebody else"), "{status}");
    manager.listen(Duration::from_secs(1));
    assert!(manager.said.is_empty(), "{:?}", manager.said);
    topology.node.nft("delete table inet kindnet-fastpath");
    manager.wait_for("READY=1", LIMIT);
    assert!(table::devices(&topology.node).contains("c0"), "ready without a ruleset");
    assert_eq!(
        manager.wait_for("STATUS=", LIMIT),
        "STATUS=offloading flows of more than 20 packets between 2 interfaces"
    );
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
}
