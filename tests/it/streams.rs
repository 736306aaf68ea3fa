//! Streams that were answered once and go one way since: fast where no rule could deny an answer, and judged like all others
//! where a rule can.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::Agent,
    attach::Attach,
    path::STRAYS,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
    wait_until,
};

const LIMIT: Duration = Duration::from_secs(5);
/// Between two messages of a stream.
const TICK: Duration = Duration::from_millis(5);

#[track_caller]
fn start(topology: &Topology) -> Agent {
    Agent::start_with(&topology.node, &[])
}

/// A stream that has had its answer.
#[track_caller]
fn open(topology: &Topology, family: Family, port: u16) -> Flow {
    let mut stream = topology.open(Proto::Udp, family, port);
    assert!(stream.request() && stream.response());
    stream.set_patience(Duration::from_millis(50));
    stream
}

#[track_caller]
fn send(stream: &mut Flow, upload: bool) {
    for _ in 0..50 {
        assert!(if upload { stream.request() } else { stream.response() }, "{stream:?}");
        thread::sleep(TICK);
    }
}

/// How many of the last 50 messages went through the forward path.
#[track_caller]
fn forwarded(topology: &Topology, stream: &mut Flow, upload: bool) -> u64 {
    let sum = || {
        let forwarded = topology.forwarded(stream.port());
        forwarded.original + forwarded.reply
    };
    let before = sum();
    send(stream, upload);
    let after = topology.forwarded(stream.port());
    after.original + after.reply - before
}

#[track_caller]
fn assert_becomes_fast(topology: &Topology, stream: &mut Flow, upload: bool) {
    wait_until(&format!("{stream:?} is fast"), LIMIT, || forwarded(topology, stream, upload) <= STRAYS);
}

#[track_caller]
fn assert_stays_slow(topology: &Topology, stream: &mut Flow) {
    for _ in 0..4 {
        assert_eq!(forwarded(topology, stream, true), 50, "{stream:?}");
    }
    assert!(!topology.marked_offloaded(stream.port()));
}

#[test]
fn are_fast_where_no_rule_can_deny_an_answer() {
    let nats = [Nat::Plain, Nat::Masquerade, Nat::Service].map(|nat| Layout { nat, ..Layout::default() });
    let attached = [Attach::Vlan, Attach::BridgeVlan].map(|attach| Layout { attach, ..Layout::default() });
    for layout in nats.into_iter().chain(attached) {
        let topology = Topology::build(layout);
        topology.node.nft(
            "table inet firewall { chain forward { type filter hook forward priority filter; ct state invalid drop; \
             ct state established accept; udp dport 9 drop; }; }",
        );
        let _agent = start(&topology);
        let families: &[_] = if layout.nat == Nat::Plain { &[Family::V4, Family::V6] } else { &[Family::V4] };
        for (port, &family) in (7001..).zip(families) {
            let mut stream = open(&topology, family, port);
            assert_becomes_fast(&topology, &mut stream, true);
            // The answers that come after all take the same way.
            assert!(stream.response(), "{layout:?}: {stream:?}");
            assert_eq!(forwarded(&topology, &mut stream, false), 0, "{layout:?}: {stream:?}");
        }
        let mut of_server = open(&topology, Family::V4, 7003);
        assert_becomes_fast(&topology, &mut of_server, false);
    }
}

#[test]
fn come_back_after_the_flowtable_was_emptied() {
    let topology = Topology::routed();
    let _agent = start(&topology);
    let mut stream = open(&topology, Family::V4, 7001);
    assert_becomes_fast(&topology, &mut stream, true);
    topology.node.nft("table inet firewall { chain forward { type filter hook forward priority filter; udp dport 9 accept; }; }");
    wait_until("the flowtable is emptied", LIMIT, || forwarded(&topology, &mut stream, true) > STRAYS);
    assert_becomes_fast(&topology, &mut stream, true);
    // Behind a change that leaves the agent's own table as it is.
    topology.node.nft("add rule inet firewall forward udp dport 10 accept");
    let mut next = open(&topology, Family::V4, 7002);
    assert_becomes_fast(&topology, &mut next, true);
}

#[test]
fn older_than_the_agent_are_fast() {
    let topology = Topology::routed();
    let first = start(&topology);
    topology.node.nft("table inet firewall { chain forward { type filter hook forward priority filter; udp sport 9 drop; }; }");
    thread::sleep(Duration::from_secs(1));
    let mut stream = open(&topology, Family::V4, 7001);
    assert_stays_slow(&topology, &mut stream);
    // It has crossed under an agent that wouldn't help; the next one may.
    first.kill();
    topology.node.nft("delete table inet firewall");
    let _second = start(&topology);
    assert_becomes_fast(&topology, &mut stream, true);
}

#[test]
fn stay_on_the_normal_path_where_an_answer_may_be_denied() {
    let topology = Topology::routed();
    topology.node.nft("table inet firewall { chain forward { type filter hook forward priority filter; udp sport 7002 drop; }; }");
    let _agent = start(&topology);
    let mut stream = open(&topology, Family::V4, 7001);
    assert_stays_slow(&topology, &mut stream);
}

#[test]
fn stay_on_the_normal_path_where_marks_or_dscp_choose_the_route() {
    for rule in ["fwmark 7 lookup 100", "dsfield 0x10 prohibit"] {
        let topology = Topology::routed();
        topology.node.ip(&format!("rule add {rule}\n"));
        let _agent = start(&topology);
        let mut stream = open(&topology, Family::V4, 7001);
        assert_stays_slow(&topology, &mut stream);
    }
}

#[test]
fn stay_on_the_normal_path_where_an_answer_has_no_way() {
    let topology = Topology::routed();
    let _agent = start(&topology);
    let mut stream = open(&topology, Family::V4, 7001);
    topology.node.ip("rule add from 10.2.0.2 iif s0 prohibit\n");
    assert_stays_slow(&topology, &mut stream);
    assert!(!stream.response());
}

/// Ahead of conntrack a rule may take answers from their connection: then they aren't translated back.
#[test]
fn stay_on_the_normal_path_where_answers_are_untracked() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let _agent = start(&topology);
    let mut stream = open(&topology, Family::V6, 7001);
    let rule = ["-t", "raw", "-A", "PREROUTING", "-i", "s0", "-j", "CT", "--notrack"];
    topology.node.output("ip6tables-nft", &rule);
    assert_stays_slow(&topology, &mut stream);
    assert!(!stream.response());
}

#[test]
fn are_revalidated_when_answers_are_denied() {
    let topology = Topology::routed();
    let _agent = start(&topology);
    let mut stream = open(&topology, Family::V4, 7001);
    assert_becomes_fast(&topology, &mut stream, true);
    topology.node.nft("table inet firewall { chain forward { type filter hook forward priority filter; udp sport 7001 drop; }; }");
    thread::sleep(Duration::from_millis(1500));
    assert_stays_slow(&topology, &mut stream);
    assert!(!stream.response(), "an answer is denied");
    topology.node.nft("delete table inet firewall");
    thread::sleep(Duration::from_millis(1500));
    assert_becomes_fast(&topology, &mut stream, true);
    assert!(stream.response());
}
