//! Asks the agent why, as an operator does.

use serde_json::Value;

use crate::{agent, netns::Netns, topology::Topology};

/// Words that name the flow to this port, as conntrack has it.
#[track_caller]
pub fn asked(topology: &Topology, port: u16) -> [String; 3] {
    let lines = topology.conntrack(port);
    let [line] = lines.as_slice() else { panic!("one flow to {port}: {lines:?}") };
    let word = |name: &str| {
        let found = line.split_whitespace().find_map(|word| word.strip_prefix(name));
        found.unwrap_or_else(|| panic!("{name} in {line}"))
    };
    let end = |address: &str, port: &str| {
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    let protocol = line.split_whitespace().next().expect("a protocol");
    [protocol.to_owned(), end(word("src="), word("sport=")), end(word("dst="), word("dport="))]
}

/// What `why` says of a flow that must be found.
#[track_caller]
pub fn ask(node: &Netns, words: &[String; 3]) -> Value {
    let [protocol, source, destination] = words.each_ref().map(String::as_str);
    let text = agent::output(node, &["why", "-o", "json", protocol, source, destination]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// All reasons in an answer, that of the verdict first.
pub fn reasons(answer: &Value) -> Vec<&str> {
    let first = answer["verdict"]["reason"].as_str();
    let all = answer["steps"].as_array().into_iter().flatten();
    let all = all.flat_map(|step| step["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str));
    first.into_iter().chain(all.filter(|reason| Some(*reason) != first)).collect()
}

/// Asks about the flow to this port, which must not be accelerated, for this reason.
#[track_caller]
pub fn assert_reason(topology: &Topology, port: u16, reason: &str) -> Value {
    let answer = ask(&topology.node, &asked(topology, port));
    assert_eq!(answer["verdict"]["accelerated"], "no", "{answer:#}");
    assert_eq!(answer["verdict"]["reason"], reason, "{answer:#}");
    answer
}
