//! Interfaces and flowtables with hostile names, where flows are really offloaded over them.

use std::time::Duration;

use fastpath_tests::{
    agent::{self, Agent},
    table,
    topology::{Family, Layout, Topology},
    traffic::Proto,
};
use serde_json::Value;

use crate::host::names::{add_flowtable, assert_harmless_on_a_terminal, harmless};

/// What gives a terminal another title, what ends a string of JSON, and a control of Unicode's; and how they are shown.
const NAMES: [(&str, &str, &str); 3] = [
    ("s0", "\x1b]0;own\x07", r"\x1b]0;own\x07"),
    ("p3", "a\"}\\b", r"a\x22}\\b"),
    ("p4", "c1\u{9b}2J", r"c1\u{9b}2J"),
];

#[test]
fn flows_over_interfaces_with_hostile_names_are_offloaded_and_shown() {
    let topology = Topology::build(Layout { pods: 4, ..Layout::default() });
    let node = &topology.node;
    for (before, name, _) in NAMES {
        node.ip(&format!("link set {before} down\n"));
        node.output("ip", &["link", "set", before, "name", name]);
        node.output("ip", &["link", "set", name, "up"]);
    }
    add_flowtable(node, b"f\n\x1b[2J", &[NAMES[2].1.as_bytes()]);
    let agent = Agent::start_with(node, &[]);
    let links = ["c0", NAMES[0].1, NAMES[1].1, NAMES[2].1];
    table::wait_for_devices(node, &links, Duration::from_secs(3));
    agent::wait_for_programs(node, &["c0", NAMES[0].2, NAMES[1].2, NAMES[2].2]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let mut between = topology.open_between(2, 3, Proto::Udp, Family::V4, 7002);
    topology.assert_becomes_accelerated(&mut between);

    let words = flow.words();
    let commands: [&[&str]; 7] = [
        &["status"],
        &["status", "-o", "json"],
        &["doctor"],
        &["flows"],
        &["flows", "-o", "json"],
        &["why", &words[0], &words[1], &words[2]],
        &["render"],
    ];
    let mut told = String::new();
    for command in commands {
        let output = agent::run(node, command);
        harmless(&command.join(" "), &output.stderr);
        let text = harmless(&command.join(" "), &output.stdout);
        if command.contains(&"json") {
            let _: Value =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{command:?}: {error}\n{text}"));
        }
        told.push_str(text);
    }
    for (_, _, shown) in NAMES {
        assert!(told.contains(shown), "nothing tells of {shown}:\n{told}");
        assert_harmless_on_a_terminal(node, &["top"], shown);
    }
    // What it hears of while it runs: one of them goes, and comes again.
    node.output("ip", &["link", "del", NAMES[2].1]);
    table::wait_for_devices(node, &links[..3], Duration::from_secs(3));
    node.output("ip", &["link", "add", "name", NAMES[2].1, "type", "veth", "peer", "name", "late"]);
    node.output("ip", &["link", "set", NAMES[2].1, "up"]);
    node.ip("link set late up\n");
    table::wait_for_devices(node, &[&links[..], &["late"]].concat(), Duration::from_secs(3));
    topology.assert_accelerated(&mut flow);
    let log = agent.stop();
    harmless("the log", log.join("\n").as_bytes());
    let held = log.iter().filter(|line| line.contains(" WARN ") || line.contains("ERROR")).count();
    assert_eq!(held, 0, "{log:#?}");
}
