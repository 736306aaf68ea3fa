//! What the kernel or the devices can't do: one line each with the remedy, and the rest works.

use std::time::Duration;

use fastpath_tests::{
    agent::Agent,
    table,
    topology::{Family, Topology},
    traffic::Proto,
};

#[test]
fn hardware_offload_on_devices_without_it() {
    let topology = Topology::routed();
    let agent = Agent::start(&topology.node, &["--hw-offload=auto"]);
    assert_eq!(agent.count("no hardware offload"), 1, "{}", agent.log().join("\n"));
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    // Still so when another device comes.
    topology.node.ip("link add d0 type dummy\nlink set d0 up\n");
    table::wait_for_devices(&topology.node, &["c0", "s0", "d0"], Duration::from_secs(3));
    assert_eq!(agent.count("no hardware offload"), 1, "{}", agent.log().join("\n"));
}
