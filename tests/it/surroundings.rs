//! What other programs have on the node decides over offloaded flows, whoever was there first and whenever it changes.

use std::{
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Family, Layout, Topology},
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
fn our_table_is_back_whenever_it_is_deleted() {
    let topology = Topology::routed();
    let node = &topology.node;
    for wait in [0, 30, 100, 200] {
        let mut agent = Agent::spawn(node, &mut agent::command(&[]));
        agent.wait_for_ruleset();
        thread::sleep(Duration::from_millis(wait));
        run(node, "nft delete table inet kindnet-fastpath");
        let loading = agent.count("eBPF programs loaded") == 0;
        println!("{wait} ms after the ruleset is installed, while the programs are loaded: {loading}");
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

/// What stops packets from the client, besides the ruleset: what to do on the node, and the flow's family.
const STOPPERS: [(&str, Family); 5] = [
    ("sysctl -w net.ipv4.ip_forward=0", Family::V4),
    ("sysctl -w net.ipv4.conf.c0.forwarding=0", Family::V4),
    ("sysctl -w net.ipv6.conf.all.forwarding=0", Family::V6),
    ("ip link set c0 master blue", Family::V4),
    ("ip link set c0 master blue", Family::V6),
];

/// A virtual router without any routes but those of its links.
fn add_vrf(node: &Netns) {
    node.ip("link add blue type vrf table 100\nlink set blue up\nroute add unreachable default table 100\n");
    run(node, "ip -6 route add unreachable default table 100");
}

#[test]
fn forwarding_that_is_switched_off_stops_offloaded_flows() {
    for (command, family) in STOPPERS {
        let topology = Topology::routed();
        let node = &topology.node;
        add_vrf(node);
        let agent = Agent::start(node, &["--v=2"]);
        let mut flow = topology.open(Proto::Udp, family, 7001);
        topology.assert_becomes_accelerated(&mut flow);
        run(node, command);
        assert_stops(&mut flow, &agent, command);
    }
}

/// The kernel does some of it by itself, by forgetting its routes; IPv6's settings leave flows where they are.
#[test]
fn the_kernel_lets_offloaded_flows_of_ipv6_go_on() {
    for (command, family) in STOPPERS {
        let topology = Topology::routed();
        let node = &topology.node;
        add_vrf(node);
        let _agent = Agent::start(node, &["--revalidate=off"]);
        let mut flow = topology.open(Proto::Udp, family, 7001);
        flow.set_patience(Duration::from_millis(300));
        topology.assert_becomes_accelerated(&mut flow);
        run(node, command);
        let answered = flow.rounds(50);
        println!("{command}, {family:?}: {answered} of 50");
        let goes_on = command.contains("ipv6");
        assert_eq!(answered == 50, goes_on, "{command}: {answered} of 50");
    }
}

/// The agent says what it respects with `--v=2`.
#[test]
fn what_other_programs_have_counts_when_it_is_announced() {
    let topology = Topology::bare(Layout::default());
    let node = &topology.node;
    node.nft("table ip old { chain f { type filter hook forward priority 20; }; }");
    let mut agent = Agent::start(node, &["--v=2"]);
    const SOON: Duration = Duration::from_millis(1500);
    agent.wait_for("last_forward: Some(20), denying_postrouting: None, unguessed: [], inspected: {}", SOON);
    node.nft("table inet late { chain f { type filter hook forward priority 400; counter; }; }");
    node.nft("add rule inet late f udp dport 9 drop");
    agent.wait_for("last_forward: Some(400), denying_postrouting: None", SOON);
    node.nft("table inet post { chain p { type filter hook postrouting priority 7; udp dport 9 accept; }; }");
    node.nft("add rule inet post p udp dport 9 drop");
    agent.wait_for("last_forward: Some(400), denying_postrouting: Some(7)", SOON);
    node.nft("delete table inet late\nflush chain inet post p");
    agent.wait_for_count("last_forward: Some(20), denying_postrouting: None", 2, SOON);
    run(node, "ip rule add iif c0 ipproto udp table 102");
    agent.wait_for("protocol: Some(17)", SOON);
    run(node, "ip -6 rule add iif c0 table 102");
    agent.wait_for("ipv6: true", SOON);
    node.ip("link add link s0 name s0.7 type vlan id 7\nlink set s0.7 up\n");
    run(node, "tc qdisc add dev s0.7 clsact");
    run(node, "tc filter add dev s0.7 ingress matchall action drop");
    agent.wait_for("inspected: {IfIndex(", SOON);
    run(node, "tc qdisc del dev s0.7 clsact");
    run(node, "ip rule del iif c0 ipproto udp table 102");
    run(node, "ip -6 rule del iif c0 table 102");
    agent.wait_for_count("unguessed: [], inspected: {}", 2, SOON);
    node.nft("table netdev n { chain c { type filter hook ingress device s0.7 priority -10; }; }");
    agent.wait_for_count("inspected: {IfIndex(", 2, SOON);
    node.ip("link del s0.7\n");
}
