//! kindnet's own rules in the same set-ups: what they do well too, and what the agent is for.

use fastpath_tests::{
    reference,
    topology::{Family, Layout, Topology},
    traffic::Proto,
};

#[test]
fn kindnet_rules_accelerate() {
    let topology = Topology::routed();
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    for (proto, family, port) in [(Proto::Tcp, Family::V4, 7001), (Proto::Udp, Family::V6, 7002)] {
        let mut flow = topology.open(proto, family, port);
        topology.assert_becomes_accelerated(&mut flow);
    }
}

/// Compare `interfaces::added_later`, where a flow of other interfaces doesn't notice.
#[test]
fn kindnet_rules_made_again_throw_offloaded_flows_out() {
    let topology = Topology::build(Layout { pods: 3, ..Layout::default() });
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let measured = topology.measure(&mut flow, 10);
    assert_eq!(measured.forwarded.total(), 0);
    topology.node.nft(&reference::kindnet(&["c0", "s0", "p3"]));
    let measured = topology.measure(&mut flow, 10);
    assert!(measured.delivered() && measured.forwarded.total() > 0, "{measured:?}");
}

/// Compare `scale::six_hundred_interfaces`.
#[test]
fn kindnet_rules_cannot_hold_300_interfaces() {
    let topology = Topology::routed();
    let mut batch = String::new();
    for number in 0..300 {
        batch += &format!("link add d{number} type dummy\n");
    }
    topology.node.ip(&batch);
    let names: Vec<String> = (0..300).map(|number| format!("d{number}")).collect();
    let mut devices: Vec<&str> = names.iter().map(String::as_str).collect();
    devices.extend(["c0", "s0"]);
    let output = topology.node.try_run("nft", &["-f", "-"], &reference::kindnet(&devices));
    assert!(!output.status.success());
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_forwarded(&mut flow);
}

/// No flowtable changes here: it is the kernel that throws flows out when it forgets its cached routes.
#[test]
fn any_link_that_comes_up_costs_a_few_packets() {
    let topology = Topology::routed();
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    topology.node.ip("link add d0 type dummy\nlink set d0 up\n");
    let measured = topology.measure(&mut flow, 50);
    assert!(measured.delivered(), "{measured:?}");
    assert!((1..=4).contains(&measured.forwarded.total()), "{measured:?}");
    topology.assert_accelerated(&mut flow);
}
