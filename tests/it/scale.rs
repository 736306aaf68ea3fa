//! Many interfaces: all in the flowtable, and each new one soon.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::Agent,
    monitor::Monitor,
    netns::Netns,
    table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};

fn add_dummies(node: &Netns, count: usize, up: bool) {
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

#[test]
fn six_hundred_interfaces() {
    let topology = Topology::routed();
    let node = &topology.node;
    add_dummies(node, 600, true);
    let agent = Agent::start(node, &[]);
    assert_eq!(table::devices(node).len(), 602);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);

    let mut batch = String::new();
    for number in (0..600).step_by(2) {
        writeln!(batch, "link set d{number} down").expect("string");
    }
    node.ip(&batch);
    wait_until("half of them out again", Duration::from_secs(5), || table::devices(node).len() == 302);
    topology.assert_accelerated(&mut flow);
    agent.stop();
    // All that is right is left alone, however much it is.
    let mut monitor = Monitor::start(node);
    let _agent = Agent::start(node, &[]);
    assert_eq!(monitor.commits_of_agent(), 0);
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
fn latencies(interfaces: usize, samples: usize) -> Vec<Duration> {
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
            monitor.wait_for_line(Duration::from_secs(5), |line| {
                line.contains("kindnet-set-devices") && line.contains(&format!("\"{name}\""))
            });
            start.elapsed()
        })
        .collect();
    assert_eq!(table::devices(node).len(), interfaces + samples, "all are in the flowtable");
    latencies.sort();
    latencies
}

#[track_caller]
fn assert_soon(interfaces: usize, samples: usize) {
    let sorted = latencies(interfaces, samples);
    let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
    eprintln!(
        "from link-up to flowtable with {interfaces} interfaces: median {:?}, 99 % {:?}, most {:?}",
        at(50),
        at(99),
        at(100),
    );
    assert!(at(99) < Duration::from_millis(300), "{sorted:?}");
}

#[test]
fn a_new_link_is_in_soon_with_10_interfaces() {
    assert_soon(10, 120);
}

#[test]
fn a_new_link_is_in_soon_with_1000_interfaces() {
    assert_soon(1000, 120);
}
