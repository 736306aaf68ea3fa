//! Flows as a table for people: which columns there are, what is in their cells, and how they fit into a terminal.

use std::{
    io::{self, Write},
    mem,
};

use clap::ValueEnum;
use crossterm::style::{Color, Stylize};

use super::units;
use crate::core::flow::{
    Flow, Node, SLOW, State,
    column::Column,
    connection::protocol_name,
    group::{Group, todo},
    rates::Rate,
    record::interfaces,
};
use crate::core::names::Names;

impl Column {
    fn heading(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_uppercase()).unwrap_or_default()
    }

    fn is_number(self) -> bool {
        matches!(
            self,
            Self::Sent
                | Self::Received
                | Self::Packets
                | Self::Bytes
                | Self::Pps
                | Self::Rate
                | Self::Idle
                | Self::Age
        )
    }

    /// The order in which columns give way where the terminal is narrow.
    fn gives_way(self) -> Option<usize> {
        let first = [
            Self::Age,
            Self::As,
            Self::Group,
            Self::In,
            Self::Packets,
            Self::Bytes,
            Self::Idle,
            Self::Pps,
            Self::Proto,
        ];
        first.iter().position(|column| *column == self)
    }

    fn cell(self, flow: &Flow, node: &Node, rate: Option<Rate>, look: &Look) -> String {
        let (raw, names) = (look.raw, &look.names);
        let number =
            |value: u64| if raw || value < 1000 { value.to_string() } else { units::short(value as f64) };
        let bytes = |direction: usize| flow.seen[direction].map_or("-".to_owned(), |seen| number(seen.bytes));
        let counted = |value: u64| if flow.seen == [None; 2] { "-".to_owned() } else { number(value) };
        let since = |at: Option<u64>| match at.map(|at| node.now_ns.saturating_sub(at)) {
            None => "-".to_owned(),
            Some(ns) if raw => format!("{:.3}", ns as f64 / 1e9),
            Some(ns) if ns < 1_000_000_000 => format!("{}ms", ns / 1_000_000),
            Some(ns) => units::duration(ns),
        };
        match self {
            Self::State if flow.slow() => format!("{}, {SLOW}", flow.state.name()),
            Self::State => flow.state.name().to_owned(),
            Self::Group => flow.group().name().to_owned(),
            Self::Proto => protocol_name(flow.original.protocol),
            Self::Client => names.source(&flow.original),
            Self::Server => {
                let dialled = names.source(&flow.original.reversed());
                match flow.reply.as_ref().map(|reply| names.source(reply)) {
                    Some(answers) if answers != dialled => format!("{dialled} → {answers}"),
                    _ => dialled,
                }
            }
            Self::As => {
                let masqueraded = flow.reply.as_ref().map(|reply| names.source(&reply.reversed()));
                masqueraded.filter(|as_| *as_ != names.source(&flow.original)).unwrap_or_default()
            }
            Self::Sent => bytes(0),
            Self::Received => bytes(1),
            Self::Packets => counted(flow.packets()),
            Self::Bytes => counted(flow.bytes()),
            Self::Pps => units::known(rate.map(|rate| rate.packets)),
            Self::Rate => units::known(rate.map(|rate| rate.bits)),
            Self::Idle => since(flow.last_seen_ns()),
            Self::Age => since(flow.first_seen_ns()),
            Self::In => interfaces(flow, node).join(","),
            Self::Why => why(flow),
            Self::Todo => todo(&flow.state, flow.slow()).unwrap_or_default().to_owned(),
        }
    }
}

fn why(flow: &Flow) -> String {
    match (&flow.state, flow.path.metered) {
        (State::Stalled(cause) | State::Never(cause), _) => cause.to_string(),
        (_, Some(metered)) if flow.slow() => format!("{metered} packets took the normal path"),
        _ => flow.forwarded().unwrap_or_default(),
    }
}

/// How a table is shown.
#[derive(Clone, Debug)]
pub struct Look {
    /// Which columns, from left to right.
    pub columns: Vec<Column>,
    /// Shown instead of addresses.
    pub names: Names,
    /// Exact numbers instead of three digits.
    pub raw: bool,
    /// With colours.
    pub colour: bool,
    /// Characters of a line; none: as many as it takes.
    pub width: Option<usize>,
}

/// A table with one line for each flow. The first flows decide on its widths, so that none but these are held in memory.
pub struct Table {
    look: Look,
    widths: Option<Vec<usize>>,
    waiting: Vec<(Vec<String>, Option<Color>)>,
    groups: [u64; 3],
}

/// Flows that decide on widths.
const FIRST: usize = 200;
/// Space between columns.
const GAP: usize = 2;
/// The least that a cell of words is shortened to.
const LEAST: usize = 12;

impl Table {
    /// An empty one.
    pub fn new(look: Look) -> Self {
        Self { look, widths: None, waiting: Vec::new(), groups: [0; 3] }
    }

    /// The next flow, with its rate if that is known.
    pub fn add(
        &mut self,
        out: &mut dyn Write,
        flow: &Flow,
        node: &Node,
        rate: Option<Rate>,
    ) -> io::Result<()> {
        self.groups[flow.group() as usize] += 1;
        let cells =
            self.look.columns.iter().map(|column| column.cell(flow, node, rate, &self.look)).collect();
        self.waiting.push((cells, colour(flow)));
        if self.widths.is_some() || self.waiting.len() >= FIRST { self.write(out) } else { Ok(()) }
    }

    /// Writes what is left, and how many flows there were of each group.
    pub fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.write(out)?;
        let [fast, could, never] = self.groups;
        match fast + could + never {
            0 => writeln!(out, "no flows"),
            _ => writeln!(out, "\n{fast} fast, {could} could be fast, {never} never"),
        }
    }

    fn write(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.widths.is_none() {
            let headings: Vec<String> = self.look.columns.iter().map(|column| column.heading()).collect();
            self.widths = Some(widths(&self.look, &headings, &self.waiting));
            self.line(out, &headings, None)?;
        }
        for (cells, colour) in mem::take(&mut self.waiting) {
            self.line(out, &cells, colour)?;
        }
        Ok(())
    }

    /// `colour` is that of the first column.
    fn line(&self, out: &mut dyn Write, cells: &[String], colour: Option<Color>) -> io::Result<()> {
        let widths = self.widths.as_deref().unwrap_or_default();
        let mut line = String::new();
        let mut colour = colour.filter(|_| self.look.colour);
        for ((cell, column), width) in
            cells.iter().zip(&self.look.columns).zip(widths).filter(|(_, width)| **width > 0)
        {
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            let cell = shortened(cell, *width);
            let padded =
                if column.is_number() { format!("{cell:>width$}") } else { format!("{cell:width$}") };
            match colour.take().filter(|_| *column == Column::State) {
                Some(colour) => line.push_str(&padded.with(colour).to_string()),
                None => line.push_str(&padded),
            }
        }
        writeln!(out, "{}", line.trim_end())
    }
}

/// As `top` has them.
fn colour(flow: &Flow) -> Option<Color> {
    match (flow.group(), &flow.state) {
        (Group::Fast, _) => Some(Color::Green),
        (Group::CouldBeFast, State::Stalled(_) | State::Offloaded | State::HwOffloaded) => Some(Color::Red),
        (Group::CouldBeFast, _) => None,
        (Group::Never, _) => Some(Color::DarkGrey),
    }
}

/// Widths of the columns; 0 for one that gave way.
fn widths(look: &Look, headings: &[String], rows: &[(Vec<String>, Option<Color>)]) -> Vec<usize> {
    let length = |text: &String| text.chars().count();
    let mut widths: Vec<usize> = headings.iter().map(length).collect();
    for (cells, _) in rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(length(cell));
        }
    }
    let Some(room) = look.width else { return widths };
    let needed = |widths: &[usize]| {
        widths.iter().filter(|width| **width > 0).map(|width| width + GAP).sum::<usize>().saturating_sub(GAP)
    };
    // Words are shortened before a column goes.
    let shorten = |widths: &mut Vec<usize>, least_of_ends: usize| {
        for words in [Column::Todo, Column::Why, Column::Server, Column::Client] {
            let excess = needed(widths).saturating_sub(room);
            if let Some(at) = look.columns.iter().position(|column| *column == words) {
                let least =
                    if matches!(words, Column::Server | Column::Client) { least_of_ends } else { LEAST };
                widths[at] = widths[at].saturating_sub(excess).max(widths[at].min(least));
            }
        }
    };
    let mut goes: Vec<usize> =
        (0..widths.len()).filter(|at| look.columns[*at].gives_way().is_some()).collect();
    goes.sort_by_key(|at| look.columns[*at].gives_way());
    let full = widths.clone();
    let mut gone = goes.into_iter();
    loop {
        let mut fitted: Vec<usize> =
            widths.iter().zip(&full).map(|(width, full)| if *width == 0 { 0 } else { *full }).collect();
        shorten(&mut fitted, 2 * LEAST);
        if needed(&fitted) <= room {
            return fitted;
        }
        match gone.next() {
            Some(at) => widths[at] = 0,
            None => {
                shorten(&mut fitted, LEAST);
                return fitted;
            }
        }
    }
}

/// The end of an address says more than its beginning, the beginning of words more than their end.
fn shortened(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width || width == 0 {
        return text.to_owned();
    }
    if text.starts_with(|c: char| c.is_ascii_hexdigit() || c == '[') && text.contains(':') {
        let tail: String = text.chars().skip(length + 1 - width).collect();
        return format!("…{tail}");
    }
    let head: String = text.chars().take(width - 1).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use fastpath_common::FlowCounters;
    use proptest::prelude::*;

    use super::*;
    use crate::core::{
        flow::connection::{TCP, Tuple},
        model::{IfIndex, IfName},
        why_not::WhyNot,
    };

    fn tuple(source: &str, destination: &str, ports: [u16; 2]) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: TCP,
            source_port: ports[0],
            destination_port: ports[1],
        }
    }

    fn flow(state: State) -> Flow {
        let seen = |packets, bytes| {
            Some(FlowCounters { packets, bytes, last_seen_ns: 1, ifindex: 2, ..FlowCounters::default() })
        };
        Flow {
            reply: Some(tuple("10.2.0.2", "192.0.2.1", [8443, 50000])),
            seen: [seen(7, 1234), seen(9, 56_789_000)],
            state,
            ..Flow::gone(tuple("10.1.0.2", "10.96.0.1", [40000, 443]), FlowCounters::default())
        }
    }

    fn node() -> Node {
        Node {
            names: [(IfIndex(2), IfName::new("eth0").unwrap())].into(),
            now_ns: 2_000_000_001,
            ..Node::default()
        }
    }

    fn shown(look: Look, flows: &[Flow]) -> String {
        let (mut table, mut out) = (Table::new(look), Vec::new());
        for flow in flows {
            let rate = Some(Rate { packets: 12.0, bits: 3456.0 });
            table.add(&mut out, flow, &node(), rate).unwrap();
        }
        table.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn look(columns: Vec<Column>, width: Option<usize>) -> Look {
        Look { columns, names: Names::default(), raw: false, colour: false, width }
    }

    #[test]
    fn a_flow_is_a_line_with_what_was_dialled_and_who_answers() {
        let text = shown(look(Column::usual(false), None), &[flow(State::Offloaded)]);
        let line: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected = [
            "offloaded",
            "tcp",
            "10.1.0.2:40000",
            "10.96.0.1:443",
            "→",
            "10.2.0.2:8443",
            "16",
            "1.23k",
            "56.8M",
            "2s",
            "eth0,eth0",
        ];
        assert_eq!(line, expected, "{text}");
        assert!(text.ends_with("\n1 fast, 0 could be fast, 0 never\n"), "{text}");
        assert_eq!(shown(look(Column::usual(false), None), &[]).lines().last(), Some("no flows"));
    }

    #[test]
    fn names_stand_for_addresses() {
        let mut names = Names::default();
        names.add("10.1.0.2".parse().unwrap(), "shop/web-0");
        names.add("10.2.0.2".parse().unwrap(), "shop/db-0");
        let text = shown(Look { names, ..look(Column::usual(false), None) }, &[flow(State::Offloaded)]);
        assert!(text.contains(" shop/web-0:40000  10.96.0.1:443 → shop/db-0:8443 "), "{text}");
    }

    #[test]
    fn wide_has_rates_and_what_to_do_and_raw_has_every_digit() {
        let stalled = flow(State::not(WhyNot::NotCounted));
        let text = shown(Look { raw: true, ..look(Column::wide(), None) }, &[stalled]);
        for part in [
            "192.0.2.1:50000",
            "56789000",
            "3.46k",
            "older than the ruleset",
            "if a running agent helps it",
            "could-be-fast",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }

    #[test]
    fn a_narrow_terminal_gets_what_says_most() {
        let text = shown(look(Column::usual(false), Some(80)), &[flow(State::not(WhyNot::OneWay))]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in ["stalled", "10.1.0.2:40000", "one direc"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(!text.contains("eth0"), "{text}");
    }

    #[test]
    fn colours_are_in_the_first_column_and_only_if_wanted() {
        let with = Look { colour: true, ..look(Column::usual(false), None) };
        assert!(shown(with, &[flow(State::Offloaded)]).contains("\u{1b}[38;5;10moffloaded"));
        assert!(!shown(look(Column::usual(false), None), &[flow(State::Offloaded)]).contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_the_terminal(
            a: [u8; 16], b: [u8; 16], width in 80..200usize, watch: bool, slow: bool,
        ) {
            let mut wide = flow(State::Offloaded);
            wide.original = Tuple { source: a.into(), destination: b.into(), ..wide.original };
            wide.path.accelerated = Some(!slow);
            let text = shown(look(Column::usual(watch), Some(width)), &[wide]);
            for line in text.lines() {
                prop_assert!(line.chars().count() <= width, "{text}");
            }
        }
    }
}
