//! The switch of `--mode-file`: offloading goes off and on again while the agent runs, and no flow loses a packet.

use std::{fs, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    config_map::ConfigMapVolume,
    http,
    monitor::Monitor,
    table,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
    wait_until,
};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(5);

/// Waits for the table, or for its end.
#[track_caller]
fn wait_for_table(topology: &Topology, installed: bool) {
    let what = if installed { "the table" } else { "the table's end" };
    wait_until(what, SOON, || table::listing(&topology.node).is_some() == installed);
}

/// Waits until the agent has helped an old flow into the flowtable.
#[track_caller]
fn assert_is_helped(topology: &Topology, flow: &mut Flow) {
    wait_until("the flow offloaded", SOON, || {
        assert_eq!(flow.rounds(1), 1);
        topology.marked_offloaded(flow.port())
    });
    topology.assert_accelerated(flow);
}

/// Value of a metric of the page.
fn metric(topology: &Topology, name: &str) -> f64 {
    let page = http::get(&topology.node, "/metrics").body;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {page}"));
    line.trim().parse().expect("a number")
}

#[test]
fn off_and_on_without_losing_a_packet() {
    let topology = Topology::routed();
    http::bring_loopback_up(&topology.node);
    let directory = tempfile::tempdir().expect("a directory");
    let mut volume = ConfigMapVolume::new(directory.path(), "mode", "accelerate\n");
    let flag = format!("--mode-file={}", volume.file().display());
    let agent = Agent::start_with(&topology.node, &[&flag, "--v=2", http::SERVE]);
    assert_eq!(metric(&topology, "fastpath_mode{mode=\"accelerate\"}"), 1.0);
    let mut tcp = topology.open(Proto::Tcp, Family::V4, 7001);
    let mut udp = topology.open(Proto::Udp, Family::V6, 7002);
    topology.assert_becomes_accelerated(&mut tcp);
    topology.assert_becomes_accelerated(&mut udp);

    let (busy_tcp, busy_udp) = (tcp.in_background(), udp.in_background());
    for _ in 0..3 {
        volume.set("watch\n");
        wait_for_table(&topology, false);
        volume.set("accelerate\n");
        wait_for_table(&topology, true);
    }
    volume.set("0%");
    wait_for_table(&topology, false);
    let (mut tcp, report) = busy_tcp.stop_intact();
    println!("TCP: {report:?}");
    let (mut udp, report) = busy_udp.stop_intact();
    println!("UDP: {report:?}");

    topology.assert_forwarded(&mut tcp);
    topology.assert_forwarded(&mut udp);
    // It goes on counting, and is as it is asked to be.
    assert_eq!(metric(&topology, "fastpath_mode{mode=\"watch\"}"), 1.0);
    assert_eq!(metric(&topology, "fastpath_ready"), 1.0);
    assert_eq!(metric(&topology, "fastpath_threshold_packets"), 0.0);
    let before = metric(&topology, "fastpath_ingress_packets_total{class=\"counted\"}");
    assert_eq!(tcp.rounds(50), 50);
    assert!(metric(&topology, "fastpath_ingress_packets_total{class=\"counted\"}") >= before + 100.0);
    let status = agent::run(&topology.node, &["status"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let doctor = agent::run(&topology.node, &["doctor", "--no-canary"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("threshold 0, or mode watch") && !said.contains("red  "), "{said}");

    volume.set("100%");
    wait_for_table(&topology, true);
    topology.assert_becomes_accelerated(&mut tcp);
    topology.assert_becomes_accelerated(&mut udp);
    let warnings: Vec<_> =
        agent.log().into_iter().filter(|l| l.contains("WARN") || l.contains("ERROR")).collect();
    assert_eq!(warnings, Vec::<String>::new());
}

/// The table that an accelerating agent has left goes when the next one only watches, and its flows with it.
#[test]
fn what_an_agent_before_has_offloaded_is_watched_too() {
    let topology = Topology::routed();
    let agent = Agent::start_with(&topology.node, &["--mode=accelerate"]);
    let mut tcp = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut tcp);
    agent.kill();
    topology.assert_accelerated(&mut tcp);
    let busy = tcp.in_background();
    let _agent = Agent::start_with(&topology.node, &["--mode=watch"]);
    wait_for_table(&topology, false);
    let (mut tcp, _) = busy.stop_intact();
    topology.assert_forwarded(&mut tcp);
}

/// Connections that are older than any rule have no counters: the agent helps them once it is switched on.
#[test]
fn begun_by_watching() {
    let topology = Topology::routed();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("mode");
    let mut tcp = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(tcp.rounds(50), 50);
    let flag = format!("--mode-file={}", file.display());
    let args = [flag.as_str(), "--mode=watch", "--v=2"];
    let agent = Agent::start_with(&topology.node, &args);
    topology.assert_forwarded(&mut tcp);
    assert_eq!(table::listing(&topology.node), None);
    let mut monitor = Monitor::start(&topology.node);
    // An empty file is one that is being written. A word that it doesn't know changes nothing, and is said once.
    fs::write(&file, "").expect("a file");
    std::thread::sleep(Duration::from_millis(300));
    fs::write(&file, "on").expect("a file");
    wait_until("an error", SOON, || agent.count("mode unchanged") == 1);
    assert!(agent.log().iter().any(|line| line.contains("it says 'on'")), "{:#?}", agent.log());
    assert_eq!(monitor.commits_of_agent(), 0);
    fs::write(&file, "accelerate").expect("a file");
    wait_for_table(&topology, true);
    assert_is_helped(&topology, &mut tcp);
    // Without the file the flag counts.
    fs::remove_file(&file).expect("removed");
    wait_for_table(&topology, false);
    topology.assert_forwarded(&mut tcp);
    // Without a word from the kernel a signal does it too.
    fs::write(&file, "accelerate").expect("a file");
    agent.signal(Signal::SIGHUP);
    wait_for_table(&topology, true);
    assert_is_helped(&topology, &mut tcp);
}
