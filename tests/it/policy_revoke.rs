//! `revoke`: connections that are not to be accelerated any more, or not to be at all.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::exclude::assert_cause;
use fastpath_tests::{
    agent::{self, Agent},
    monitor::Monitor,
    table,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
};

/// A flow that was accelerated takes the forward path with every packet, and stays there.
#[track_caller]
fn assert_held_out(topology: &Topology, flow: &mut Flow) {
    // The first packets may find the kernel still freeing the flow.
    assert_eq!(flow.rounds(5), 5);
    topology.assert_forwarded(flow);
    assert!(!topology.marked_offloaded(flow.port()));
}

/// What `why` says.
#[track_caller]
fn assert_reason(topology: &Topology, flow: &Flow, reason: &str) {
    let [protocol, from, to] = flow.words();
    let said = agent::output(&topology.node, &["why", "-o", "json", &protocol, &from, &to]);
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(said["verdict"]["reason"], reason, "{said:#}");
}

#[test]
fn connections_are_held_out_for_good_and_others_come_back() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    let cases = [
        (Proto::Tcp, Family::V4, 7001),
        (Proto::Udp, Family::V6, 7002),
        (Proto::Tcp, Family::V6, 7003),
        (Proto::Udp, Family::V4, 7004),
    ];
    let mut flows = cases.map(|(proto, family, port)| topology.open(proto, family, port));
    for flow in &mut flows {
        topology.assert_becomes_accelerated(flow);
    }
    let said = agent::output(node, &["revoke", "--port=7001", "--port=7002"]);
    assert_eq!(
        said,
        "2 connections match, 2 of them were offloaded: all of their packets pass the filters from now on\n"
    );
    let [tcp, udp, other_tcp, other_udp] = &mut flows;
    for flow in [tcp, udp] {
        assert_held_out(&topology, flow);
        assert_reason(&topology, flow, "revoked");
        assert_cause(node, flow.port(), "revoked");
    }
    for flow in [other_tcp, other_udp] {
        assert_eq!(flow.rounds(5), 5);
        topology.assert_accelerated(flow);
    }
    // Once more, by another filter; what was revoked before stays so.
    let said = agent::output(node, &["revoke", "--address=fd00:2::2", "--protocol=tcp"]);
    assert!(said.starts_with("1 connections match, 1 of them were offloaded"), "{said}");
    assert_held_out(&topology, &mut flows[2]);
    assert_held_out(&topology, &mut flows[0]);
    // An agent keeps it, the one that runs and the next one, which writes nothing.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(agent.count("putting it back"), 0, "{}", agent.log().join("\n"));
    let before = table::listing(node);
    agent.stop();
    let mut monitor = Monitor::start(node);
    let _agent = Agent::start(node, &[]);
    assert_eq!(monitor.commits_of_agent(), 0, "{:#?}", monitor.lines());
    assert_eq!(table::listing(node).map(|text| text.contains("@kindnet-revoked")), Some(true), "{before:?}");
    assert_held_out(&topology, &mut flows[1]);
    // A new connection isn't concerned.
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Udp, Family::V4, 7005));
}

/// A flow that wasn't offloaded yet never is.
#[test]
fn connections_below_the_threshold_count_too() {
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(flow.rounds(2), 2);
    let said = agent::output(&topology.node, &["revoke", "--address=10.1.0.0/16"]);
    assert!(said.starts_with("1 connections match, 0 of them were offloaded"), "{said}");
    assert_held_out(&topology, &mut flow);
}

/// The backend of a service is taken out of the service, and the connection with it.
#[test]
fn killed_connections_have_to_be_accepted_again() {
    let topology = Topology::build(Layout { nat: Nat::Service, ..Layout::default() });
    let node = &topology.node;
    node.nft(
        "table inet firewall { chain forward { type filter hook forward priority filter; policy accept; }; }",
    );
    let _agent = Agent::start(node, &["--revalidate=off"]);
    let cases =
        [(Proto::Tcp, Family::V4, 7001), (Proto::Udp, Family::V4, 7002), (Proto::Udp, Family::V6, 7003)];
    let mut flows = cases.map(|(proto, family, port)| topology.open_service(proto, family, port));
    for flow in &mut flows {
        topology.assert_becomes_accelerated(flow);
        flow.set_patience(Duration::from_millis(700));
    }
    // New connections are refused, these are not new.
    node.nft("add rule inet firewall forward ct state new drop");
    for flow in &mut flows {
        assert_eq!(flow.rounds(3), 3);
    }
    let said = agent::output(node, &["revoke", "--port=7001", "--port=7002", "--kill"]);
    assert_eq!(said, "2 connections match, 2 of them were offloaded: 2 were deleted\n");
    let [tcp, udp, bystander] = &mut flows;
    for flow in [tcp, udp] {
        assert_eq!(flow.rounds(2), 0, "{flow:?} goes on");
    }
    assert_eq!(bystander.rounds(5), 5);
    topology.assert_accelerated(bystander);
}

#[test]
fn everything_has_to_be_asked_for() {
    let topology = Topology::routed();
    let node = &topology.node;
    for args in [&["revoke"][..], &["revoke", "--kill"], &["revoke", "--all", "--port=1"]] {
        let output = agent::run(node, args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
    }
    assert_eq!(agent::output(node, &["revoke", "--all"]), "no connection matches\n");
    // Without the agent's table there is nothing to keep flows out of, and deleting works anyway.
    node.nft("table inet t { chain c { type filter hook forward priority 0; ct state new; }; }");
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(3), 3);
    let said = agent::output(node, &["revoke", "--all"]);
    assert!(said.contains("nothing to do: the agent has no flowtable"), "{said}");
    assert_eq!(
        agent::output(node, &["revoke", "--all", "--kill"]),
        "1 connections match, 0 of them were offloaded: 1 were deleted\n"
    );
    assert!(topology.conntrack(7001).is_empty());
}
