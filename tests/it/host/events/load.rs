//! Many flows: none is lost, none is told of twice, and it costs little.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use fastpath_agent::kernel::{bpf::Pinned, surroundings::may_have_legacy_tables};
use fastpath_tests::emulated;
use nix::sys::signal::Signal;

use super::Node;

const TOLD: &str = "crossed the threshold";

fn scaled(here: u32, emulated_here: u32) -> u32 {
    if emulated() { emulated_here } else { here }
}

const LIMIT: Duration = Duration::from_secs(30);

/// A number from `/proc/PID/status`.
#[track_caller]
fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("the field");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}

#[test]
fn ten_thousand_crossings_a_second() {
    const SECONDS: u32 = 3;
    let rate = scaled(10_000, 500);
    let node = Node::new();
    let agent = node.agent(&["--fastpath-threshold=1"]);
    let reader = node.read();
    let before = agent.cpu_time();
    let start = Instant::now();
    for flow in 0..rate * SECONDS {
        // Two signals each.
        for end in [0, 1] {
            node.send(flow, end, 2);
        }
        let due = Duration::from_secs(1) * (flow + 1) / rate;
        if let Some(wait) = due.checked_sub(start.elapsed())
            && wait > Duration::from_millis(1)
        {
            thread::sleep(wait);
        }
    }
    let took = start.elapsed();
    reader.expect((rate * SECONDS) as usize, LIMIT);
    let cpu = agent.cpu_time() - before;
    let flows = rate * SECONDS;
    let pinned = Pinned::open(&node.bpffs.pin_path()).expect("pinned");
    eprintln!(
        "{flows} flows, {} signals ({} found in the map), in {took:?}: {cpu:?} of CPU, {:?} a flow, {:.1} % of one CPU; {} \
         kB resident",
        2 * flows,
        pinned.events_lost().expect("readable"),
        cpu / flows,
        100.0 * cpu.as_secs_f64() / took.as_secs_f64(),
        status(agent.pid(), "VmRSS"),
    );
    if emulated() {
        return;
    }
    assert!(took < Duration::from_secs(1) * SECONDS * 11 / 10, "sent too slowly to show anything: {took:?}");
    // Half on a quiet machine; 61 % were seen where a guest had the other processor.
    assert!(cpu < took * 9 / 10, "{cpu:?} of CPU in {took:?}");
}

/// More signals than the ring holds come while the agent can't look.
#[test]
fn what_does_not_fit_the_ring_is_found_in_the_map() {
    let flows = scaled(30_000, 8_000);
    let node = Node::new();
    let mut agent = node.agent(&["--fastpath-threshold=1"]);
    let reader = node.read();
    agent.signal(Signal::SIGSTOP);
    for flow in 0..flows {
        for end in [0, 1] {
            node.send(flow, end, 2);
        }
    }
    agent.signal(Signal::SIGCONT);
    agent.wait_for("the ring of events overflowed", LIMIT);
    reader.expect(flows as usize, LIMIT);
    // It works on as before.
    node.send(flows, 0, 2);
    reader.expect(flows as usize + 1, LIMIT);
}

/// The same while there is no agent at all.
#[test]
fn what_crossed_without_an_agent_is_told_by_the_next() {
    let flows = scaled(20_000, 2_000);
    let node = Node::new();
    node.agent(&["--fastpath-threshold=1"]).kill();
    for flow in 0..flows {
        node.send(flow, 0, 2);
    }
    let mut agent = node.spawn(&["--fastpath-threshold=1", "--v=5"]);
    agent.wait_for_count(TOLD, flows as usize, LIMIT);
    thread::sleep(Duration::from_millis(500));
    let log = agent.log();
    let told: Vec<_> =
        log.iter().filter_map(|line| line.split_once(TOLD)).map(|(_, fields)| fields).collect();
    let different: BTreeSet<_> = told.iter().filter_map(|fields| fields.split("fate").next()).collect();
    assert_eq!((told.len(), different.len()), (flows as usize, flows as usize), "{:?}", told.first());
}

#[test]
fn memory_and_wake_ups() {
    let flows = scaled(32_768, 4_096);
    let node = Node::new();
    // With room to spare: an LRU map that is nearly full evicts, also what was not told yet.
    let agent = node.agent(&["--fastpath-threshold=1", "--max-flows=131072"]);
    let reader = node.read();
    for flow in 0..flows {
        for end in [0, 1] {
            node.send(flow, end, 2);
        }
    }
    reader.expect(flows as usize, LIMIT);
    agent.wait_until_idle();
    // What it alone has. How much of its code is in memory depends on how it was built, and the kernel takes that back when it likes.
    let own = status(agent.pid(), "RssAnon");
    let resident = status(agent.pid(), "VmRSS");
    let wakes = || status(agent.pid(), "voluntary_ctxt_switches");
    let before = wakes();
    // Waiting takes no time in the guest.
    let seconds = scaled(10, 30);
    thread::sleep(Duration::from_secs(seconds.into()));
    let woken = wakes() - before;
    eprintln!(
        "with {} entries in the map: {own} kB of its own, {resident} kB resident, {woken} wake-ups in {seconds} s",
        2 * flows
    );
    // The safety net's minute may end within: a timer, for which tokio's wake two or three times, and what another thread has read.
    // Where the kernel can have tables of iptables-legacy, there is a look a second as well.
    let looks = if may_have_legacy_tables() { 3 * u64::from(seconds) } else { 0 };
    assert!(woken <= looks + 6, "{woken} wake-ups, {looks} of them for legacy tables");
    assert!(own < 6 * 1024, "{own} kB");
}
