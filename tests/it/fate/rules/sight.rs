//! What an operator sees of such rules, and what `--ignore-rule` does.

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Family, Topology},
    traffic::Proto,
    why::{ask, asked, assert_reason},
};
use serde_json::{Value, json};

const RULES: &str = "table inet edge {
    set portal { type ipv4_addr; flags timeout; }
    chain forward { type filter hook forward priority 0;
        ip saddr 10.1.0.2 limit rate over 1000000/second drop comment \"shape guests\"
        ip saddr @portal drop
        limit rate 1/minute log
        ct state new limit rate over 1000000/second drop
    }
 }";

fn json(node: &Netns, args: &[&str]) -> Value {
    let output = agent::run(node, args);
    serde_json::from_slice(&output.stdout).expect("the agent prints JSON")
}

/// What is done about each rule, with its cause.
fn handling(rules: &Value) -> Vec<(String, String)> {
    let text = |rule: &Value, field: &str| rule[field].as_str().unwrap_or_default().to_owned();
    rules.as_array().into_iter().flatten().map(|rule| (text(rule, "handling"), text(rule, "cause"))).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect()
}

#[test]
fn rules_are_listed_with_what_is_done_about_each() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(RULES);
    let agent = Agent::start(node, &[]);
    let log = agent.log().join("\n");
    assert!(log.contains("revalidated at known moments"), "{log}");
    assert!(log.contains("inet edge forward handle") && log.contains("(set portal)"), "{log}");
    assert!(!log.contains("no flow is offloaded"), "{log}");
    let expected =
        pairs(&[("respected", "limit"), ("re-validated", "set portal"), ("not-decisive", "limit")]);
    let status = json(node, &["status", "-o", "json"]);
    assert_eq!(handling(&status["rules"]), expected);
    assert_eq!(status["rules"][0]["comment"], json!("shape guests"));
    assert_eq!(status["rules"][0]["conditions"], json!("meta nfproto ipv4 ip saddr 10.1.0.2"));
    let text = agent::output(node, &["status"]);
    println!("{text}");
    assert!(text.contains("keeps on the normal path: meta nfproto ipv4 ip saddr 10.1.0.2"), "{text}");
    let doctor = json(node, &["doctor", "--no-canary", "-o", "json"]);
    assert_eq!(handling(&doctor["rules"]), expected);
    let findings = doctor["findings"].as_array().expect("findings").iter();
    let level = |check: &str| {
        let of_check = findings.clone().filter(|finding| finding["check"] == json!(check));
        of_check.map(|finding| finding["level"].as_str().unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!((level("ruleset"), level("rules")), (vec!["green"], vec!["green", "green"]));
}

#[test]
fn a_rule_without_conditions_leaves_all_flows_out_and_says_so() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft("table inet edge { chain c { type filter hook forward priority 0; limit rate over 1000000/second drop; }; }");
    let agent = Agent::start(node, &[]);
    let log = agent.log().join("\n");
    assert!(log.contains("no flow is offloaded") && log.contains("--ignore-rule"), "{log}");
    let mut flow = topology.open(Proto::Udp, Family::V6, 7001);
    assert!(topology.measure(&mut flow, 20).delivered());
    topology.assert_forwarded(&mut flow);
    let doctor = json(node, &["doctor", "--no-canary", "-o", "json"]);
    let findings = doctor["findings"].as_array().expect("findings");
    let finding = findings.iter().find(|finding| finding["check"] == json!("rules")).expect("a finding");
    assert_eq!(finding["level"], json!("amber"), "{finding}");
}

/// By comment, by chain, by what they ask.
#[test]
fn rules_that_are_ignored_by_choice_leave_flows_fast() {
    for ignore in ["shape guests", "inet edge forward", "limit", "every-packet", "all"] {
        let topology = Topology::routed();
        topology.node.nft(RULES);
        let agent = Agent::start(&topology.node, &[&format!("--ignore-rule={ignore}")]);
        let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
        topology.assert_becomes_accelerated(&mut flow);
        let status = json(&topology.node, &["status", "-o", "json"]);
        assert_eq!(handling(&status["rules"])[0].0, "ignored", "{ignore}");
        drop(agent);
    }
}

/// A flow that meets the copied conditions, one that doesn't, and one whose rule asks for an interface.
#[test]
fn why_and_flows_name_the_rule_that_keeps_a_flow_off() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(
        "table inet edge { chain capped { udp dport 7002 quota over 100 mbytes drop; }
          chain forward { type filter hook forward priority 0;
            udp dport 9 limit rate over 1000000/second drop
            ip saddr 10.1.0.2 udp dport 7001 limit rate over 1000000/second drop comment \"shape guests\"
            iifname c0 jump capped
        }; }",
    );
    let _agent = Agent::start_with(node, &[]);
    let mut flows = [7001, 7002, 7003].map(|port| topology.open(Proto::Udp, Family::V4, port));
    for flow in &mut flows {
        assert_eq!(flow.rounds(50), 50);
    }
    let _flows = flows.map(|flow| flow.in_background());
    let answer = assert_reason(&topology, 7001, "every-packet");
    let rule = answer["verdict"]["rule"].as_str().unwrap_or_default();
    assert!(
        rule.starts_with("inet edge forward handle ") && rule.ends_with("\"shape guests\""),
        "{answer:#}"
    );
    assert_eq!((&answer["verdict"]["asks"], &answer["verdict"]["certain"]), (&json!("limit"), &json!(true)));
    let answer = assert_reason(&topology, 7002, "every-packet");
    assert_eq!((&answer["verdict"]["asks"], &answer["verdict"]["certain"]), (&json!("quota"), &json!(true)));
    assert_eq!(ask(node, &asked(&topology, 7003))["verdict"]["accelerated"], "yes");
    let listed = json(node, &["flows", "--state=stalled", "-o", "json"]);
    let causes: Vec<&Value> = listed.as_array().expect("flows").iter().map(|flow| &flow["cause"]).collect();
    assert!(causes.contains(&&json!({ "every-packet": rule })), "{listed:#}");
}
