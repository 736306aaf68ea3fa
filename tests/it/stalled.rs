//! `flows` says why a flow isn't offloaded: every cause, brought about.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
    wait_until,
};
use serde_json::{Value, json};

use crate::flows::{NO_LONGER_JUST_CROSSED, flow, flows};

const SOON: Duration = Duration::from_secs(5);

/// State and cause of the one flow to this port.
#[track_caller]
fn fate(node: &Netns, port: u16) -> (Value, Value) {
    let flow = flow(node, port);
    (flow["state"].clone(), flow["cause"].clone())
}

fn stalled(cause: impl Into<Value>) -> (Value, Value) {
    ("stalled".into(), cause.into())
}

fn never(cause: impl Into<Value>) -> (Value, Value) {
    ("never".into(), cause.into())
}

#[test]
fn older_than_the_rule_helper_local_and_other_protocols() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut old = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(old.rounds(5), 5);
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    assert_eq!(old.rounds(50), 50);

    node.nft(
        "table inet helpers {
            ct helper reader { type \"ftp\" protocol tcp; l3proto inet; }
            chain pre { type filter hook prerouting priority 0; tcp dport 7002 ct helper set \"reader\"; }
        }",
    );
    let mut helped = topology.open(Proto::Tcp, Family::V4, 7002);
    assert_eq!(helped.rounds(30), 30);

    let here: SocketAddr = "10.1.0.1:7003".parse().expect("an address");
    let mut local = Flow::open(Proto::Udp, &topology.client().ns, node, here, here);
    assert_eq!(local.rounds(30), 30);

    let client = &topology.client().ns;
    client.output("ping", &["-c1", "-W2", "10.2.0.2"]);
    // A GRE header of version 0, without an answer.
    client.feed("socat", &["-u", "-", "IP4-SENDTO:10.2.0.2:47"], "\0\0\u{8}\0nothing");

    thread::sleep(NO_LONGER_JUST_CROSSED);
    assert_eq!(fate(node, 7001), stalled("not-counted"));
    assert_eq!(fate(node, 7002), never(json!({ "helper": "ftp" })));
    assert_eq!(fate(node, 7003), never("local"));
    for protocol in ["icmp", "gre"] {
        let found = flows(node, &["--address=10.2.0.2"]);
        let flow = found.iter().find(|flow| flow["protocol"] == protocol);
        assert_eq!(flow.map(|flow| &flow["cause"]), Some(&json!("protocol")), "{protocol} in {found:#?}");
        assert_eq!(flow.map(|flow| &flow["group"]), Some(&json!("never")), "{protocol} in {found:#?}");
    }
    let table = agent::output(node, &["flows", "--port=7002"]);
    assert!(table.contains("conntrack helper ftp"), "{table}");
}

#[test]
fn an_interface_that_was_taken_out() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(5), 5);
    agent.stop();
    let _agent = Agent::start_with(node, &["--exclude-interfaces=s0"]);
    agent::wait_for_programs(node, &["c0"]);
    assert_eq!(flow.rounds(50), 50);
    thread::sleep(NO_LONGER_JUST_CROSSED);
    assert_eq!(fate(node, 7001), never(json!({ "excluded": "the choice of interfaces: s0" })));
}

#[test]
fn a_handshake_that_is_never_completed() {
    let topology = Topology::routed();
    let node = &topology.node;
    // The client's last word gets lost, so the server doesn't hear that the connection is established.
    node.nft(
        "table inet deaf { chain pre { type filter hook prerouting priority -300;
            tcp dport 7001 tcp flags & (syn | ack) == ack drop; }; }",
    );
    let _agent = Agent::start_with(node, &["--fastpath-threshold=1"]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let to = topology.server_at(Family::V4, 7001);
    let _listener = topology.server().ns.run(|| TcpListener::bind(to)).expect("bind");
    let _client = topology.client().ns.run(|| TcpStream::connect(to)).expect("connect");
    thread::sleep(NO_LONGER_JUST_CROSSED);
    assert_eq!(fate(node, 7001), stalled("not-established"));
}

#[test]
fn no_rule_closing_and_gone() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &["--fastpath-threshold=0"]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(30), 30);
    assert_eq!(fate(node, 7001), stalled("no-rule"));

    let to = topology.server_at(Family::V4, 7002);
    let listener = topology.server().ns.run(|| TcpListener::bind(to)).expect("bind");
    let mut client = topology.client().ns.run(|| TcpStream::connect(to)).expect("connect");
    let (_server, _) = listener.accept().expect("accept");
    client.write_all(b"last words").expect("write");
    client.shutdown(std::net::Shutdown::Write).expect("FIN");
    wait_until("the FIN seen", SOON, || fate(node, 7002) == ("closing".into(), Value::Null));

    node.output("conntrack", &["-D", "-p", "udp", "--dport", "7001"]);
    thread::sleep(NO_LONGER_JUST_CROSSED);
    let gone = self::flow(node, 7001);
    assert_eq!(gone["state"], "gone");
    assert_eq!(
        (&gone["original"]["destination_port"], &gone["reply"]["source_port"]),
        (&json!(7001), &json!(7001))
    );
}

#[test]
fn without_conntrack_and_with_packets() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft("table inet raw { chain pre { type filter hook prerouting priority -300; udp dport 7001 notrack; udp sport 7001 notrack; }; }");
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    for family in [Family::V4, Family::V6] {
        let mut flow = topology.open(Proto::Udp, family, 7001);
        assert_eq!(flow.rounds(30), 30);
        let found = flows(
            node,
            &["--port=7001", if family == Family::V4 { "--address=0.0.0.0/0" } else { "--address=::/0" }],
        );
        assert_eq!(found.len(), 1, "both directions are one flow: {found:#?}");
        assert_eq!(
            (&found[0]["state"], &found[0]["cause"]),
            (&json!("never"), &json!("unknown-to-conntrack"))
        );
        assert_eq!(found[0]["original"]["destination_port"], 7001, "{found:#?}");
    }
}
