//! The metrics: plain numbers in, OpenMetrics or Prometheus' text out. Reads nothing and keeps nothing: the caller
//! passes the numbers for each page. docs/metrics.md explains them.

use std::collections::BTreeMap;

use fastpath_common::{PacketStats, Tally};
use prometheus_client::{
    encoding::{prometheus_text, text},
    metrics::histogram::Histogram,
    registry::Unit,
};

use crate::{
    core::{
        flow::{
            group::Group,
            sums::{COUNTED_STATES, FlowSums},
            traffic::Passed,
        },
        link::select::Unmanaged,
        pace::Trigger,
        policy::{concern::HANDLED, traits::CHANGING},
        threshold::{LANDMARKS, Prospect},
        why_not::WhyNot,
    },
    kernel::memory::Usage,
};

mod page;
pub mod scrape;

use page::Page;
use strum::IntoEnumIterator;

/// What is shown.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// What the agent has counted since it started.
    pub agent: Agent,
    /// What was read from the kernel for this answer.
    pub kernel: Kernel,
}

/// What the agent has counted since it started, and its present state.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    /// When it started, in s since 1970, UTC.
    pub started_unix: f64,
    /// Release of the kernel.
    pub release: String,
    /// Whether the kernel can offload flows.
    pub flowtable: bool,
    /// The node is as the flags want it, see `daemon::ready`.
    pub ready: bool,
    /// The threshold in force; 0: flows are only watched.
    pub threshold: u32,
    /// State of our table, one of [`STANDINGS`].
    pub standing: &'static str,
    /// Reconciles by what triggered them.
    pub reconciles: BTreeMap<Trigger, u64>,
    /// How long they took, in s.
    pub reconcile_seconds: Option<Histogram>,
    /// Those that failed.
    pub failures: u64,
    /// Transactions that were committed.
    pub commits: u64,
    /// Reconciles that undid another program's change of the table.
    pub repairs: u64,
    /// Announcements of links, and of the ruleset, that were lost: so many times.
    pub overruns: [u64; 2],
    /// By what triggered them ([`REVALIDATION_TRIGGERS`]) and what came of it ([`REVALIDATION_OUTCOMES`]).
    pub revalidations: BTreeMap<(&'static str, &'static str), u64>,
    /// Connections that crossed the threshold.
    pub crossed: u64,
    /// Those that were offloaded.
    pub offloaded: u64,
    /// Those that weren't, by [`WhyNot::name`], or "ended".
    pub not_offloaded: BTreeMap<&'static str, u64>,
    /// Connections older than the ruleset that were offloaded with our help.
    pub assisted: u64,
    /// Interfaces in the flowtable.
    pub managed: usize,
    /// Interfaces whose packets are counted.
    pub watched: usize,
    /// Interfaces that aren't in the flowtable, by [`Unmanaged::name`].
    pub left_out: BTreeMap<&'static str, u64>,
    /// Other programs' rules that offloaded packets bypass, by class and by how the agent handles them ([`HANDLED`]).
    pub rules: BTreeMap<(&'static str, &'static str), u64>,
    /// What was exported; `None` without `--export`.
    pub export: Option<Exported>,
    /// Times that rules that change without an event had the flowtable emptied, by what they ask ([`CHANGING`]).
    pub rule_revalidations: BTreeMap<&'static str, u64>,
}

/// What became of flow records.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exported {
    /// Sent.
    pub records: u64,
    /// Known to be lost.
    pub lost: u64,
    /// Whether the collector can be reached, as far as that can be told.
    pub up: bool,
}

/// Values of [`Agent::standing`].
pub const STANDINGS: [&str; 4] = ["right", "foreign", "wrong", "none"];
/// What triggered revalidations.
pub const REVALIDATION_TRIGGERS: [&str; 8] =
    ["ruleset", "overrun", "route-rules", "routes", "forwarding", "master", "surroundings", "changing-rule"];
/// What came of it.
pub const REVALIDATION_OUTCOMES: [&str; 4] = ["emptied", "nothing-new", "absent", "failed"];
/// So many rules have a series of their own.
const MOST_RULES: usize = 20;
/// Of a flow that conntrack has counted fewer packets of than the programs.
pub const BELOW_THRESHOLD: &str = "below-threshold";
/// Cause for a flow that had ended before conntrack was asked.
pub const ENDED: &str = "ended";

/// What was read from the kernel.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Connections and their counts; an error if they can't be read.
    pub flows: Option<FlowSums>,
    /// What came in by interface, by its name.
    pub interfaces: Vec<(String, Passed)>,
    /// Packets of offloaded flows of which it can't be told which way they took.
    pub unmeasured: u64,
    /// What every threshold would be worth; absent until flows were counted.
    pub prospect: Option<Prospect>,
    /// The maps; absent without eBPF.
    pub maps: Option<Maps>,
    /// Packets that moved their flow to the flowtable since the rule was made; absent without the rule.
    pub rule_offloads: Option<u64>,
    /// Packets that left no trace for the other direction, since the set of traces was full; absent without the rules.
    pub untraced: Option<u64>,
    /// The parts that couldn't be read, of [`PARTS`].
    pub failed: Vec<&'static str>,
    /// How long reading took.
    pub seconds: f64,
    /// What the process uses.
    pub usage: Option<Usage>,
}

/// Parts of [`Kernel`] that may fail by themselves.
pub const PARTS: [&str; 3] = ["flows", "maps", "ruleset"];

/// What the pinned maps say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Maps {
    /// Entries in the flows map.
    pub entries: u32,
    /// Entries that it has room for.
    pub capacity: u32,
    /// Entries that went away so far.
    pub left: u64,
    /// Packets seen, by how they were counted.
    pub stats: PacketStats,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4, for clients that don't ask for OpenMetrics.
    Text,
}

impl Format {
    /// What a reader with these `Accept` headers gets.
    pub fn accepted<'a>(headers: impl IntoIterator<Item = &'a str>) -> Self {
        let open = headers.into_iter().any(|header| header.contains("application/openmetrics-text"));
        if open { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Writes all metrics.
pub fn render(metrics: &Metrics, format: Format) -> String {
    let mut page = Page::default();
    agent(&mut page, &metrics.agent);
    flows(&mut page, &metrics.agent, &metrics.kernel);
    interfaces(&mut page, &metrics.agent, &metrics.kernel);
    if let Some(found) = &metrics.kernel.prospect {
        prospect(&mut page, found);
    }
    if let Some(maps) = &metrics.kernel.maps {
        self::maps(&mut page, maps);
    }
    if let Some(exported) = &metrics.agent.export {
        export(&mut page, exported);
    }
    process(&mut page, metrics);
    let registry = page.into_registry();
    let mut written = String::new();
    // Writing to a string doesn't fail.
    let _ = match format {
        Format::OpenMetrics => text::encode(&mut written, &registry),
        Format::Text => prometheus_text::encode(&mut written, &registry),
    };
    written
}

fn packets() -> Option<Unit> {
    Some(Unit::Other("packets".to_owned()))
}

fn agent(page: &mut Page, agent: &Agent) {
    page.info("build", "Version of the agent", [("version", env!("CARGO_PKG_VERSION").to_owned())]);
    let flowtable = if agent.flowtable { "yes" } else { "no" };
    page.info(
        "kernel",
        "The kernel, and whether it has flowtables: yes or no",
        [("release", agent.release.clone()), ("flowtable", flowtable.to_owned())],
    );
    page.gauge(
        "ready",
        None,
        "1 if the node is in the state that the flags ask for, as in /readyz",
        u64::from(agent.ready),
    );
    page.gauge(
        "threshold",
        packets(),
        "Packets after which a flow is offloaded; 0: no flow is (set --fastpath-threshold or --mode, or see the log for a known bug)",
        agent.threshold.into(),
    );
    let watches = agent.threshold == 0;
    page.gauges(
        "mode",
        None,
        "1 at what the node does: accelerate, or watch (also with threshold 0, or outside the mode's percentage); if it isn't as planned, see --mode and its file",
        ["mode"],
        [("accelerate", !watches), ("watch", watches)].map(|(mode, is)| ([mode.to_owned()], u64::from(is))),
    );
    let standing = STANDINGS.map(|name| ([name.to_owned()], u64::from(name == agent.standing)));
    page.gauges("ruleset", None, "State of the agent's table: 1 at the present one. foreign: another program has its name, use --takeover; wrong: refused and tried again, /readyz says why; none: not checked, or no flowtables", ["standing"], standing);
    let reconciles = Trigger::ALL.map(|t| ([t.to_string()], agent.reconciles.get(&t).copied().unwrap_or(0)));
    page.counters(
        "reconciles",
        None,
        "Comparisons of the installed ruleset with the wanted one. ruleset: another program changed it; threshold: or mode; surroundings: other programs' chains, policy rules or eBPF programs; safety-net: once a minute",
        ["trigger"],
        reconciles,
    );
    if let Some(histogram) = &agent.reconcile_seconds {
        page.histogram("reconcile_duration", Unit::Seconds, "Duration of reconciles", histogram.clone());
    }
    page.counter(
        "reconcile_failures",
        None,
        "Reconciles that failed and are tried again; if it grows, the log says why",
        agent.failures,
    );
    page.counter("ruleset_commits", None, "Transactions that changed the agent's table", agent.commits);
    page.counter(
        "ruleset_repairs",
        None,
        "Reconciles that undid another program's change of the table; if it grows, nft monitor shows whose",
        agent.repairs,
    );
    let [links, ruleset] = agent.overruns;
    page.counters(
        "netlink_overruns",
        None,
        "Times that the kernel's events were lost and everything was read again; if it grows, the agent lacks processor time",
        ["source"],
        [(["links".to_owned()], links), (["ruleset".to_owned()], ruleset)],
    );
    let revalidations = REVALIDATION_TRIGGERS.into_iter().flat_map(|trigger| {
        REVALIDATION_OUTCOMES.map(|outcome| {
            let count = agent.revalidations.get(&(trigger, outcome)).copied().unwrap_or(0);
            ([trigger.to_owned(), outcome.to_owned()], count)
        })
    });
    page.counters(
        "revalidations",
        None,
        "Revalidations, except by hand: offloaded flows sent through the filters again. routes: IPv6, not in main; link: another master (VRF, bridge, bond), name or MTU. nothing-new: no flow came in since; absent: no flowtable",
        ["trigger", "outcome"],
        revalidations,
    );
    let causes =
        CHANGING.map(|cause| ([cause.to_owned()], agent.rule_revalidations.get(cause).copied().unwrap_or(0)));
    page.counters(
        "rule_revalidations",
        None,
        "Revalidations by changing-rule that emptied the flowtable, once for each thing that these rules ask",
        ["cause"],
        causes,
    );
    let rules = HANDLED.map(|(class, handling)| {
        let count = agent.rules.get(&(class.name(), handling)).copied().unwrap_or(0);
        ([class.name().to_owned(), handling.to_owned()], count)
    });
    page.gauges(
        "rules_bypassed",
        None,
        "Other programs' rules that offloaded packets bypass. respected: their flows aren't offloaded; ignored: by --ignore-rule",
        ["class", "handling"],
        rules,
    );
}

fn flows(page: &mut Page, agent: &Agent, kernel: &Kernel) {
    page.counter(
        "flows_crossed",
        None,
        "Connections seen to cross the threshold: flows_offloaded and flows_not_offloaded together. Needs eBPF and a threshold",
        agent.crossed,
    );
    page.counter(
        "flows_offloaded",
        None,
        "Connections that crossed the threshold and were offloaded, each once",
        agent.offloaded,
    );
    let causes = WhyNot::of_flows().map(WhyNot::name).chain([BELOW_THRESHOLD, ENDED]);
    let causes =
        causes.map(|cause| ([cause.to_owned()], agent.not_offloaded.get(cause).copied().unwrap_or(0)));
    page.counters(
        "flows_not_offloaded",
        None,
        "Connections that crossed the threshold and were not offloaded (fastpath-agent flows --group=could-be-fast lists them); offloaded later, they count in both. below-threshold: by conntrack's count",
        ["cause"],
        causes,
    );
    page.counter(
        "flows_assisted",
        None,
        "Connections older than the ruleset that were offloaded with the agent's help",
        agent.assisted,
    );
    if let Some(offloads) = kernel.rule_offloads {
        page.counter(
            "rule_offloads",
            None,
            "Flows that the agent's rules have offloaded, by the kernel's count",
            offloads,
        );
    }
    if let Some(untraced) = kernel.untraced {
        let help = "Packets of flows that are offloaded later, since the set of traces (65,536 per direction in two seconds) had no room for them; harmless unless it grows for long";
        page.counter("untraced_packets", None, help, untraced);
    }
    let Some(sums) = &kernel.flows else { return };
    let states =
        COUNTED_STATES.map(|state| ([state.to_owned()], sums.states.get(state).copied().unwrap_or(0)));
    page.gauges("flows", None, "Connections in conntrack now", ["state"], states);
    let groups =
        Group::iter().map(|group| ([group.name().to_owned()], sums.groups.get(&group).copied().unwrap_or(0)));
    page.gauges(
        "flow_groups",
        None,
        "Connections that are fast, could be fast (fastpath-agent why --top says how), and never will be",
        ["group"],
        groups,
    );
    let stalled = WhyNot::of_flows().map(WhyNot::name);
    let stalled = stalled.map(|cause| ([cause.to_owned()], sums.stalled.get(cause).copied().unwrap_or(0)));
    page.gauges(
        "flows_stalled",
        None,
        "Connections above the threshold that are not offloaded, or never will be. Intended: local, protocol, excluded, revoked, every-packet, and no-rule in mode watch",
        ["cause"],
        stalled,
    );
    page.gauges(
        "flows_left_out",
        None,
        "Connections kept on the normal path by another program's rule that wants every packet, by the rule's family, table and chain (the 20 with the most flows, and others; not rules that ask for interfaces or labels); --ignore-rule lets them be fast",
        ["rule"],
        left_out(sums),
    );
    page.gauge(
        "flows_slow",
        None,
        "Offloaded connections whose packets are still on the normal path; fastpath-agent flows --state=slow lists them, why says why",
        sums.slow,
    );
}

/// The rules with the most flows; the rest together.
fn left_out(sums: &FlowSums) -> Vec<([String; 1], u64)> {
    let mut rules: Vec<_> = sums.left_out.iter().map(|(rule, flows)| ([rule.clone()], *flows)).collect();
    rules.sort_by_key(|(_, flows)| std::cmp::Reverse(*flows));
    let rest: u64 = rules.iter().skip(MOST_RULES).map(|(_, flows)| flows).sum();
    rules.truncate(MOST_RULES);
    rules.push((["others".to_owned()], rest));
    rules
}

fn interfaces(page: &mut Page, agent: &Agent, kernel: &Kernel) {
    page.gauge("interfaces_managed", None, "Interfaces in the flowtable", agent.managed as u64);
    page.gauge(
        "interfaces_watched",
        None,
        "Interfaces with an eBPF program, not those above them",
        agent.watched as u64,
    );
    let left_out = Unmanaged::names()
        .map(|reason| ([reason.to_owned()], agent.left_out.get(reason).copied().unwrap_or(0)));
    page.gauges(
        "interfaces_left_out",
        None,
        "Interfaces that are not in the flowtable; fastpath-agent status names them. refused: by the kernel; port: its bridge is in",
        ["reason"],
        left_out,
    );
    type Part = fn(&Passed) -> u64;
    let families: [(&str, Option<Unit>, &str, Part); 4] = [
        (
            "interface_receive",
            packets(),
            "TCP and UDP packets that came in at the interface; a GRO packet is one",
            |p| p.all.packets,
        ),
        ("interface_receive", Some(Unit::Bytes), "Bytes of these packets, from the IP header on", |p| {
            p.all.bytes
        }),
        (
            "interface_fast_path",
            packets(),
            "Packets that came in at the interface and took the fast path",
            |p| p.fast.packets,
        ),
        ("interface_fast_path", Some(Unit::Bytes), "Bytes of these packets", |p| p.fast.bytes),
    ];
    for (name, unit, help, part) in families {
        let rows = kernel.interfaces.iter().map(|(name, passed)| ([name.clone()], part(passed)));
        page.counters(name, unit, help, ["interface"], rows);
    }
    page.counter(
        "unmeasured",
        packets(),
        "Packets of offloaded flows whose path is unknown (meter missing or full); not counted as fast",
        kernel.unmeasured,
    );
}

fn prospect(page: &mut Page, prospect: &Prospect) {
    let chosen = prospect.thresholds.iter().map(|outlook| outlook.worth);
    let chosen = chosen.filter(|worth| LANDMARKS.contains(&worth.threshold));
    page.gauges(
        "prospect_fast_percent",
        None,
        "Percent of this node's packets that are fast, or would be, at a threshold (fastpath-agent doctor --advise): of flows that have ended or are longer than any threshold, without those that end here; if it is low at all of them, acceleration gains nothing here",
        ["threshold"],
        chosen.map(|worth| ([worth.threshold.to_string()], worth.fast_percent)),
    );
    page.gauge(
        "prospect_flows",
        None,
        "Directions of flows that the prospect rests on; with fewer than 2000 wait before you go by it. This and prospect_fast_percent are absent until there is one",
        prospect.directions,
    );
}

fn maps(page: &mut Page, maps: &Maps) {
    let stats = &maps.stats;
    let tallies: [(&str, Tally); 7] = [
        ("counted", stats.counted),
        ("not-ip", stats.not_ip),
        ("malformed", stats.malformed),
        ("later-fragment", stats.later_fragment),
        ("other-protocol", stats.other_protocol),
        ("too-many-headers", stats.too_many_headers),
        ("no-room", stats.no_room),
    ];
    let rows = |part: fn(Tally) -> u64| tallies.map(|(class, tally)| ([class.to_owned()], part(tally)));
    let help = "Packets seen on all watched interfaces, by how they were counted";
    page.counters("ingress", packets(), help, ["class"], rows(|t| t.packets));
    page.counters(
        "ingress",
        Some(Unit::Bytes),
        "Bytes of these packets: counted from the IP header on, others with the link-layer header",
        ["class"],
        rows(|t| t.bytes),
    );
    page.gauge("flow_map_entries", None, "Directions of flows in the map", maps.entries.into());
    page.gauge(
        "flow_map_capacity",
        None,
        "Directions of flows that the map has room for (--max-flows)",
        maps.capacity.into(),
    );
    page.counter("flow_map_entered", None, "Directions of flows entered into the map", stats.flows_entered);
    page.counter("flow_map_evicted", None, "Directions of flows evicted or deleted from the map; if it grows while flow_map_entries is near its capacity, raise --max-flows", maps.left);
    page.counter(
        "forwarded_packets",
        None,
        "Packets that eBPF forwarded ahead of the flowtable (--forward=peer), among the counted; conntrack hasn't counted them",
        stats.forwarded,
    );
    page.counter("signals_sent", None, "Signals of directions that crossed the threshold; of those offloaded already only while a reader follows", stats.events_sent);
    page.counter(
        "signals_lost",
        None,
        "Signals that did not fit the ring and were found later; if it grows, the agent lacks processor time",
        stats.events_lost,
    );
}

fn export(page: &mut Page, exported: &Exported) {
    page.counter("export_records", None, "Flow records sent to the collector", exported.records);
    page.counter(
        "export_lost_records",
        None,
        "Flow records that did not fit the queue, or that the collector's host refused; see whether the collector runs",
        exported.lost,
    );
    page.gauge(
        "export_up",
        None,
        "1 if the collector can be reached; with UDP, if it doesn't refuse",
        u64::from(exported.up),
    );
}

fn process(page: &mut Page, metrics: &Metrics) {
    let parts = PARTS.map(|part| ([part.to_owned()], u64::from(metrics.kernel.failed.contains(&part))));
    page.gauges("scrape_failed", None, "1 if this part of the page could not be read", ["part"], parts);
    page.seconds(
        "fastpath_scrape_duration",
        "Time that reading the kernel took for this page",
        metrics.kernel.seconds,
    );
    page.seconds("process_start_time", "When the agent started, since 1970", metrics.agent.started_unix);
    if let Some(usage) = metrics.kernel.usage {
        page.seconds_counter("process_cpu", "Processor time that the agent has used", usage.cpu_seconds);
        page.bytes("process_resident_memory", "Resident memory of the agent", usage.resident_bytes);
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
