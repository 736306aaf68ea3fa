//! A pod's namespace goes, with offloaded flows from and to it; the node's own stays.

use std::time::Duration;

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, rounds},
    netns::Netns,
    table,
    topology::{Family, Layout, Topology},
    traffic::{Flow, Proto},
};

use super::Traffic;

#[test]
fn of_a_pod_with_offloaded_flows() {
    let topology = Topology::build(Layout::default());
    let node = &topology.node;
    let mut agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let listing = table::listing(node);
    let held = Held::by(&agent, node);
    let traffic = Traffic::start(&topology);
    for _ in 0..rounds(3, 100) {
        let pod = Netns::new("pod");
        node.ip(&format!(
            "link add p3 type veth peer name eth0 netns {}\nlink set p3 up\naddress add 10.3.0.1/24 dev p3\n",
            pod.path()
        ));
        pod.ip("link set eth0 up\naddress add 10.3.0.2/24 dev eth0\nroute add default via 10.3.0.1\n");
        table::wait_for_devices(node, &["c0", "p3", "s0"], Duration::from_secs(1));
        let to = topology.server_at(Family::V4, 7003);
        let mut flow = Flow::open(Proto::Udp, &pod, &topology.server().ns, to, to);
        assert_eq!(flow.rounds(30), 30);
        topology.assert_accelerated(&mut flow);
        // Nothing holds the namespace then.
        drop((flow, pod));
        table::wait_for_devices(node, &["c0", "s0"], Duration::from_secs(2));
        assert!(agent.is_running());
    }
    traffic.stop_intact(&topology);
    assert_eq!(table::listing(node), listing);
    agent::wait_for_programs(node, &["c0", "s0"]);
    Held::by(&agent, node).assert_no_more_than(&held);
    agent.stop();
}
