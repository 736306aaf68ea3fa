//! Many links, and how long a new one takes into the flowtable of a running agent.
//!
//! What time is enough is for tests and the benchmark to say.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{agent::Agent, monitor::Monitor, netns::Netns, table, topology::Topology};

/// Adds dummies d0, d1 … without addresses.
pub fn add_dummies(node: &Netns, count: usize, up: bool) {
    // Each would get an address of IPv6, which costs more than all the rest.
    node.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let mut batch = String::new();
    for number in 0..count {
        writeln!(batch, "link add d{number} type dummy").expect("string");
        if up {
            writeln!(batch, "link set d{number} up").expect("string");
        }
    }
    node.ip(&batch);
}

/// One `ip` for all commands: starting one takes longer than what is measured.
struct Ip(Child);

impl Ip {
    fn start(node: &Netns) -> Self {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped());
        Self(node.spawn(&mut command))
    }

    fn run(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().expect("piped"), "{line}").expect("ip runs");
    }
}

impl Drop for Ip {
    fn drop(&mut self) {
        // Ends with its input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Times from the command that switches a link on to the announcement that it is in the flowtable, sorted.
pub fn latencies(interfaces: usize, samples: usize) -> Vec<Duration> {
    let topology = Topology::routed();
    let node = &topology.node;
    add_dummies(node, interfaces - 2, true);
    let mut batch = String::new();
    for number in 0..samples {
        writeln!(batch, "link add new{number} type dummy").expect("string");
    }
    node.ip(&batch);
    let agent = Agent::start(node, &[]);
    let monitor = Monitor::start(node);
    // Its start changes the ruleset, and the agent reads that again.
    agent.wait_until_idle();
    let mut ip = Ip::start(node);
    let mut latencies: Vec<_> = (0..samples)
        .map(|number| {
            let name = format!("new{number}");
            // Not in step with anything.
            thread::sleep(Duration::from_millis(10 + (number as u64 * 7) % 23));
            let start = Instant::now();
            ip.run(&format!("link set {name} up"));
            // `nft monitor` doesn't show flowtables. The set of indices changes in the same transaction.
            let seen = monitor.wait_for_line(Duration::from_secs(5), |line| {
                line.contains("kindnet-set-devices") && line.contains(&format!("\"{name}\""))
            });
            seen - start
        })
        .collect();
    assert_eq!(table::devices(node).len(), interfaces + samples, "all are in the flowtable");
    latencies.sort();
    latencies
}
