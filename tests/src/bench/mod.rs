//! What `cargo xtask bench` measures in the test guest: rows, each with a name, and how each is measured.
//!
//! The guest's clock advances one nanosecond for each executed instruction there, so durations are counts of
//! instructions. Nothing here judges a number: targets and baselines are the host's.

pub mod agent_load;
pub mod agent_rows;
pub mod bulk;
pub mod connections;
pub mod emptying;
pub mod exchange;
pub mod native;
pub mod node;
pub mod packets;
mod services;

use std::fs;

use serde_json::{Value, json};

use crate::netns::Netns;

/// One number of the benchmark.
#[derive(Clone, Debug)]
pub struct Row {
    /// Traffic, state of the flow, and rules, for instance `udp4-64/offloaded/ours`.
    pub name: String,
    /// How to get it.
    pub measure: Measure,
}

/// Ways to measure.
#[derive(Clone, Debug)]
pub enum Measure {
    /// Instructions for each packet from its making to its end, by the packet generator.
    Packet(packets::Setup),
    /// Instructions for each packet of a TCP connection, both ends included.
    Exchange(exchange::Setup),
    /// Instructions for each KiB of a TCP transfer.
    Bulk(bulk::Setup),
    /// Instructions for each TCP connection, both ends included.
    Connection(connections::Setup),
    /// Instructions for each offloaded flow to have it thrown out and taken up again.
    Emptying(emptying::Setup),
    /// What the agent does.
    Agent(agent_rows::Task),
}

/// Repeated measurements of one row.
#[derive(Clone, Debug)]
pub struct Samples {
    /// What the numbers count.
    pub unit: &'static str,
    /// One number for each repetition, at least one.
    pub values: Vec<f64>,
    /// Packets of a connection, for what is measured by the connection.
    pub packets: Option<f64>,
}

impl Samples {
    /// The median and the distance between least and greatest in percent of it, as the host reads it.
    #[must_use]
    pub fn to_json(&self, name: &str) -> Value {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let range = sorted[sorted.len() - 1] - sorted[0];
        // What is nought each time has none.
        let spread = if range == 0.0 { 0.0 } else { range / median * 100.0 };
        json!({
            "name": name, "unit": self.unit, "value": median, "spread": spread, "packets": self.packets,
        })
    }
}

impl Row {
    /// Builds what it needs and measures. Panics when the packets don't take the way that the row is about.
    ///
    /// Once in a guest: it changes limits of the kernel, and leaves in the kernel what it built.
    #[must_use]
    pub fn measure(&self) -> Samples {
        match &self.measure {
            Measure::Packet(setup) => setup.measure(),
            Measure::Exchange(setup) => setup.measure(),
            Measure::Bulk(setup) => setup.measure(),
            Measure::Connection(setup) => setup.measure(),
            Measure::Emptying(setup) => setup.measure(),
            Measure::Agent(task) => task.measure(),
        }
    }
}

impl Row {
    /// Prints the kernel's functions, or those of its modules only, and then sends the row's packets until it is ended.
    ///
    /// Or makes its connections. The line `@@PROFILE` names the function that is called once for each. Panics when the row is
    /// about neither.
    pub fn send_forever(&self, modules_only: bool) -> ! {
        match &self.measure {
            Measure::Packet(setup) => setup.send_forever(modules_only),
            Measure::Connection(setup) => setup.connect_forever(modules_only),
            _ => panic!("{} isn't measured by packet or connection, so it has no profile", self.name),
        }
    }
}

/// Prints the addresses and names of the kernel's functions, or of its modules' only.
fn print_symbols(modules_only: bool) {
    // Programs get names in that list too.
    Netns::of_process_1().sysctl("net/core/bpf_jit_kallsyms", "1");
    for line in fs::read_to_string("/proc/kallsyms").expect("procfs").lines() {
        let mut words = line.split_whitespace();
        let (address, kind, name) = (words.next(), words.next(), words.next());
        // Of what is code; the compiler's padding in front of each function has a name too.
        if let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) = (address, kind, name)
            && !name.starts_with("__pfx_")
            && (!modules_only || words.next().is_some() || name == "_text")
        {
            println!("@@SYMBOL {address} {name}");
        }
    }
}

/// All rows, in the order in which they are shown.
#[must_use]
pub fn rows() -> Vec<Row> {
    let connections = [exchange::rows(), bulk::rows(), connections::rows()].concat();
    [packets::rows(), connections, emptying::rows(), agent_rows::rows()].concat()
}
