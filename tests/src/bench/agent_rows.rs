//! What the agent itself does: how soon, how much of the machine it takes, and what it costs the flows of others.
//!
//! Times are of the guest's clock: milliseconds of a processor that executes a thousand million instructions a second.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    Measure, Row, Samples,
    node::{Ends, Node, Rules},
    packets,
};
use crate::{
    agent::{self, Agent},
    link_up,
    monitor::Monitor,
    reference, table,
    topology::{Family, Layout, Topology},
    wait_until,
};

const MS: &str = "ms of 10^9 instructions a second";

/// A row.
#[derive(Clone, Copy, Debug)]
pub enum Task {
    /// From the start of the process to the rules installed, with so many interfaces.
    Start(usize, &'static str),
    /// From a link that comes up to the flowtable, with so many interfaces.
    LinkUp(usize),
    /// Offloaded flows that take the forward path again since an interface was added to the flowtable.
    Lost(Rules),
    /// From the ruleset's deletion by somebody to the table back.
    Restored,
    /// Resident memory, idle, with so many interfaces.
    Memory(usize),
    /// Times that its threads were woken, idle, with so many interfaces.
    Wakeups(usize),
}

impl Task {
    fn row(self) -> Row {
        let name = match self {
            Self::Start(interfaces, ebpf) => format!("agent/start-{interfaces}-interfaces/ebpf-{ebpf}"),
            Self::LinkUp(interfaces) => format!("agent/link-up-{interfaces}-interfaces"),
            Self::Lost(rules) => format!("agent/flows-lost-of-100/{}", rules.name()),
            Self::Restored => "agent/restored-after-flush".to_owned(),
            Self::Memory(interfaces) => format!("agent/memory-{interfaces}-interfaces"),
            Self::Wakeups(interfaces) => format!("agent/wake-ups-{interfaces}-interfaces"),
        };
        Row { name, measure: Measure::Agent(self) }
    }

    pub(super) fn measure(self) -> Samples {
        let (unit, values) = match self {
            Self::Start(interfaces, ebpf) => (MS, start(interfaces, ebpf)),
            Self::LinkUp(interfaces) => {
                (MS, link_up::latencies(interfaces, 40).iter().map(|&time| ms(time)).collect())
            }
            Self::Lost(rules) => ("flows of 100", vec![lost(rules)]),
            Self::Restored => (MS, restored()),
            Self::Memory(interfaces) => ("MB", vec![memory(interfaces)]),
            Self::Wakeups(interfaces) => ("wake-ups/s", vec![wakeups(interfaces)]),
        };
        Samples { unit, values, packets: None }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A node with that many interfaces.
fn node_with(interfaces: usize) -> Topology {
    let topology = Topology::bare(Layout::default());
    link_up::add_dummies(&topology.node, interfaces - 2, true);
    topology
}

fn start(interfaces: usize, ebpf: &str) -> Vec<f64> {
    let topology = node_with(interfaces);
    let ebpf = format!("--ebpf={ebpf}");
    (0..3)
        .map(|_| {
            let begun = Instant::now();
            let agent = Agent::spawn(&topology.node, &mut agent::command(&[&ebpf]));
            while agent.count("ruleset verified") == 0 {
                assert!(begun.elapsed() < Duration::from_secs(20), "{}", agent.log().join("\n"));
                thread::sleep(Duration::from_micros(200));
            }
            let took = ms(begun.elapsed());
            assert_eq!(table::devices(&topology.node).len(), interfaces);
            // Programs may still be on their way to the interfaces.
            agent.wait_until_idle();
            agent.stop();
            agent::output(&topology.node, &["cleanup"]);
            took
        })
        .collect()
}

/// The interface came up before: that alone makes the kernel forget routes, and all flows be forwarded once.
fn lost(rules: Rules) -> f64 {
    let setup = packets::Setup { ports: (25, 4), ..packets::Setup::PLAIN };
    let mut node = Node::build(packets::Base::Nat, Ends::Drop);
    let forth = setup.forth(&node);
    let client = node.topology.client().ns.clone();
    node.load(rules, 2);
    setup.greet(&node, &forth);
    let agent = node.agent.take();
    let pause = |signal| {
        if let Some(agent) = &agent {
            agent.signal(signal);
        }
    };
    pause(Signal::SIGSTOP);
    node.topology.node.ip("link add d0 type dummy\nlink set d0 up\n");
    for _ in 0..10 {
        forth.send(&client, setup.flows());
    }
    let settled = node.counts(Family::V4);
    forth.send(&client, setup.flows());
    assert_eq!((node.counts(Family::V4) - settled).forwarded, 0, "all are offloaded");
    pause(Signal::SIGCONT);
    if agent.is_some() {
        wait_until("d0 in the flowtable", Duration::from_secs(10), || {
            table::devices(&node.topology.node).contains("d0")
        });
    } else {
        node.topology.node.nft(&reference::kindnet_above(2, &["c0", "s0", "d0"]));
    }
    let before = node.counts(Family::V4);
    forth.send(&client, setup.flows());
    (node.counts(Family::V4) - before).forwarded as f64
}

fn restored() -> Vec<f64> {
    let topology = node_with(2);
    let agent = Agent::start(&topology.node, &[]);
    (0..5)
        .map(|_| {
            // Repairs are slowed down when they are too many.
            thread::sleep(Duration::from_secs(60));
            let monitor = Monitor::start(&topology.node);
            agent.wait_until_idle();
            topology.node.nft("flush ruleset");
            let limit = Duration::from_secs(5);
            monitor.wait_for_line(limit, |line| line.starts_with("delete table inet kindnet-fastpath"));
            let begun = Instant::now();
            monitor.wait_for_line(limit, |line| line.starts_with("add table inet kindnet-fastpath"));
            ms(begun.elapsed())
        })
        .collect()
}

fn memory(interfaces: usize) -> f64 {
    let topology = node_with(interfaces);
    let agent = Agent::start_with(&topology.node, &[]);
    agent.wait_until_idle();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("proc(5)");
    let kib: f64 = line.split_whitespace().next().and_then(|text| text.parse().ok()).expect("kB");
    kib * 1024.0 / 1e6
}

fn wakeups(interfaces: usize) -> f64 {
    const SECONDS: u64 = 120;
    let topology = node_with(interfaces);
    let agent = Agent::start_with(&topology.node, &[]);
    agent.wait_until_idle();
    let count = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("procfs");
        let of_task = |path: std::path::PathBuf| {
            let status = fs::read_to_string(path.join("status")).expect("procfs");
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.and_then(|line| line.trim().parse::<u64>().ok()).expect("proc(5)")
        };
        tasks.flatten().map(|task| of_task(task.path())).sum()
    };
    let before = count();
    thread::sleep(Duration::from_secs(SECONDS));
    (count() - before) as f64 / SECONDS as f64
}

pub(super) fn rows() -> Vec<Row> {
    [
        Task::Start(2, "off"),
        Task::Start(100, "off"),
        Task::Start(100, "tc"),
        Task::LinkUp(10),
        Task::LinkUp(100),
        Task::LinkUp(1000),
        Task::Lost(Rules::Kindnet),
        Task::Lost(Rules::OursEbpf),
        Task::Restored,
        Task::Memory(100),
        Task::Wakeups(100),
    ]
    .into_iter()
    .map(Task::row)
    .collect()
}
