//! How a flow is written: a line of a table for people, an object for programs.

use std::io::{self, Write};

use crate::{
    cli::FlowsArgs,
    core::flow::{
        Flow, Node, SLOW, State,
        filter::Filter,
        record::{FlowRecord, interfaces},
    },
    kernel::{event_socket::SocketError, flows::FlowsError},
};

/// Writes flows one after the other.
pub trait Writer {
    /// Before the first flow.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()>;
    /// One flow.
    fn flow(&mut self, out: &mut dyn Write, flow: &Flow, node: &Node) -> io::Result<()>;
    /// After the last flow.
    fn end(&mut self, out: &mut dyn Write) -> io::Result<()>;
}

/// A table with one line for each flow.
#[derive(Default)]
pub struct Table {
    flows: u64,
}

/// A JSON array with one object for each flow, each on a line of its own. Fields are only ever added.
#[derive(Default)]
pub struct Json {
    flows: u64,
    /// The flow that is being written: into memory, since it is written in a hundred pieces.
    text: Vec<u8>,
}

impl Writer for Table {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "{:<18}  {:<5}  {:<47}  {:>10}  {:>13}  {:>7}  {:<15}  WHY",
            "STATE", "PROTO", "SOURCE > DESTINATION", "PACKETS", "BYTES", "IDLE", "IN"
        )
    }

    fn flow(&mut self, out: &mut dyn Write, flow: &Flow, node: &Node) -> io::Result<()> {
        self.flows += 1;
        let ends = flow.original.to_string();
        let (protocol, ends) = ends.split_once(' ').unwrap_or(("", &ends));
        let idle = flow.last_seen_ns().map_or("-".to_owned(), |at| idle(node.now_ns.saturating_sub(at)));
        let why = match (&flow.state, flow.path.metered) {
            (State::Stalled(cause) | State::Never(cause), _) => cause.to_string(),
            (_, Some(metered)) if flow.slow() => format!("{metered} packets took the normal path"),
            _ => String::new(),
        };
        let line = format!(
            "{:<18}  {protocol:<5}  {ends:<47}  {:>10}  {:>13}  {idle:>7}  {:<15}  {why}",
            state(flow),
            flow.packets(),
            flow.bytes(),
            interfaces(flow, node).join(","),
        );
        writeln!(out, "{}", line.trim_end())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.flows == 0 { writeln!(out, "no flows") } else { Ok(()) }
    }
}

fn state(flow: &Flow) -> String {
    if flow.slow() { format!("{}, {SLOW}", flow.state.name()) } else { flow.state.name().to_owned() }
}

/// A duration in ns, in a few characters.
fn idle(ns: u64) -> String {
    match ns / 1_000_000 {
        ms @ 0..1000 => format!("{ms}ms"),
        ms @ 1000..60_000 => format!("{}s", ms / 1000),
        ms @ 60_000..3_600_000 => format!("{}m", ms / 60_000),
        ms => format!("{}h", ms / 3_600_000),
    }
}

impl Writer for Json {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "[")
    }

    fn flow(&mut self, out: &mut dyn Write, flow: &Flow, node: &Node) -> io::Result<()> {
        self.text.clear();
        self.text.extend_from_slice(if self.flows == 0 { b"\n" } else { b",\n" });
        self.flows += 1;
        serde_json::to_writer(&mut self.text, &FlowRecord::new(flow, node))?;
        out.write_all(&self.text)
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\n]")
    }
}

/// Flows can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// They can't be read.
    #[error(transparent)]
    Flows(#[from] FlowsError),
    /// They can't be followed.
    #[error(transparent)]
    Follow(#[from] SocketError),
    /// They can't be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn filter(args: &FlowsArgs) -> Filter {
    Filter {
        networks: args.address.clone(),
        ports: args.port.clone(),
        protocols: args.protocol.iter().map(|protocol| protocol.number()).collect(),
        interfaces: args.interface.clone(),
        states: args.state.clone(),
        groups: args.group.clone(),
    }
}

#[cfg(test)]
mod tests {
    use fastpath_common::FlowCounters;

    use super::*;
    use crate::core::{
        flow::{
            connection::{TCP, Tuple},
            path::Path,
        },
        model::{IfIndex, IfName},
    };

    fn shown(writer: &mut dyn Writer, flows: usize) -> String {
        let tuple = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.2.0.2".parse().unwrap(),
            protocol: TCP,
            source_port: 40000,
            destination_port: 443,
        };
        let counters =
            FlowCounters { packets: 7, bytes: 700, last_seen_ns: 1, ifindex: 2, ..FlowCounters::default() };
        let node = Node {
            names: [(IfIndex(2), IfName::new("eth0").unwrap())].into(),
            now_ns: 2_000_000_001,
            ..Node::default()
        };
        let mut out = Vec::new();
        writer.begin(&mut out).unwrap();
        for _ in 0..flows {
            writer.flow(&mut out, &Flow::gone(tuple, counters), &node).unwrap();
        }
        writer.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_flow_is_a_line() {
        let text = shown(&mut Table::default(), 1);
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["gone", "tcp", "10.1.0.2:40000", ">", "10.2.0.2:443", "7", "700", "2s", "eth0"]);
        assert!(shown(&mut Table::default(), 0).ends_with("no flows\n"));
    }

    #[test]
    fn a_flow_that_is_offloaded_and_slow_is_called_so() {
        let mut flow = Flow::gone(
            Tuple {
                source: "10.1.0.2".parse().unwrap(),
                destination: "10.2.0.2".parse().unwrap(),
                protocol: TCP,
                source_port: 40000,
                destination_port: 443,
            },
            FlowCounters::default(),
        );
        flow.state = State::Offloaded;
        flow.path = Path { accelerated: Some(false), bypassed: Some(5), metered: Some(70) };
        let written = |writer: &mut dyn Writer| {
            let mut out = Vec::new();
            writer.flow(&mut out, &flow, &Node::default()).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = written(&mut Table::default());
        assert!(text.starts_with("offloaded, slow "), "{text}");
        assert!(text.ends_with("70 packets took the normal path\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&written(&mut Json::default())).unwrap();
        assert_eq!(json["state"], "offloaded");
        assert_eq!(
            (&json["accelerated"], &json["bypassed"], &json["metered"]),
            (&false.into(), &5.into(), &70.into())
        );
    }

    #[test]
    fn json_is_an_array_whatever_its_length() {
        for flows in 0..3 {
            let json: serde_json::Value = serde_json::from_str(&shown(&mut Json::default(), flows)).unwrap();
            assert_eq!(json.as_array().unwrap().len(), flows);
            for flow in json.as_array().unwrap() {
                assert_eq!(flow["state"], "gone");
                assert_eq!(flow["original"]["source"], "10.1.0.2");
                assert_eq!(flow["ingress"][0]["packets"], 7);
                assert_eq!(flow["ingress"][1], serde_json::Value::Null);
            }
        }
    }
}
