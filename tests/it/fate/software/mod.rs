//! The rules of real software, as its source writes them, with a small sample of pods and services: which of them concern
//! established connections, and that flows have the same fate with a fast path and without. A file for each program.

mod calico;
mod crowdsec;
mod docker;
mod firewalld;
mod hardened;
mod kube_network_policies;
mod kube_proxy;
mod kube_router;

use fastpath_tests::{
    agent,
    netns::Netns,
    topology::Family,
    twin::{Case, Change, Path, Step},
};
use serde_json::Value;

/// Stops IPv4 flows; those of IPv6 stay fast.
const STOP_V4: Change = Change { family: Some(Family::V4), path: Path::Fast, ..Change::STOP };

/// What an administrator does beside software that writes with iptables-nft.
const IN_FRONT: Change = Change {
    name: "an administrator's rule in front",
    steps: &[Step::Node("iptables-nft -I FORWARD -s 10.1.0.2 -j DROP")],
    undo: &[Step::Node("iptables-nft -D FORWARD 1")],
    ..STOP_V4
};

/// `STOP_V4` where a rule has flows revalidated, again and again.
const STOP_V4_REVALIDATED: Change = Change { path: Path::Revalidated, ..STOP_V4 };
const HARMLESS_REVALIDATED: Change = Change { path: Path::Revalidated, ..Change::HARMLESS };
/// A node with such a rule.
const REVALIDATED: Case = Case { path: Path::Revalidated, ..Case::PLAIN };

/// Loads the rules on a node, and says which of them concern offloaded flows: class, cause, table and chain of each. Rules that
/// decide nothing are left out.
#[track_caller]
fn concerned(set_up: &[Step]) -> Vec<String> {
    let node = Netns::new("node");
    for step in set_up {
        let Step::Node(script) = step else { panic!("{step:?} isn't for the node") };
        node.feed("bash", &["-euc", script], "");
    }
    let output = agent::run(&node, &["doctor", "--no-canary", "-o", "json"]);
    let doctor: Value = serde_json::from_slice(&output.stdout).expect("the agent prints JSON");
    let rules = doctor["rules"].as_array().expect("rules").iter();
    let text = |rule: &Value| {
        let of = |field: &str| rule[field].as_str().unwrap_or_default().to_owned();
        let place = format!("{} {} {}", of("family"), of("table"), of("chain"));
        let conditions = of("conditions");
        let conditions = if conditions.is_empty() { conditions } else { format!(" [{conditions}]") };
        format!("{} {} in {place}{conditions}", of("class"), of("cause"))
    };
    rules.filter(|rule| rule["class"] != "not-decisive").map(text).collect()
}
