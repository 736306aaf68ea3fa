//! What the agent itself does: how soon, how much of the machine it takes, and what it costs flows.
//!
//! Times are of the guest's clock: milliseconds of a processor that executes a thousand million instructions a second.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    Measure, Row, Samples,
    agent_load::{self, Listing, Load},
    node::{Ends, Node, Rules},
    packets,
};
use crate::{
    agent::{self, Agent},
    bench::{
        agent_load::{ms, resident_mb},
        node::Base,
    },
    http::{SERVE, bring_loopback_up},
    link_up,
    monitor::Monitor,
    netns::Netns,
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
    /// From the rules installed to the programs loaded.
    LoadPrograms,
    /// From a link that comes up to the flowtable, with so many interfaces.
    LinkUp(usize),
    /// What the agent has to do for a link that comes up, with so many interfaces: the programs' attachment too, if any.
    LinkUpCost(usize, &'static str),
    /// Offloaded flows that take the forward path again since an interface was added to the flowtable.
    Lost(Rules),
    /// From the ruleset's deletion by another program to the table back.
    Restored,
    /// From another program's rule to the last packet of an offloaded flow that it denies.
    Enforced,
    /// Connections older than the ruleset that are offloaded in a second.
    Helped,
    /// Resident memory, idle, with so many interfaces.
    Memory(usize),
    /// Resident memory after so many flows have crossed.
    FlowsMemory(u32),
    /// Times that its threads were woken, idle, with so many interfaces.
    Wakeups(usize),
    /// While 10,000 flows a second cross the threshold.
    Crossings(Load),
    /// What a crossing takes in all.
    Crossing(Rules),
    /// `fastpath-agent flows` with so many.
    Flows(u32, Listing),
}

impl Task {
    fn row(self) -> Row {
        let crossings = agent_load::CROSSINGS_A_SECOND;
        let name = match self {
            Self::Start(interfaces, ebpf) => format!("agent/start-{interfaces}-interfaces/ebpf-{ebpf}"),
            Self::LoadPrograms => "agent/load-programs".to_owned(),
            Self::LinkUp(interfaces) => format!("agent/link-up-{interfaces}-interfaces"),
            Self::LinkUpCost(interfaces, ebpf) => {
                format!("agent/link-up-cost-{interfaces}-interfaces/ebpf-{ebpf}")
            }
            Self::Lost(rules) => format!("agent/flows-lost-of-100/{}", rules.name()),
            Self::Restored => "agent/restored-after-flush".to_owned(),
            Self::Enforced => "agent/policy-enforced".to_owned(),
            Self::Helped => "agent/old-connections-helped".to_owned(),
            Self::Memory(interfaces) => format!("agent/memory-{interfaces}-interfaces"),
            Self::FlowsMemory(flows) => format!("agent/memory-{flows}-flows"),
            Self::Wakeups(interfaces) => format!("agent/wake-ups-{interfaces}-interfaces"),
            Self::Crossings(Load::Memory) => format!("agent/{crossings}-crossings-a-second/memory"),
            Self::Crossings(Load::Cpu) => format!("agent/{crossings}-crossings-a-second/cpu"),
            Self::Crossings(Load::WakeUps) => format!("agent/{crossings}-crossings-a-second/wake-ups"),
            Self::Crossing(rules) => format!("crossing/{}", rules.name()),
            Self::Flows(flows, Listing::Time) => format!("agent/list-{flows}-flows/time"),
            Self::Flows(flows, Listing::Memory) => format!("agent/list-{flows}-flows/memory"),
        };
        Row { name, measure: Measure::Agent(self) }
    }

    pub(super) fn measure(self) -> Samples {
        let (unit, values) = match self {
            Self::Start(interfaces, ebpf) => (MS, start(interfaces, ebpf)),
            Self::LoadPrograms => (MS, load_programs()),
            Self::LinkUp(interfaces) => {
                (MS, link_up::latencies(interfaces, 40).iter().map(|&time| ms(time)).collect())
            }
            Self::LinkUpCost(interfaces, ebpf) => {
                ("ms of the agent's CPU time", link_up_cost(interfaces, ebpf))
            }
            Self::Lost(rules) => ("flows of 100", vec![lost(rules)]),
            Self::Restored => (MS, restored()),
            Self::Enforced => (MS, agent_load::enforced()),
            Self::Helped => ("connections/s", vec![agent_load::helped()]),
            Self::Memory(interfaces) => ("MB", vec![memory(interfaces)]),
            Self::FlowsMemory(flows) => ("MB", vec![agent_load::memory_with_flows(flows)]),
            Self::Wakeups(interfaces) => ("wake-ups/s", vec![wakeups(interfaces)]),
            Self::Crossings(load) => {
                let unit = match load {
                    Load::Memory => "MB",
                    Load::Cpu => "% of 10^9 instructions a second",
                    Load::WakeUps => "wake-ups/s",
                };
                (unit, vec![agent_load::crossings(load)])
            }
            Self::Crossing(rules) => ("instructions/crossing", agent_load::crossing(rules)),
            Self::Flows(flows, what) => {
                let unit = match what {
                    Listing::Time => MS,
                    Listing::Memory => "MB",
                };
                (unit, agent_load::listing(flows, what))
            }
        };
        Samples { unit, values, packets: None }
    }
}

/// Waits until that many interfaces have a program. With TCX the kernel lets the agent wait for each (`synchronize_rcu`), in
/// which it seems to be at rest.
fn wait_for_programs(node: &Netns, interfaces: usize) {
    wait_until("programs on all interfaces", Duration::from_secs(60), || {
        let status: Value = serde_json::from_str(&agent::output(node, &["status", "-o", "json"]))
            .expect("the agent prints JSON");
        status["ebpf"]["attachments"].as_array().is_some_and(|attached| attached.len() == interfaces)
    });
}

/// A node with that many interfaces.
fn node_with(interfaces: usize) -> Topology {
    let topology = Topology::bare(Layout::default());
    link_up::add_dummies(&topology.node, interfaces - 2, true);
    topology
}

fn start(interfaces: usize, ebpf: &str) -> Vec<f64> {
    let ebpf = format!("--ebpf={ebpf}");
    load_modules(&ebpf);
    let topology = node_with(interfaces);
    // Taking so many interfaces out again takes the kernel half a minute.
    let repetitions = if interfaces < 1000 { 3 } else { 1 };
    (0..repetitions)
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
            if repetitions > 1 {
                agent::output(&topology.node, &["cleanup"]);
            }
            took
        })
        .collect()
}

/// The kernel's first agent lets it load its modules, which takes most of a second.
fn load_modules(ebpf: &str) {
    let topology = node_with(2);
    Agent::start_with(&topology.node, &[ebpf]).stop();
    agent::output(&topology.node, &["cleanup"]);
}

fn load_programs() -> Vec<f64> {
    load_modules("--ebpf=tc");
    let topology = node_with(2);
    (0..3)
        .map(|_| {
            let agent = Agent::spawn(&topology.node, &mut agent::command(&[]));
            let seen = |text: &str| {
                let begun = Instant::now();
                while agent.count(text) == 0 {
                    assert!(begun.elapsed() < Duration::from_secs(20), "{}", agent.log().join("\n"));
                    thread::sleep(Duration::from_micros(200));
                }
                Instant::now()
            };
            let rules = seen("ruleset verified");
            let took = ms(seen("eBPF programs loaded") - rules);
            agent.wait_until_idle();
            agent.stop();
            agent::output(&topology.node, &["cleanup"]);
            took
        })
        .collect()
}

fn link_up_cost(interfaces: usize, ebpf: &str) -> Vec<f64> {
    const LINKS: usize = 20;
    let topology = node_with(interfaces);
    let node = &topology.node;
    let names: Vec<String> = (0..LINKS).map(|number| format!("new{number}")).collect();
    node.ip(&names.iter().map(|name| format!("link add {name} type dummy\n")).collect::<String>());
    let agent = Agent::start_with(node, &[&format!("--ebpf={ebpf}")]);
    if ebpf != "off" {
        wait_for_programs(node, interfaces);
    }
    agent.wait_until_idle();
    let values: Vec<_> = names
        .iter()
        .map(|name| {
            let before = agent.cpu_time();
            node.ip(&format!("link set {name} up\n"));
            thread::sleep(Duration::from_millis(500));
            ms(agent.cpu_time() - before)
        })
        .collect();
    assert_eq!(table::devices(node).len(), interfaces + LINKS, "all are in the flowtable");
    // The first meets caches that have never been filled.
    values[1..].to_vec()
}

/// The interface came up before: that alone makes the kernel forget routes, and all flows be forwarded once.
fn lost(rules: Rules) -> f64 {
    let setup = packets::Setup { ports: (25, 4), ..packets::Setup::PLAIN };
    let mut node = Node::build(Base::Nat, Ends::Drop);
    let forth = setup.forth(&node);
    let client = node.topology.client().ns.clone();
    node.load(rules, 2, &[]);
    setup.converse(&node, &forth, 1);
    let agent = node.agent.take();
    let pause = |signal| {
        if let Some(agent) = &agent {
            agent.signal(signal);
        }
    };
    pause(Signal::SIGSTOP);
    node.topology.node.ip("link add d0 type dummy\nlink set d0 up\n");
    setup.converse(&node, &forth, 10);
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
    wait_for_programs(&topology.node, interfaces);
    agent.wait_until_idle();
    resident_mb(&agent)
}

fn wakeups(interfaces: usize) -> f64 {
    const SECONDS: u64 = 120;
    let topology = node_with(interfaces);
    // With the page, which keeps the last hour, and nobody who looks at it.
    bring_loopback_up(&topology.node);
    let agent = Agent::start_with(&topology.node, &[SERVE]);
    wait_for_programs(&topology.node, interfaces);
    agent.wait_until_idle();
    let before = agent.wake_ups();
    thread::sleep(Duration::from_secs(SECONDS));
    (agent.wake_ups() - before) as f64 / SECONDS as f64
}

pub(super) fn rows() -> Vec<Row> {
    [
        Task::Crossing(Rules::Alone),
        Task::Crossing(Rules::AgentEbpf),
        Task::Start(2, "tc"),
        Task::Start(10, "tc"),
        Task::Start(100, "tc"),
        Task::Start(1000, "tc"),
        Task::Start(100, "off"),
        Task::LoadPrograms,
        Task::LinkUp(10),
        Task::LinkUp(100),
        Task::LinkUp(1000),
        Task::Restored,
        Task::Enforced,
        Task::Flows(1_000, Listing::Time),
        Task::Flows(10_000, Listing::Time),
        Task::Flows(100_000, Listing::Time),
        Task::LinkUpCost(10, "off"),
        Task::LinkUpCost(100, "off"),
        Task::LinkUpCost(1000, "off"),
        Task::LinkUpCost(10, "tc"),
        Task::LinkUpCost(100, "tc"),
        Task::LinkUpCost(1000, "tc"),
        Task::Lost(Rules::Kindnet),
        Task::Lost(Rules::AgentEbpf),
        Task::Helped,
        Task::Memory(10),
        Task::Memory(100),
        Task::Memory(1000),
        Task::FlowsMemory(1_000),
        Task::FlowsMemory(10_000),
        Task::FlowsMemory(100_000),
        Task::Flows(1_000, Listing::Memory),
        Task::Flows(10_000, Listing::Memory),
        Task::Flows(100_000, Listing::Memory),
        Task::Crossings(Load::Memory),
        Task::Wakeups(100),
        Task::Crossings(Load::WakeUps),
        Task::Crossings(Load::Cpu),
    ]
    .into_iter()
    .map(Task::row)
    .collect()
}
