//! The agent's table as `nft` shows it.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use crate::{netns::Netns, wait_until};

/// Name of the agent's table, family inet.
pub const TABLE: &str = "kindnet-fastpath";

/// The agent's table without handles and counters' values, or `None` when there is no such table. Nor with the flows that
/// rules put into sets, which come and go with packets.
pub fn listing(node: &Netns) -> Option<String> {
    let output = node.try_run("nft", &["-s", "list", "table", "inet", TABLE], "");
    output.status.success().then(|| without_flows(&String::from_utf8(output.stdout).expect("UTF-8")))
}

fn without_flows(listing: &str) -> String {
    const FILLED: [&str; 2] = ["\tset kindnet-slow-path ", "\tset kindnet-seen-"];
    let (mut in_set, mut in_elements) = (false, false);
    let mut kept = String::new();
    for line in listing.split_inclusive('\n') {
        in_set = FILLED.iter().any(|set| line.starts_with(set)) || in_set && line != "\t}\n";
        in_elements |= in_set && line.starts_with("\t\telements = ");
        if !in_elements {
            kept += line;
        }
        in_elements &= !line.ends_with("}\n");
    }
    kept
}

/// The whole ruleset without the values of counters.
#[track_caller]
pub fn ruleset(node: &Netns) -> String {
    node.output("nft", &["-s", "list", "ruleset"])
}

/// Devices in the flowtables of the agent's table, by name; none when there is no flowtable.
#[track_caller]
pub fn devices(node: &Netns) -> BTreeSet<String> {
    devices_where(node, |_| true)
}

/// Devices in one flowtable of the agent's table.
#[track_caller]
pub fn devices_of(node: &Netns, name: &str) -> BTreeSet<String> {
    devices_where(node, |flowtable| flowtable["name"] == name)
}

#[track_caller]
fn devices_where(node: &Netns, wanted: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    let listing = node.output("nft", &["-j", "list", "flowtables"]);
    let listing: Value = serde_json::from_str(&listing).expect("nft prints JSON");
    let flowtables = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["flowtable"]);
    let own = flowtables.filter(|flowtable| flowtable["table"] == TABLE && wanted(flowtable));
    own.flat_map(|flowtable| match &flowtable["dev"] {
        Value::String(device) => vec![device.clone()],
        Value::Array(devices) => devices.iter().filter_map(|d| d.as_str().map(str::to_owned)).collect(),
        _ => vec![],
    })
    .collect()
}

/// Waits until just these devices are in the flowtable.
#[track_caller]
pub fn wait_for_devices(node: &Netns, expected: &[&str], limit: Duration) -> Duration {
    let expected: BTreeSet<String> = expected.iter().map(|&device| device.to_owned()).collect();
    let mut seen = BTreeSet::new();
    wait_until(&format!("just {expected:?} in the flowtable"), limit, || {
        seen = devices(node);
        seen == expected
    })
}

/// Packets that the rule has offered to the flowtable.
#[track_caller]
pub fn offered(node: &Netns) -> u64 {
    let listing = node.output("nft", &["list", "table", "inet", TABLE]);
    let after = |line: &str| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    listing.lines().filter(|line| line.contains("flow add")).filter_map(after).sum()
}

/// Whether packets past the threshold have left traces that still count.
#[track_caller]
pub fn has_traces(node: &Netns) -> bool {
    ["kindnet-seen-original", "kindnet-seen-reply"]
        .iter()
        .any(|set| node.output("nft", &["list", "set", "inet", TABLE, set]).contains("elements = "))
}
