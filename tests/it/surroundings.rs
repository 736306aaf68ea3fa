//! What others have on the node decides over offloaded flows, whoever was there first and whenever it changes.

use std::{
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
};

/// Within this time a change must stop an offloaded flow.
const LIMIT: Duration = Duration::from_millis(1500);

/// Sends until a request or its response is lost; panics if all arrive for as long as the limit.
#[track_caller]
fn assert_stops(flow: &mut Flow, agent: &Agent, what: &str) {
    flow.set_patience(Duration::from_millis(500));
    let start = Instant::now();
    while flow.rounds(1) == 1 {
        assert!(start.elapsed() < LIMIT, "{what}: {flow:?} goes on:\n{}", agent.log().join("\n"));
        thread::sleep(Duration::from_millis(5));
    }
    println!("{what}: stopped after {:?}", start.elapsed());
    assert_eq!(flow.rounds(2), 0, "{what}: {flow:?} is back");
}

fn run(node: &Netns, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    node.output(words[0], &words[1..]);
}

#[test]
fn iptables_rules_older_than_the_agent_count() {
    for (program, family) in [("iptables-nft", Family::V4), ("ip6tables-nft", Family::V6)] {
        let topology = Topology::routed();
        let node = &topology.node;
        run(node, &format!("{program} -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"));
        let agent = Agent::start(node, &[]);
        let mut flow = topology.open(Proto::Udp, family, 7001);
        topology.assert_becomes_accelerated(&mut flow);
        run(node, &format!("{program} -I FORWARD -p udp --dport 7001 -j DROP"));
        assert_stops(&mut flow, &agent, program);
    }
}

/// Tables of all families that forwarded packets pass, made before the agent starts.
#[test]
fn tables_of_every_family_older_than_the_agent_count() {
    for (table, chain) in [
        ("inet f", "type filter hook prerouting priority -300;"),
        ("ip f", "type filter hook forward priority 0;"),
        ("netdev f", "type filter hook ingress device c0 priority 10;"),
    ] {
        let topology = Topology::routed();
        let node = &topology.node;
        node.nft(&format!("table {table} {{ chain c {{ {chain} }}; }}"));
        let agent = Agent::start(node, &[]);
        let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
        topology.assert_becomes_accelerated(&mut flow);
        node.nft(&format!("add rule {table} c udp dport 7001 drop"));
        assert_stops(&mut flow, &agent, table);
    }
}

/// However early, and also while the agent is busy loading its programs.
#[test]
fn our_table_is_back_whenever_somebody_deletes_it() {
    let topology = Topology::routed();
    let node = &topology.node;
    for wait in [0, 30, 100, 200] {
        let mut agent = Agent::spawn(node, &mut agent::command(&[]));
        agent.wait_for_ruleset();
        thread::sleep(Duration::from_millis(wait));
        run(node, "nft delete table inet kindnet-fastpath");
        let loading = agent.count("eBPF programs loaded") == 0;
        println!("{wait} ms after the ruleset stands, while the programs are loaded: {loading}");
        agent.wait_for_programs();
        let start = Instant::now();
        let there =
            || node.try_run("nft", &["list", "table", "inet", "kindnet-fastpath"], "").status.success();
        while !there() {
            assert!(start.elapsed() < Duration::from_secs(1), "{}", agent.log().join("\n"));
            thread::sleep(Duration::from_millis(20));
        }
        agent.stop();
    }
}
