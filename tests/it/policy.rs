//! Rules that change under offloaded flows: who is denied is stopped, who isn't doesn't notice, and the node isn't kept
//! busy with it.

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    monitor::Monitor,
    netns::Netns,
    reference, table,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
};

/// Within this time a new rule must stop an offloaded flow.
const LIMIT: Duration = Duration::from_millis(1500);

const CASES: [(Proto, Family, u16); 4] = [
    (Proto::Tcp, Family::V4, 7001),
    (Proto::Udp, Family::V4, 7002),
    (Proto::Tcp, Family::V6, 7003),
    (Proto::Udp, Family::V6, 7004),
];

fn open(topology: &Topology, nat: Nat, (proto, family, port): (Proto, Family, u16)) -> Flow {
    match nat {
        Nat::Service => topology.open_service(proto, family, port),
        Nat::Plain | Nat::Masquerade => topology.open(proto, family, port),
    }
}

/// A table with a filter chain in the forward hook, where nothing is denied yet.
const FIREWALL: &str = "table inet firewall {
    chain forward { type filter hook forward priority filter; policy accept; ct state invalid drop; }
}";

fn deny(port: u16) -> String {
    format!("add rule inet firewall forward meta l4proto {{ tcp, udp }} ct original proto-dst {port} drop")
}

/// Sends until a request or its response is lost; `None` if all arrive for as long as the limit.
fn stopped_within(flow: &mut Flow, limit: Duration) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < limit {
        let begun = start.elapsed();
        if flow.rounds(1) == 0 {
            return Some(begun);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// The rule for one port stops that flow in time, for good, and no other.
#[track_caller]
fn a_drop_rule_stops_offloaded_flows(nat: Nat) {
    let topology = Topology::build(Layout { nat, ..Layout::default() });
    topology.node.nft(FIREWALL);
    let agent = Agent::start(&topology.node, &[]);
    let mut bystander = open(&topology, nat, (Proto::Tcp, Family::V4, 7008));
    topology.assert_becomes_accelerated(&mut bystander);
    let bystander = bystander.in_background();
    for case in CASES {
        let mut flow = open(&topology, nat, case);
        flow.set_patience(Duration::from_millis(700));
        topology.assert_becomes_accelerated(&mut flow);
        topology.node.nft(&deny(case.2));
        let stopped = stopped_within(&mut flow, LIMIT);
        println!("{nat:?} {flow:?}: stopped after {stopped:?}");
        assert!(stopped.is_some(), "{flow:?} goes on:\n{}", agent.log().join("\n"));
        assert_eq!(flow.rounds(2), 0, "{flow:?} is back");
    }
    let (mut bystander, report) = bystander.stop_intact();
    println!("bystander: {report:?}");
    topology.assert_accelerated(&mut bystander);
}

#[test]
fn a_drop_rule_stops_offloaded_flows_without_nat() {
    a_drop_rule_stops_offloaded_flows(Nat::Plain);
}

#[test]
fn a_drop_rule_stops_offloaded_flows_with_masquerade() {
    a_drop_rule_stops_offloaded_flows(Nat::Masquerade);
}

#[test]
fn a_drop_rule_stops_offloaded_flows_with_a_service_address() {
    a_drop_rule_stops_offloaded_flows(Nat::Service);
}

/// The same with kindnet's rules: every flow goes on.
#[track_caller]
fn kindnet_rules_let_offloaded_flows_go_on(nat: Nat) {
    let topology = Topology::build(Layout { nat, ..Layout::default() });
    topology.node.nft(FIREWALL);
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    for case in CASES {
        let mut flow = open(&topology, nat, case);
        topology.assert_becomes_accelerated(&mut flow);
        topology.node.nft(&deny(case.2));
        assert_eq!(stopped_within(&mut flow, LIMIT), None, "{flow:?}");
    }
}

#[test]
fn kindnet_rules_never_enforce_a_drop_rule_without_nat() {
    kindnet_rules_let_offloaded_flows_go_on(Nat::Plain);
}

#[test]
fn kindnet_rules_never_enforce_a_drop_rule_with_masquerade() {
    kindnet_rules_let_offloaded_flows_go_on(Nat::Masquerade);
}

#[test]
fn kindnet_rules_never_enforce_a_drop_rule_with_a_service_address() {
    kindnet_rules_let_offloaded_flows_go_on(Nat::Service);
}

/// What other programs do: a set's element, iptables-nft, a policy, a rule that accepted and is gone.
#[test]
fn every_kind_of_denial_counts() {
    let changes = [
        ("add element inet firewall denied { 7001 }", 7001),
        ("flush chain inet firewall accepted", 7002),
        ("add chain inet firewall forward { policy drop; }", 7003),
    ];
    for (change, port) in changes {
        let topology = Topology::routed();
        topology.node.nft(
            "table inet firewall {
                set denied { type inet_service; }
                chain accepted { udp dport 7002 accept; udp sport 7002 accept; }
                chain forward {
                    type filter hook forward priority filter; policy accept;
                    udp dport @denied drop
                    jump accepted
                    udp dport 7002 drop
                }
            }",
        );
        let agent = Agent::start(&topology.node, &[]);
        let mut flow = topology.open(Proto::Udp, Family::V4, port);
        topology.assert_becomes_accelerated(&mut flow);
        topology.node.nft(change);
        let stopped = stopped_within(&mut flow, LIMIT);
        assert!(stopped.is_some(), "{change}: {flow:?} goes on:\n{}", agent.log().join("\n"));
        assert_eq!(flow.rounds(2), 0, "{change}: {flow:?} is back");
    }
}

#[test]
fn iptables_nft_counts() {
    let topology = Topology::routed();
    let iptables = |args: &str| {
        let args: Vec<&str> = args.split_whitespace().collect();
        topology.node.output("iptables-nft", &args);
    };
    let _agent = Agent::start(&topology.node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    iptables("-I FORWARD -p udp --dport 7001 -j DROP");
    assert!(stopped_within(&mut flow, LIMIT).is_some(), "{flow:?} goes on");
    assert_eq!(flow.rounds(2), 0, "{flow:?} is back");
    iptables("-D FORWARD -p udp --dport 7001 -j DROP");
    flow.settle();
    flow.rounds(40);
    topology.assert_accelerated(&mut flow);
}

/// Changes that can't concern forwarding cost no packet and no transaction.
#[test]
fn what_cannot_concern_forwarding_is_left_alone() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let node = &topology.node;
    node.nft(
        "table ip services { map m { type inet_service : ipv4_addr; }
             chain pre { type nat hook prerouting priority dstnat; dnat ip to udp dport map @m; }; }
         table inet local { set s { type ipv4_addr; }
             chain in { type filter hook input priority filter; ip saddr @s drop; }; }
         table netdev early { chain c { type filter hook ingress device c0 priority -500; }; }",
    );
    let agent = Agent::start(node, &["--v=2"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let before = topology.forwarded(7001);
    let background = flow.in_background();
    let mut monitor = Monitor::start(node);
    let commits_before = monitor.commits_of_agent();
    for change in [
        "add element ip services m { 80 : 10.0.0.1 }",
        "add rule ip services pre udp dport 90 dnat to 10.0.0.2",
        "add element inet local s { 10.9.9.9 }",
        "add rule inet local in tcp dport 22 drop",
        "add rule netdev early c udp dport 9 drop",
        "table inet unhooked { chain c { drop; }; }",
        "delete table inet unhooked",
    ] {
        node.nft(change);
        thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(monitor.commits_of_agent(), commits_before, "{:#?}", monitor.lines());
    let (flow, report) = background.stop_intact();
    assert_eq!(topology.forwarded(7001), before, "{flow:?}: {report:?}");
    // Not even a look at the table.
    assert_eq!(agent.count("trigger=ruleset"), 0, "{}", agent.log().join("\n"));
}

/// One transaction at once, and then one a second; nothing at all while no flow comes back.
#[test]
fn many_changes_are_answered_together() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(FIREWALL);
    let _agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let mut monitor = Monitor::start(node);
    let commits = |monitor: &mut Monitor, flow: &mut Flow, send: bool| {
        let before = monitor.commits_of_agent();
        let start = Instant::now();
        let mut changes = 0;
        while start.elapsed() < Duration::from_millis(3500) {
            node.nft("add rule inet firewall forward udp dport 9 drop");
            changes += 1;
            if send {
                assert_eq!(flow.rounds(30), 30);
            }
            // Waiting takes the guest no time, and changes much.
            thread::sleep(Duration::from_millis(150));
        }
        thread::sleep(Duration::from_millis(1100));
        println!("{changes} changes");
        assert!(changes >= 4, "{changes}");
        monitor.commits_of_agent() - before
    };
    let busy = commits(&mut monitor, &mut flow, true);
    assert!((2..=6).contains(&busy), "{busy} transactions in 4.6 s: {:#?}", monitor.lines());
    // The last one emptied it, so that there is nothing to throw out.
    let idle = commits(&mut monitor, &mut flow, false);
    assert!(idle <= 1, "{idle} transactions without traffic");
}

#[test]
fn it_can_be_switched_off_and_done_by_hand() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(FIREWALL);
    let agent = Agent::start(node, &["--revalidate=off"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    node.nft(&deny(7001));
    assert_eq!(stopped_within(&mut flow, LIMIT), None);
    let said = agent::output(node, &["revalidate"]);
    assert!(said.contains("flowtable emptied: 1 of 1 connections were offloaded"), "{said}");
    assert_eq!(flow.rounds(2), 0);
    assert_eq!(agent.count("putting it back"), 0, "{}", agent.log().join("\n"));
    let mut monitor = Monitor::start(node);
    let commits = monitor.commits_of_agent();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(monitor.commits_of_agent(), commits, "the agent answers nothing");
}

/// Nothing of it confuses a running agent.
#[test]
fn by_hand_with_and_without_a_running_agent() {
    let topology = Topology::routed();
    let node = &topology.node;
    let said = agent::output(node, &["revalidate"]);
    assert!(said.contains("nothing to do"), "{said}");
    let agent = Agent::start(node, &[]);
    let before = table::listing(node);
    let mut flow = topology.open(Proto::Tcp, Family::V6, 7001);
    for running in [true, false] {
        assert_eq!(flow.rounds(25), 25);
        topology.assert_accelerated(&mut flow);
        let forwarded = topology.forwarded(7001);
        agent::output(node, &["revalidate"]);
        assert_eq!(flow.rounds(20), 20);
        assert!(
            topology.forwarded(7001) != forwarded,
            "it has left the flowtable (agent running: {running})"
        );
        assert_eq!(table::listing(node), before);
        if running {
            thread::sleep(Duration::from_millis(300));
            assert_eq!(agent.count("putting it back") + agent.count("another program"), 0);
        }
        if running {
            agent.signal(nix::sys::signal::Signal::SIGSTOP);
        }
    }
}

/// An early priority is where the chain begins: it moves behind the filters as they come.
#[test]
fn with_an_early_priority_it_is_enforced_too() {
    let topology = Topology::routed();
    let agent = Agent::start(&topology.node, &["--chain-priority=-110"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    topology.node.nft(FIREWALL);
    topology.node.nft(&deny(7001));
    let stopped = stopped_within(&mut flow, LIMIT);
    assert!(stopped.is_some(), "{flow:?} goes on:\n{}", agent.log().join("\n"));
    assert_eq!(flow.rounds(2), 0, "{flow:?} is back");
}

/// So many changes of the ruleset, 100 a second: `nft -i` makes a transaction of each line.
#[track_caller]
fn churn(node: &Netns, changes: u32, mut change: impl FnMut(u32) -> String) -> Duration {
    let mut command = Command::new("nft");
    command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut nft = node.spawn(&mut command);
    let mut stdin = nft.stdin.take().expect("piped");
    let start = Instant::now();
    for number in 0..changes {
        writeln!(stdin, "{}", change(number)).expect("nft reads");
        thread::sleep((Duration::from_millis(10) * number).saturating_sub(start.elapsed()));
    }
    drop(stdin);
    assert!(nft.wait().expect("wait for nft").success());
    start.elapsed()
}

#[test]
fn a_hundred_changes_a_second_cost_little() {
    const CHANGES: u32 = 500;
    let topology = Topology::routed();
    let node = &topology.node;
    for (table, hook) in [("local", "input"), ("firewall", "forward")] {
        node.nft(&format!(
            "table inet {table} {{
                set s {{ type inet_service; }}
                chain c {{ type filter hook {hook} priority filter; policy accept; udp sport @s drop; }}
            }}"
        ));
    }
    let agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let mut monitor = Monitor::start(node);
    for (kind, table) in [("irrelevant", "local"), ("relevant", "firewall")] {
        let commits = monitor.commits_of_agent();
        let before = (agent.cpu_time(), agent.wake_ups(), topology.forwarded(7001).total());
        let took = churn(node, CHANGES, |number| {
            // Seldom, since the emulated processor is needed for the changes.
            if number % 25 == 0 {
                assert_eq!(flow.rounds(2), 2);
            }
            format!("add element inet {table} s {{ {} }}", number + 1)
        });
        let (cpu, wake_ups) = (agent.cpu_time() - before.0, agent.wake_ups() - before.1);
        let forwarded = topology.forwarded(7001).total() - before.2;
        let commits = monitor.commits_of_agent() - commits;
        println!(
            "{:.0} {kind} changes a second for {took:.1?}: {:.2} % of a processor, {:.1} wake-ups a second, {commits} \
             transactions of the agent's, {forwarded} packets of a flow on the forward path",
            f64::from(CHANGES) / took.as_secs_f64(),
            cpu.as_secs_f64() / took.as_secs_f64() * 100.0,
            wake_ups as f64 / took.as_secs_f64(),
        );
        assert!(wake_ups <= u64::from(CHANGES) * 6 / 5 + 20, "{wake_ups} wake-ups");
        assert!(cpu < took / 100, "{cpu:?} in {took:?}");
        let expected = if kind == "relevant" { 1..=took.as_secs() as usize + 2 } else { 0..=0 };
        assert!(expected.contains(&commits), "{commits} transactions in {took:?}");
    }
}
