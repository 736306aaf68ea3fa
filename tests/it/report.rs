//! `render` and `status`: what they say is what is installed, and they touch nothing.

use std::time::Duration;

use fastpath_tests::{
    agent::{self, Agent},
    http,
    netns::Netns,
    reference, table,
    topology::{Family, Layout, Topology},
    traffic::Proto,
    wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn render_is_what_the_agent_installs() {
    for flags in [
        &[][..],
        &["--fastpath-threshold=6", "--interfaces=c*,s*"],
        &["--chain-priority=-110", "--exclude-interfaces=p3"],
    ] {
        let topology = Topology::build(Layout { pods: 3, ..Layout::default() });
        let node = &topology.node;
        let before = table::ruleset(node);
        let rendered = agent::output(node, &[&["render"], flags].concat());
        node.feed("nft", &["-c", "-f", "-"], &rendered);
        assert_eq!(table::ruleset(node), before, "render and nft -c touch nothing");
        node.nft(&rendered);
        let by_nft = table::listing(node);
        let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
        assert_eq!(flow.rounds(20), 20);
        topology.assert_accelerated(&mut flow);
        node.nft("delete table inet kindnet-fastpath");
        let _agent = Agent::start(node, flags);
        assert_eq!(table::listing(node), by_nft, "{rendered}");
    }
}

/// Conditions of other programs' rules and of policy rules, of every shape that is copied.
#[test]
fn render_says_conditions_as_the_agent_installs_them() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(
        "table inet others { chain f { type filter hook forward priority 0;
            iifname c0 ip saddr 10.9.0.0/17 limit rate over 1/second drop
            oifname != \"s*\" meta nfproto != ipv6 limit rate over 1/second drop
            ether saddr 02:00:00:00:00:99 limit rate over 1/second drop
            ip saddr & 0.0.0.255 == 0.0.0.99 limit rate over 1/second drop
            ip6 daddr fd00:99::/61 th dport != 53 limit rate over 1/second drop
            ip protocol tcp tcp sport 100-200 limit rate over 1/second drop
            meta l4proto != 6 ct mark & 0xf0 == 0x90 limit rate over 1/second drop
            ct mark > 1000 ip daddr > 10.200.0.0 limit rate over 1/second drop
         };
         chain pre { type filter hook prerouting priority raw;
            ip saddr 10.8.0.0/17 udp dport 5060 limit rate over 1/second drop
            ip6 daddr fd00:98::/61 tcp sport 1-9 limit rate over 1/second drop
            iifname c0 ip saddr 10.7.0.0/16 ip daddr != 10.6.0.1 limit rate over 1/second drop
         };
         chain post { type filter hook postrouting priority 300;
            ip daddr 10.5.0.1 tcp dport != 80 limit rate over 1/second drop
         }; }",
    );
    for rule in
        ["iif c0 ipproto tcp dport 443-444", "to 10.99.0.0/17 sport 9", "-6 to fd00:99::/61 ipproto udp"]
    {
        let (family, rule) = rule.strip_prefix("-6 ").map_or(("-4", rule), |rule| ("-6", rule));
        let words: Vec<&str> = rule.split(' ').collect();
        node.output("ip", &[&[family, "rule", "add"], words.as_slice(), &["lookup", "main"]].concat());
    }
    let rendered = agent::output(node, &["render"]);
    node.nft(&rendered);
    let by_nft = table::listing(node).expect("a table");
    for what in [
        "10.9.0.0/17",
        "fd00:99::/61",
        "100-200",
        "443-444",
        "iiftype ether",
        "0x00000090",
        "ct reply proto-src",
        "10.8.0.0/17",
    ] {
        assert!(by_nft.contains(what), "no {what} in {by_nft}");
    }
    node.nft("delete table inet kindnet-fastpath");
    let agent = Agent::start(node, &[]);
    assert_eq!(table::listing(node).expect("a table"), by_nft, "{rendered}");
    assert_eq!(agent.count("putting it back"), 0);
}

#[test]
fn render_is_accepted_twice_and_offloads_nothing_with_threshold_0() {
    let topology = Topology::routed();
    let node = &topology.node;
    let rendered = agent::output(node, &["render"]);
    node.nft(&rendered);
    node.nft(&rendered);
    let nothing = agent::output(node, &["render", "--fastpath-threshold=0"]);
    node.feed("nft", &["-c", "-f", "-"], &nothing);
    assert!(!nothing.contains("flow add"), "{nothing}");
}

fn status(topology: &Topology) -> Value {
    let text = agent::output(&topology.node, &["status", "-o", "json"]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn interface<'a>(status: &'a Value, name: &str) -> &'a Value {
    let interfaces = status["interfaces"].as_array().expect("a list");
    interfaces.iter().find(|i| i["name"] == name).unwrap_or_else(|| panic!("no {name} in {status:#}"))
}

#[test]
fn status_says_what_is_installed() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.ip("link set lo up\nlink add idle type dummy\n");
    let nothing = status(&topology);
    assert!(nothing["table"].is_null(), "{nothing:#}");
    assert_eq!(interface(&nothing, "c0")["managed"], false);

    let _agent = Agent::start(node, &["--exclude-interfaces=nothing-like-it"]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let told = status(&topology);
    assert_eq!(told["table"]["owner"], "ours", "{told:#}");
    assert_eq!(told["table"]["threshold"], 20);
    assert_eq!(told["table"]["chain_priority"], 300);
    assert_eq!(told["table"]["devices"], 2);
    assert_eq!(told["table"]["counter"], true);
    assert_eq!(told["table"]["offloads"]["packets"], table::offered(node));
    assert!(table::offered(node) >= 1);
    for (name, managed) in [("c0", true), ("s0", true), ("lo", false), ("idle", false)] {
        let interface = interface(&told, name);
        assert_eq!(interface["managed"], managed, "{interface:#}");
        assert_eq!(interface["reason"].is_null(), managed, "{interface:#}");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    assert_eq!(told["kernel"]["release"], release.trim());
    let text = agent::output(node, &["status"]);
    // Where the kernel has tunnels each namespace begins with some.
    let interfaces = told["interfaces"].as_array().expect("a list").len();
    for words in ["more than 20 packets", &format!("2 of {interfaces} in the flowtable"), "loopback"] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
}

#[test]
fn status_knows_a_table_of_others() {
    let topology = Topology::routed();
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    let theirs = status(&topology);
    assert_eq!(theirs["table"]["owner"], "foreign", "{theirs:#}");
    let text = agent::output(&topology.node, &["status"]);
    assert!(text.contains("made by another program"), "{text}");
}

/// Exit code and what it prints.
fn stands(node: &Netns) -> (Option<i32>, String) {
    let output = agent::run(node, &["status"]);
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn status_says_how_the_agent_stands() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.ip("link set lo up\n");
    let (code, text) = stands(node);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.starts_with("agent       NOT RUNNING: `fastpath-agent run`"), "{text}");

    let flags = [http::SERVE, "--hostname-override=n7", "--exclude-interfaces=s0"];
    let agent = Agent::start(node, &flags);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(3), 3);
    let (code, text) = stands(node);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("agent       ready, running since 20") && text.contains(", version "), "{text}");
    assert!(text.contains("node        n7\n") && text.contains("excluded by --exclude-interfaces"), "{text}");
    assert!(text.contains("flows       0 fast, 1 could be fast, 0 never\n"), "{text}");

    agent.signal(Signal::SIGSTOP);
    let (code, text) = stands(node);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with("agent       DEGRADED: it doesn't answer"), "{text}");
    agent.signal(Signal::SIGCONT);
    agent.stop();

    // What isn't watched has no share.
    assert!(!text.contains("packets     "), "{text}");
    let agent = Agent::start_with(node, &[http::SERVE]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    topology.assert_becomes_accelerated(&mut flow);
    assert_eq!(flow.rounds(300), 300);
    // What the agent says of the hour may be a moment old.
    std::thread::sleep(Duration::from_millis(2500));
    let (code, text) = stands(node);
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("packets     ")).unwrap_or_default();
    let share: u32 = line.split_once('%').and_then(|(share, _)| share.parse().ok()).unwrap_or(0);
    assert!((80..100).contains(&share) && line.contains("on the fast path in the last minute"), "{text}");
    agent.stop();

    // Without a port to ask at, the kernel is asked.
    node.nft("delete table inet kindnet-fastpath");
    node.nft(&reference::kindnet(&["c0", "s0"]));
    let _agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
    wait_until("the agent's process", Duration::from_secs(5), || stands(node).0 == Some(1));
    let (_, text) = stands(node);
    assert!(
        text.starts_with("agent       DEGRADED: table inet kindnet-fastpath was made by another"),
        "{text}"
    );
}
