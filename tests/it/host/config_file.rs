//! The configuration file: who wins, and what becomes of one that isn't right.

use std::fs;

use fastpath_tests::{agent, table, topology::Topology};

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let topology = Topology::routed();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("agent.toml");
    fs::write(&file, "fastpath-threshold = 6\n").expect("a file");
    let config = format!("--config={}", file.display());
    for (flags, environment, threshold) in [
        (&["render"][..], None, 20),
        (&["render", &config], None, 6),
        (&["render", &config], Some("7"), 7),
        (&["render", &config, "--fastpath-threshold=8"], Some("7"), 8),
    ] {
        let mut command = agent::command(flags);
        if let Some(value) = environment {
            command.env("FASTPATH_THRESHOLD", value);
        }
        let output = topology.node.run(|| command.output()).expect("run the agent");
        let rules = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
        let rule = format!("ct packets > {} ", threshold - 1);
        assert!(rules.contains(&rule), "{flags:?} {environment:?}: {rules}");
    }
}

#[test]
fn a_file_that_is_not_right_ends_the_agent_before_it_touches_anything() {
    let topology = Topology::routed();
    let before = table::ruleset(&topology.node);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("agent.toml");
    let path = file.display().to_string();
    for (text, line, words) in [
        ("v = 1\nfastpath-treshold = 5", 2, "is 'fastpath-threshold' meant?"),
        ("ebpf = 'xdp2'", 1, "xdp-generic"),
        ("\n\nfastpath-threshold = 'many'", 3, "number of packets"),
        ("exclude = ['tcp/99999']", 1, "65535"),
        ("v = ", 1, ""),
    ] {
        fs::write(&file, text).expect("a file");
        let output = agent::run(&topology.node, &["--config", &path]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{text:?}: {said}");
        let first = said.lines().next().unwrap_or_default();
        assert!(
            first.starts_with(&format!("error: {path}:{line}: ")) && first.contains(words),
            "{text:?}: {said}"
        );
    }
    let output = agent::run(&topology.node, &["--config=/no/such/file"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("/no/such/file") && said.contains("No such file"), "{said}");
    assert_eq!(table::ruleset(&topology.node), before);
}
