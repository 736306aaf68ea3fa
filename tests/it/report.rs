//! `render` and `status`: what they say is what is installed, and they touch nothing.

use fastpath_tests::{
    agent::{self, Agent},
    reference, table,
    topology::{Family, Layout, Topology},
    traffic::Proto,
};
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
    let ours = status(&topology);
    assert_eq!(ours["table"]["owner"], "ours", "{ours:#}");
    assert_eq!(ours["table"]["threshold"], 20);
    assert_eq!(ours["table"]["chain_priority"], 300);
    assert_eq!(ours["table"]["devices"], 2);
    assert_eq!(ours["table"]["counter"], true);
    assert_eq!(ours["table"]["offloads"]["packets"], table::offered(node));
    assert!(table::offered(node) >= 1);
    for (name, managed) in [("c0", true), ("s0", true), ("lo", false), ("idle", false)] {
        let interface = interface(&ours, name);
        assert_eq!(interface["managed"], managed, "{interface:#}");
        assert_eq!(interface["reason"].is_null(), managed, "{interface:#}");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    assert_eq!(ours["kernel"]["release"], release.trim());
    let text = agent::output(node, &["status"]);
    // Where the kernel has tunnels each namespace begins with some.
    let interfaces = ours["interfaces"].as_array().expect("a list").len();
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
    assert!(text.contains("made by somebody else"), "{text}");
}
