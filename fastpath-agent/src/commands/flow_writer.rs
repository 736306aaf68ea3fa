//! How a flow is written: a line of a table for people, an object for programs.

use std::io::{self, IsTerminal, Write};

use super::flow_table::{Look, Table};
use crate::{
    cli::{FlowsArgs, FlowsOutput},
    core::flow::{
        Flow, Node,
        column::Column,
        expression::{BadExpression, Expression},
        filter::Filter,
        rates::Rate,
        record::FlowRecord,
    },
    core::names::Names,
    kernel::{event_socket::SocketError, flows::FlowsError},
};

/// Writes flows one after the other.
pub enum Writer {
    /// For people.
    Table(Table),
    /// For programs.
    Json(Json),
}

/// One object for each flow, each on a line of its own: in an array, or by themselves. Fields are only ever added.
pub struct Json {
    array: bool,
    flows: u64,
    names: Names,
    /// The flow that is being written: into memory, since it is written in a hundred pieces.
    text: Vec<u8>,
}

impl Writer {
    /// For `-o` and what else was said of how it looks; `watch`: it is shown again and again.
    pub fn new(output: FlowsOutput, columns: &[Column], raw: bool, watch: bool, names: Names) -> Self {
        let usual = match output {
            FlowsOutput::Json => return Self::Json(Json { array: true, flows: 0, names, text: Vec::new() }),
            FlowsOutput::Ndjson => {
                return Self::Json(Json { array: false, flows: 0, names, text: Vec::new() });
            }
            FlowsOutput::Wide => Column::wide(),
            FlowsOutput::Text => Column::usual(watch),
        };
        let columns = if columns.is_empty() { usual } else { columns.to_vec() };
        let terminal = io::stdout().is_terminal();
        let fits = terminal && output == FlowsOutput::Text;
        let width =
            fits.then(|| crossterm::terminal::size().ok()).flatten().map(|(columns, _)| columns.into());
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::Table(Table::new(Look { columns, raw, names, colour, width }))
    }

    /// Before the first flow.
    pub fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Json(Json { array: true, .. }) => write!(out, "["),
            Self::Json(_) | Self::Table(_) => Ok(()),
        }
    }

    /// One flow, with its rate if that is known.
    pub fn flow(
        &mut self,
        out: &mut dyn Write,
        flow: &Flow,
        node: &Node,
        rate: Option<Rate>,
    ) -> io::Result<()> {
        let Json { array, flows, names, text } = match self {
            Self::Table(table) => return table.add(out, flow, node, rate),
            Self::Json(json) => json,
        };
        text.clear();
        if *array {
            text.extend_from_slice(if *flows == 0 { b"\n" } else { b",\n" });
        }
        *flows += 1;
        let name = |address| names.of(address).map(str::to_owned);
        let record = FlowRecord {
            rate: rate.map(Into::into),
            client: name(flow.original.source),
            server: name(flow.reply.map_or(flow.original.destination, |reply| reply.source)),
            ..FlowRecord::new(flow, node)
        };
        serde_json::to_writer(&mut *text, &record)?;
        if !*array {
            text.push(b'\n');
        }
        out.write_all(text)
    }

    /// After the last flow.
    pub fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Table(table) => table.end(out),
            Self::Json(Json { array: true, .. }) => writeln!(out, "\n]"),
            Self::Json(_) => Ok(()),
        }
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
    /// It isn't understood which are wanted.
    #[error(transparent)]
    Wanted(#[from] BadExpression),
    /// They can't be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn filter(args: &FlowsArgs, names: &Names) -> Result<Filter, BadExpression> {
    Ok(Filter {
        expression: (!args.words.is_empty()).then(|| Expression::parse(&args.words, names)).transpose()?,
        networks: args.address.clone(),
        ports: args.port.clone(),
        protocols: args.protocol.iter().map(|protocol| protocol.number()).collect(),
        interfaces: args.interface.clone(),
        states: args.state.clone(),
        groups: args.group.clone(),
    })
}

#[cfg(test)]
mod tests {
    use fastpath_common::FlowCounters;

    use super::*;
    use crate::core::flow::{
        State,
        connection::{TCP, Tuple},
        path::Path,
    };

    fn written(output: FlowsOutput, flows: usize) -> String {
        let tuple = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.2.0.2".parse().unwrap(),
            protocol: TCP,
            source_port: 40000,
            destination_port: 443,
        };
        let mut flow = Flow::gone(tuple, FlowCounters { packets: 7, ..FlowCounters::default() });
        flow.state = State::Offloaded;
        flow.path = Path { accelerated: Some(false), bypassed: Some(5), metered: Some(70), forwarded: 0 };
        let (mut writer, mut out) = (Writer::new(output, &[], false, false, Names::default()), Vec::new());
        writer.begin(&mut out).unwrap();
        for _ in 0..flows {
            let rate = Some(Rate { packets: 2.0, bits: 8.5 });
            writer.flow(&mut out, &flow, &Node::default(), rate).unwrap();
        }
        writer.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_flow_that_is_offloaded_and_slow_is_called_so() {
        let text = written(FlowsOutput::Text, 1);
        assert!(
            text.contains("\noffloaded, slow ") && text.contains("70 packets took the normal path\n"),
            "{text}"
        );
        assert!(text.ends_with("0 fast, 1 could be fast, 0 never\n"), "{text}");
    }

    #[test]
    fn json_is_an_array_or_lines_whatever_its_length() {
        for flows in 0..3 {
            let array: Vec<serde_json::Value> =
                serde_json::from_str(&written(FlowsOutput::Json, flows)).unwrap();
            let lines = written(FlowsOutput::Ndjson, flows);
            let lines: Vec<serde_json::Value> =
                lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!((array.len(), &array), (flows, &lines));
            for flow in array {
                assert_eq!((&flow["state"], &flow["group"]), (&"offloaded".into(), &"could-be-fast".into()));
                assert_eq!(flow["original"]["source"], "10.1.0.2");
                assert_eq!((&flow["ingress"][0]["packets"], &flow["ingress"][1]), (&7.into(), &().into()));
                assert_eq!((&flow["bypassed"], &flow["metered"]), (&5.into(), &70.into()));
                assert_eq!(
                    flow["rate"],
                    serde_json::json!({ "packets_per_second": 2, "bits_per_second": 8 })
                );
            }
        }
    }
}
