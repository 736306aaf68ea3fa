//! `flows` and `top` on a node with a hundred thousand flows: fast, in little memory, and all of them.

use std::{
    fs::{self, File},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{agent, netns::Netns};
use serde_json::Value;

use super::crowd::Crowd;

const FLOWS: u32 = 100_000;
/// What somebody waits without wondering.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// Times of flows have the resolution of the kernel's tick.
const LONGEST_TICK: Duration = Duration::from_millis(10);
/// Most memory that listing may take: the program, 8 bytes for each direction, one message of the kernel's.
const MEMORY_LIMIT_KIB: u64 = 12 * 1024;

/// What a run took, and what it printed.
struct Run {
    /// Without the time in which others had the processor.
    took: Duration,
    peak_kib: u64,
    text: String,
}

/// Runs `flows` with these flags into a file.
fn run(node: &Netns, flags: &[&str]) -> Run {
    let path = "/run/flows";
    let mut command = agent::command(&[&["flows"], flags].concat());
    command.stdin(Stdio::null()).stdout(File::create(path).expect("a file")).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = node.spawn(&mut command);
    let proc = format!("/proc/{}", child.id());
    let proc = |file: &str| fs::read_to_string(format!("{proc}/{file}")).unwrap_or_default();
    let (mut peak_kib, mut waited) = (0, Duration::ZERO);
    let end = loop {
        peak_kib = peak_kib.max(high_water_kib(&proc("status")));
        // Time on the processor, time waiting for it, in ns (Documentation/scheduler/sched-stats.rst).
        let waiting = proc("schedstat").split(' ').nth(1).and_then(|ns| ns.parse().ok());
        waited = waited.max(waiting.map_or(Duration::ZERO, Duration::from_nanos));
        if let Some(end) = child.try_wait().expect("wait for the agent") {
            break end;
        }
        thread::sleep(Duration::from_millis(1));
    };
    let took = began.elapsed() - waited;
    assert!(end.success(), "{end}");
    Run { took, peak_kib, text: fs::read_to_string(path).expect("its output") }
}

fn json(run: &Run) -> Vec<Value> {
    serde_json::from_str(&run.text).expect("JSON")
}

#[test]
fn a_hundred_thousand_flows_are_listed_in_a_second() {
    let crowd = Crowd::new(FLOWS);
    let node = &crowd.topology.node;
    let timed = |flags: &[&str]| {
        let run = run(node, flags);
        println!("flows {}: {:?}, {} KiB at most", flags.join(" "), run.took, run.peak_kib);
        assert!(run.took < TIME_LIMIT, "{flags:?} took {:?}", run.took);
        run
    };

    let text = timed(&[]);
    assert_eq!(text.text.lines().count(), 1 + FLOWS as usize, "a heading and the flows");
    let all = timed(&["-o", "json"]);
    let flows = json(&all);
    assert_eq!(flows.len(), FLOWS as usize);
    assert!(flows.iter().all(|flow| flow["ingress"][0]["packets"] == 1 && flow["ingress"][1]["bytes"] == 46));
    let some = timed(&["--port=61001", "-o", "json"]);
    assert_eq!(json(&some).len(), FLOWS as usize / 2);

    // One flow is larger than the others, one more is the last.
    crowd.send(70_000, 3);
    thread::sleep(LONGEST_TICK);
    crowd.send(30_000, 1);
    let largest = timed(&["--sort=packets", "--limit=20", "-o", "json"]);
    let largest_first = json(&largest);
    assert_eq!(largest_first.len(), 20);
    assert_eq!(largest_first[0]["original"]["source_port"], Crowd::source_port(70_000));
    assert_eq!(largest_first[0]["ingress"][0]["packets"], 4);
    let recent = timed(&["--sort=recent", "--limit=1000"]);
    let port = format!(":{} >", Crowd::source_port(30_000));
    assert!(
        recent.text.lines().nth(1).is_some_and(|line| line.contains(&port)),
        "{:?}",
        recent.text.lines().nth(1)
    );

    for run in [&text, &all, &some, &largest, &recent] {
        assert!(run.peak_kib > 0 && run.peak_kib < MEMORY_LIMIT_KIB, "{} KiB", run.peak_kib);
    }
}

/// Most memory that was ever resident, from /proc/PID/status; 0 once the process has ended.
fn high_water_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
