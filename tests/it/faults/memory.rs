//! Limits of memory: what fits is watched, what doesn't is said, and no limit ends the agent.

use std::{fmt::Write as _, fs, process::Command, time::Duration};

use fastpath_agent::core::memory_budget;
use fastpath_common::limits::{DEFAULT_MAX_FLOWS, MIN_FLOWS};
use fastpath_tests::{
    agent::{self, Agent},
    bench::packets,
    faults::rounds,
    http,
    link_up::add_dummies,
    memory_limit::MemoryLimit,
    netns::Netns,
    table,
    topology::{Family, Topology},
    traffic::Proto,
};

use crate::host::crowd::Crowd;

const LIMIT: Duration = Duration::from_secs(30);
/// In a place of its own, since a map that is there takes no memory.
const PINS: &str = "--pin-path=/sys/fs/bpf/limited";

fn cpus() -> u32 {
    aya::util::nr_cpus().expect("a number") as u32
}

/// The agent in a group with that limit.
fn start(node: &Netns, group: &MemoryLimit, flags: &[&str]) -> Agent {
    let mut agent = Agent::spawn(node, &mut group.confine(&agent::command(&[&[PINS], flags].concat())));
    agent.wait_for("ruleset verified", LIMIT);
    agent.wait_for_programs();
    agent
}

/// A subcommand beside the agent, as `kubectl exec` runs it.
#[track_caller]
fn run_beside(node: &Netns, group: &MemoryLimit, command: &Command) {
    let status = node.spawn(group.confine(command).stdout(std::process::Stdio::null())).wait();
    assert!(status.expect("it runs").success(), "{command:?}");
}

#[test]
fn what_fits_into_a_limit_is_watched() {
    let needed = |flows| memory_budget::needed(cpus(), flows);
    for (limit, flags, expected) in [
        (4 << 20, "--max-flows=65536", None),
        (16 << 20, "--max-flows=65536", None),
        (needed(MIN_FLOWS) - 1, "--max-flows=65536", None),
        (needed(MIN_FLOWS), "--max-flows=65536", Some("max_flows=1024 ")),
        (needed(16_384), "--max-flows=65536", Some("max_flows=16384 ")),
        (needed(16_384), "--max-flows=16384", Some("max_flows=16384 ")),
        (needed(DEFAULT_MAX_FLOWS), "--max-flows=65536", Some("max_flows=65536 ")),
    ] {
        let topology = Topology::routed();
        let node = &topology.node;
        let group = MemoryLimit::new(limit);
        let agent = start(node, &group, &[flags]);
        let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
        topology.assert_becomes_accelerated(&mut flow);
        run_beside(node, &group, &agent::command(&["status", PINS]));
        let log = agent.log();
        let log = log.iter().filter(|line| !line.contains("DEBUG")).fold(String::new(), |mut all, line| {
            writeln!(all, "{line}").expect("text");
            all
        });
        eprintln!("{} KiB with {flags}: {} KiB at most", limit >> 10, group.peak() >> 10);
        assert_eq!(group.kills(), 0, "{log}");
        let whole = expected
            .is_some_and(|expected| flags.ends_with(expected.trim_start_matches("max_flows=").trim()));
        match expected {
            Some(expected) => {
                assert!(log.lines().any(|line| line.contains("loaded") && line.contains(expected)), "{log}")
            }
            None => assert!(log.contains("is too low for eBPF: raise it to"), "{log}"),
        }
        assert_eq!(log.matches("WARN").count(), usize::from(!whole), "{log}");
        agent.stop();
        agent::run(node, &["cleanup", PINS]);
    }
}

/// The limit is just what `--max-flows` takes, and the DaemonSet's is above it.
#[test]
fn a_limit_holds_flows_and_churn() {
    // An emulated processor takes a minute for the larger number.
    let flows = rounds(2_000, 100_000) as u32;
    const DIRECTIONS: u32 = 1 << 18;
    let needed = memory_budget::needed(cpus(), DIRECTIONS);
    assert!(needed < daemon_sets_limit(), "{needed}");
    packets::allow_connections(4 * u64::from(flows));
    let crowd = Crowd::to_come(Topology::routed());
    let node = &crowd.topology.node;
    http::bring_loopback_up(node);
    let group = MemoryLimit::new(needed);
    let max_flows = format!("--max-flows={DIRECTIONS}");
    let mut agent = start(node, &group, &["--fastpath-threshold=1", &max_flows, http::SERVE]);
    for part in 0..4 {
        crowd.send_each(flows);
        add_dummies(node, 100, true);
        node.ip(&(0..100).map(|number| format!("link del d{number}\n")).collect::<String>());
        assert!(agent.is_running(), "after part {part}: {}", agent.log().join("\n"));
    }
    assert!(table::offered(node) > u64::from(flows) * 9 / 10, "{} were offloaded", table::offered(node));
    for _ in 0..3 {
        assert_eq!(http::get(node, "/metrics").status, 200);
    }
    run_beside(node, &group, &agent::command(&["flows", "-o", "json", PINS]));
    run_beside(node, &group, &agent::command(&["status", PINS]));
    assert!(agent.is_running());
    eprintln!("{} KiB: {} KiB at most", needed >> 10, group.peak() >> 10);
    assert_eq!(group.kills(), 0);
}

/// They take no memory again: neither those of an agent without a limit, nor those that a limit has made smaller.
#[test]
fn maps_that_are_there_are_taken_over_whatever_the_limit_is() {
    let topology = Topology::routed();
    let node = &topology.node;
    let limit = memory_budget::needed(cpus(), 16_384);
    Agent::start_with(node, &[PINS]).stop();
    let agent = start(node, &MemoryLimit::new(limit), &[]);
    assert_eq!(agent.count("max_flows=65536 takes_over=true"), 1, "{:?}", agent.log());
    assert_eq!(agent.count("WARN"), 0, "{:?}", agent.log());
    agent.stop();
    agent::run(node, &["cleanup", PINS]);
    for taken in ["takes_over=false", "takes_over=true"] {
        let agent = start(node, &MemoryLimit::new(limit), &[]);
        assert_eq!(agent.count(&format!("max_flows=16384 {taken}")), 1, "{:?}", agent.log());
        agent.stop();
    }
}

/// On the largest node, too.
#[test]
fn the_daemonsets_limit_holds_the_default() {
    assert!(memory_budget::needed(256, DEFAULT_MAX_FLOWS) < daemon_sets_limit());
}

fn daemon_sets_limit() -> u64 {
    let manifest =
        fs::read_to_string("/usr/share/fastpath/deploy/base/daemonset.yaml").expect("the manifest");
    let manifest: serde_yaml_ng::Value = serde_yaml_ng::from_str(&manifest).expect("YAML");
    let container = &manifest["spec"]["template"]["spec"]["containers"][0];
    let limit = container["resources"]["limits"]["memory"].as_str().expect("a limit");
    limit.strip_suffix("Mi").and_then(|mib| mib.parse::<u64>().ok()).expect("in MiB") << 20
}
