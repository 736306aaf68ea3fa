//! `why` about flows that lack evidence of both directions, or whose packets come in and don't leave.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    reference,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
    why::{ask, asked, assert_reason},
};
use serde_json::Value;

fn start(topology: &Topology, devices: &[&str]) -> Agent {
    let agent = Agent::start_with(&topology.node, &[]);
    agent::wait_for_programs(&topology.node, devices);
    agent
}

/// Sends requests without waiting for answers while it is asked.
fn asked_under_requests<T>(flow: &Flow, ask: impl FnOnce() -> T) -> T {
    let client = flow.client_datagrams().try_clone().expect("a second handle");
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            for _ in 0..150 {
                // There may be no receiver.
                let _ = client.send(b"request");
                thread::sleep(Duration::from_millis(10));
            }
        });
        thread::sleep(Duration::from_millis(100));
        let answer = ask();
        sender.join().expect("sent");
        answer
    })
}

#[test]
fn one_direction_is_dropped() {
    let topology = Topology::routed();
    topology.node.nft(
        "table inet firewall { chain forward { type filter hook forward priority filter; udp sport 7001 drop; }; }",
    );
    let _agent = start(&topology, &["c0", "s0"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    flow.set_patience(Duration::from_millis(50));
    // The answer is dropped, but conntrack has seen it.
    assert!(flow.request() && !flow.response());
    for _ in 0..30 {
        assert!(flow.request());
    }
    let answer = asked_under_requests(&flow, || assert_reason(&topology, 7001, "one-direction"));
    assert_eq!(answer["verdict"]["direction"], "original", "{answer:#}");
    let flows: Value = serde_json::from_str(&asked_under_requests(&flow, || {
        agent::output(&topology.node, &["flows", "-o", "json", "--port=7001"])
    }))
    .expect("JSON");
    assert_eq!(flows[0]["cause"], "one-direction", "{flows:#}");
}

#[test]
fn answers_take_another_link() {
    let topology = Topology::routed();
    topology.add_second_links();
    let _agent = start(&topology, &["c0", "s0", "c1", "s1"]);
    // Requests to the server's second address leave by its second link, answers come by the first.
    topology.node.ip("route replace 10.102.0.2/32 via 10.12.0.2\n");
    let at = "10.102.0.2:7001".parse().expect("address");
    let flow = Flow::open(Proto::Udp, &topology.client().ns, &topology.server().ns, at, at);
    let background = flow.in_background();
    thread::sleep(Duration::from_millis(500));
    let answer = assert_reason(&topology, 7001, "asymmetric");
    let (_, report) = background.stop_intact();
    println!("{report:?}");
    assert_eq!(answer["verdict"]["original"], "c0 > s1", "{answer:#}");
    assert_eq!(answer["verdict"]["reply"], "s0 > c0", "{answer:#}");
}

#[test]
fn a_policy_rule_decides() {
    let topology = Topology::routed();
    let node = &topology.node;
    // Both directions: by protocol alone.
    node.output("ip", &["rule", "add", "ipproto", "udp", "lookup", "main", "priority", "1000"]);
    let _agent = start(&topology, &["c0", "s0"]);
    let flow = topology.open(Proto::Udp, Family::V4, 7001);
    let background = flow.in_background();
    thread::sleep(Duration::from_millis(500));
    let answer = assert_reason(&topology, 7001, "route-rule");
    assert!(answer["verdict"]["rule"].as_str().is_some_and(|rule| rule.contains("ipproto 17")), "{answer:#}");
    let (flow, _) = background.stop_intact();
    // Without it the same flow is accelerated.
    node.output("ip", &["rule", "del", "priority", "1000"]);
    thread::sleep(Duration::from_millis(500));
    let mut flow = flow;
    flow.rounds(40);
    topology.assert_accelerated(&mut flow);
}

/// Rules that offload on one direction's packets make such flows; the agent's tools tell it.
#[test]
fn a_next_hop_that_does_not_answer_is_no_acceleration() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &["--fastpath-threshold=0"]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    node.nft(&reference::kindnet(&["c0", "s0"]));
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    topology.server().ns.sysctl("net/ipv4/conf/all/arp_ignore", "8");
    node.ip("neighbour flush dev s0\n");
    let answer = asked_under_requests(&flow, || ask(node, &asked(&topology, 7001)));
    assert_eq!(answer["verdict"]["accelerated"], "no", "{answer:#}");
    assert_eq!(answer["verdict"]["reason"], "dead-neighbour", "{answer:#}");
    assert_eq!(answer["verdict"]["neighbour"], "10.2.0.2", "{answer:#}");
}
