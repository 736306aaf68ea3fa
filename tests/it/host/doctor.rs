//! `doctor` on whatever kernel this is: red with the remedy where it has no flowtable, and a canary that tells the
//! forward path from none.

use fastpath_tests::{agent, topology::Topology};
use serde_json::Value;

#[test]
fn a_kernel_without_flowtables_is_red_and_one_with_them_is_green() {
    let topology = Topology::routed();
    let script = "table inet probe { flowtable f { hook ingress priority 0; devices = { c0 }; }; }";
    let has = topology.node.try_run("nft", &["-c", "-f", "-"], script).status.success();
    let output = agent::run(&topology.node, &["doctor", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("a list");
    let levels = |check: &str| -> Vec<&str> {
        let findings = findings.iter().filter(|finding| finding["check"] == check);
        findings.filter_map(|finding| finding["level"].as_str()).collect()
    };
    if has {
        assert_eq!(levels("kernel"), ["green"], "{report:#}");
        assert_eq!(levels("canary"), ["green"; 4], "{report:#}");
    } else {
        assert_eq!((levels("kernel"), levels("canary")), (vec!["red"], vec!["red"]), "{report:#}");
        let kernel = findings.iter().find(|finding| finding["check"] == "kernel").expect("just counted");
        let found = kernel["found"].as_str().expect("text").to_lowercase();
        assert!(found.contains("flow_table"), "no module or option is named: {kernel:#}");
        assert!(kernel["remedy"].as_str().is_some_and(|remedy| remedy.contains("kernel with flowtables")));
        let canary = findings.iter().find(|finding| finding["check"] == "canary").expect("just counted");
        assert!(canary["found"].as_str().is_some_and(|found| found.contains("none was sent")), "{canary:#}");
        assert_eq!(report["canary"], Value::Array(Vec::new()));
    }
    assert_eq!(output.status.code(), Some(i32::from(!has)), "{report:#}");
}

/// Without a ruleset every packet of the canary takes the forward path, and is counted there.
#[test]
fn the_canary_counts_what_takes_the_forward_path() {
    let topology = Topology::routed();
    let lines = agent::output(&topology.node, &["canary", "--fastpath-threshold=0"]);
    assert_eq!(lines.lines().count(), 4, "{lines}");
    for line in lines.lines() {
        let flow: Value = serde_json::from_str(line).expect("JSON");
        assert!(flow["error"].is_null() && flow["intact"] == 50, "{line}");
        let (ingress, forwarded) = (flow["ingress"].as_u64(), flow["forwarded"].as_u64());
        assert!(forwarded >= Some(100) && ingress >= forwarded, "{line}");
    }
}

#[test]
fn a_wrong_flag_exits_64() {
    let topology = Topology::routed();
    for args in
        [&["doctor", "--fastpath-threshold=x"][..], &["doctor", "-o", "xml"], &["doctor", "--no-such-flag"]]
    {
        let output = agent::run(&topology.node, args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(output.stdout.is_empty());
    }
}
