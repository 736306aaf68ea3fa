//! What the page shows, as JSON: the last hour, the node, its flows. Fields are only ever added.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use clap::ValueEnum;
use serde::Serialize;
use strum::IntoEnumIterator;
use tokio::time::Instant;

use super::names::Known;
use crate::{
    core::{
        flow::{
            Flow, Node, State,
            best::Best,
            connection::{Tuple, protocol_name},
            group::{Group, todo},
            record::interfaces,
            search::Search,
            traffic::Passed,
        },
        history::{Event, Kind, STEP_NS, STEPS},
        names::Names,
        why::Explanation,
    },
    daemon::{
        measure::{Seen, Status},
        metrics::scrape::Hour,
    },
    kernel::flows::FlowsError,
};

/// Flows that are sent at most: the heaviest of those that match.
const MOST_FLOWS: usize = 200;

/// Whether it never leaves the node: what reads this page, for one.
fn is_inside(flow: &Flow) -> bool {
    flow.original.source.is_loopback() && flow.original.destination.is_loopback()
}

/// How many flows there are of each group.
type Groups = BTreeMap<Group, u64>;

/// None of any.
fn no_flows() -> Groups {
    Group::iter().map(|group| (group, 0)).collect()
}

/// What there was to show at one moment.
pub(super) struct Snapshot {
    pub(super) taken: Instant,
    unix_ms: u64,
    status: Status,
    events: Vec<Event>,
    hour: Hour,
    groups: Groups,
}

impl Snapshot {
    /// Reads it, and hands each flow of conntrack out.
    pub(super) fn read(seen: Seen, mut each: impl FnMut(Flow, &Node)) -> Result<Self, FlowsError> {
        let mut groups = no_flows();
        let (status, events, hour) = seen.read(|flow, node| {
            if flow.entry.is_some() && !is_inside(&flow) {
                *groups.entry(flow.group()).or_default() += 1;
                each(flow, node);
            }
        })?;
        Ok(Self { taken: Instant::now(), unix_ms: super::unix_ms(), status, events, hour, groups })
    }

    /// Without flows.
    #[cfg(test)]
    pub(super) fn of(status: Status, events: Vec<Event>, hour: Hour) -> Self {
        Self { taken: Instant::now(), unix_ms: 0, status, events, hour, groups: no_flows() }
    }

    /// The newest step of which something is known.
    pub(super) fn newest(&self) -> u64 {
        self.hour.now_ns / STEP_NS
    }

    /// How long reading it took.
    pub(super) fn took(&self) -> Duration {
        self.hour.took
    }

    /// For a client that has the steps before `seen`, and knows that one in part.
    pub(super) fn since(&self, seen: Option<u64>) -> String {
        let now_ms = self.hour.now_ns / 1_000_000;
        let row =
            |passed: &Passed| [passed.all.packets, passed.all.bytes, passed.fast.packets, passed.fast.bytes];
        let steps = self.hour.steps.iter().filter(|(number, _)| seen.is_none_or(|seen| *number >= seen));
        let update = Update {
            version: env!("CARGO_PKG_VERSION"),
            node: &self.status.node,
            kernel: &self.status.kernel,
            standing: &self.status.standing,
            ready: self.status.ready,
            threshold: self.status.threshold,
            watches: self.status.watches,
            managed: self.status.managed,
            unix_ms: self.unix_ms,
            now_ms,
            step_ms: STEP_NS / 1_000_000,
            keeps: STEPS,
            took_ms: u64::try_from(self.hour.took.as_millis()).unwrap_or(u64::MAX),
            total: row(&self.hour.total),
            groups: &self.groups,
            steps: steps.map(|(n, step)| (*n, step.covered_ns / 1_000_000, row(&step.passed))).collect(),
            events: self
                .events
                .iter()
                .map(|event| Told {
                    at_ms: event.at_ns / 1_000_000,
                    kind: event.kind,
                    about: &event.about,
                    times: event.times,
                })
                .collect(),
        };
        written(&update)
    }
}

/// An answer of `/api/history`, and an event of `/events`.
#[derive(Serialize)]
struct Update<'a> {
    version: &'static str,
    node: &'a str,
    kernel: &'a str,
    /// What the agent does, or why it can't.
    standing: &'a str,
    ready: bool,
    threshold: u32,
    /// Whether packets are counted.
    watches: bool,
    /// Interfaces in the flowtable.
    managed: usize,
    /// When it was read.
    unix_ms: u64,
    /// The same by the clock of steps and events.
    now_ms: u64,
    /// Length of a step.
    step_ms: u64,
    /// Steps that are kept.
    keeps: usize,
    /// How long reading took.
    took_ms: u64,
    /// Packets, bytes, and both on the fast path, since the agent started.
    total: [u64; 4],
    groups: &'a Groups,
    /// Number, known part in ms, and what `total` has.
    steps: Vec<(u64, u64, [u64; 4])>,
    events: Vec<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    at_ms: u64,
    kind: Kind,
    about: &'a str,
    times: u32,
}

/// The heaviest flows that match.
pub(super) struct List {
    search: Search,
    known: Known,
    group: Option<Group>,
    matching: u64,
    best: Best<Line, fn(&Line, &Line) -> std::cmp::Ordering>,
}

/// A flow.
#[derive(Clone, Debug, Serialize)]
struct Line {
    group: Group,
    /// As `why` takes it, but for the `>`.
    flow: String,
    /// The same with names, if any are known.
    named: Option<String>,
    /// After NAT: whom the reply comes from, where that is another than was asked.
    server: Option<String>,
    protocol: String,
    packets: u64,
    bytes: u64,
    state: &'static str,
    /// Why it isn't on the fast path, as far as a list can tell.
    why: String,
    /// What would make it fast, if it could be.
    todo: Option<&'static str>,
    interfaces: Vec<String>,
}

impl List {
    /// Of those that `search` finds, and that are in `group` if that is one's name.
    pub(super) fn new(search: &str, group: Option<&str>, known: Known) -> Self {
        let heaviest: fn(&Line, &Line) -> _ = |a, b| b.bytes.cmp(&a.bytes).then_with(|| a.flow.cmp(&b.flow));
        let group = group.and_then(|name| Group::from_str(name, false).ok());
        let search = Search::new(search, Arc::clone(&known.names));
        Self { search, known, group, matching: 0, best: Best::new(MOST_FLOWS, heaviest) }
    }

    /// The next flow.
    pub(super) fn add(&mut self, flow: Flow, node: &Node) {
        let group = flow.group();
        if self.group.is_none_or(|wanted| wanted == group) && self.search.matches(&flow, node) {
            self.matching += 1;
            self.best.push(Line::new(group, &flow, node, &self.known.names));
        }
    }

    /// As JSON.
    pub(super) fn written(self, snapshot: &Snapshot) -> String {
        #[derive(Serialize)]
        struct Flows<'a> {
            took_ms: u64,
            groups: &'a Groups,
            /// All that match; the heaviest are listed.
            matching: u64,
            flows: Vec<Line>,
            /// Why names may be missing.
            unnamed: &'a [String],
        }
        written(&Flows {
            took_ms: u64::try_from(snapshot.took().as_millis()).unwrap_or(u64::MAX),
            groups: &snapshot.groups,
            matching: self.matching,
            flows: self.best.into_sorted(),
            unnamed: &self.known.errors,
        })
    }
}

impl Line {
    fn new(group: Group, flow: &Flow, node: &Node, names: &Names) -> Self {
        // As counted at ingress, or as conntrack counts where nothing watches.
        let counted = flow.entry.as_ref().and_then(|entry| entry.counters).unwrap_or_default();
        let sum = |part: fn(&crate::core::model::Counter) -> u64| counted.iter().map(part).sum::<u64>();
        let why = match &flow.state {
            _ if flow.slow() => "offloaded, but its packets are still on the normal path".to_owned(),
            State::Stalled(cause) | State::Never(cause) => cause.to_string(),
            State::Idle => "no packets just now".to_owned(),
            State::Crossed => "has just had enough packets".to_owned(),
            State::BelowThreshold => "not more packets than the threshold".to_owned(),
            State::Closing => "a FIN or RST was seen".to_owned(),
            State::Offloaded | State::HwOffloaded | State::Gone => flow.forwarded().unwrap_or_default(),
        };
        let (addresses, server) = Names::default().ends(&flow.original, flow.reply.as_ref());
        let (named, named_server) = names.ends(&flow.original, flow.reply.as_ref());
        Self {
            group,
            named: (named != addresses).then_some(named),
            flow: addresses,
            server: named_server.or(server),
            protocol: protocol_name(flow.original.protocol),
            packets: flow.packets().max(sum(|c| c.packets)),
            bytes: flow.bytes().max(sum(|c| c.bytes)),
            state: flow.state.name(),
            why,
            todo: todo(&flow.state, flow.slow()),
            interfaces: interfaces(flow, node),
        }
    }
}

/// An answer of `/api/why`.
pub(super) fn explained(asked: &Tuple, explanation: &Explanation) -> String {
    #[derive(Serialize)]
    struct Explained<'a> {
        flow: String,
        #[serde(flatten)]
        explanation: &'a Explanation,
    }
    written(&Explained { flow: asked.to_string(), explanation })
}

fn written(answer: &impl Serialize) -> String {
    // These have no keys but text.
    serde_json::to_string(answer).unwrap_or_default()
}
