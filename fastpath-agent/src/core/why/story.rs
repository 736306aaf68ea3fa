//! The story of a flow in steps, in the order in which its packets meet them.

use fastpath_common::FlowCounters;
use serde::Serialize;

use super::{
    Accelerated,
    facts::{Direction, FlowFacts, Route, Way},
    obstacles::Obstacle,
};

use crate::core::{
    flow::connection::{Entry, TcpState},
    why_not::Reason,
};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it is about.
    pub step: StepName,
    /// Whether it is fine.
    pub ok: StepMark,
    /// In one line.
    pub text: String,
    /// Names of the reasons that were found here.
    pub reasons: Vec<&'static str>,
}

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepName {
    /// The tuples.
    Flow,
    /// Packets of the original direction where they come in.
    Original,
    /// Packets of the reply direction where they come in.
    Reply,
    /// The connection.
    Conntrack,
    /// Where either direction leaves.
    Route,
    /// What our rule sees.
    Rule,
    /// What the flowtable does.
    Flowtable,
}

impl StepName {
    /// Its name, as JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Original => "original",
            Self::Reply => "reply",
            Self::Conntrack => "conntrack",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Flowtable => "flowtable",
        }
    }
}

/// Whether a step is fine. In JSON true, false or null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Option<bool>")]
pub enum StepMark {
    /// Nothing here keeps the flow from being accelerated.
    Ok,
    /// Something does.
    NotOk,
    /// It couldn't be checked.
    Unknown,
}

impl From<StepMark> for Option<bool> {
    fn from(mark: StepMark) -> Self {
        match mark {
            StepMark::Ok => Some(true),
            StepMark::NotOk => Some(false),
            StepMark::Unknown => None,
        }
    }
}

/// The step at which a reason shows.
fn place(reason: &Reason) -> StepName {
    match reason {
        Reason::Protocol => StepName::Flow,
        Reason::Redirected { .. } | Reason::IpOptions | Reason::Fragments => StepName::Original,
        Reason::Untracked { .. }
        | Reason::UnknownToConntrack
        | Reason::Helper { .. }
        | Reason::SequenceAdjusted
        | Reason::Closing
        | Reason::OneWay
        | Reason::NotEstablished
        | Reason::NotCounted { .. } => StepName::Conntrack,
        Reason::Local
        | Reason::Bridged { .. }
        | Reason::NoRoute { .. }
        | Reason::Mtu { .. }
        | Reason::Ipvs
        | Reason::Asymmetric { .. }
        | Reason::RouteRule { .. }
        | Reason::NoWayBack { .. }
        | Reason::Ipsec { .. } => StepName::Route,
        Reason::NoRule
        | Reason::Interface { .. }
        | Reason::NotWatched
        | Reason::Excluded { .. }
        | Reason::Revoked
        | Reason::EveryPacket { .. }
        | Reason::BelowThreshold { .. }
        | Reason::OneDirection { .. }
        | Reason::Blocked => StepName::Rule,
        Reason::DeadNeighbour { .. }
        | Reason::Lost { .. }
        | Reason::OtherFlowtable { .. }
        | Reason::Idle
        | Reason::Unknown => StepName::Flowtable,
    }
}

/// Tells it.
pub(super) fn tell(facts: &FlowFacts, obstacles: &[Obstacle]) -> Vec<Step> {
    let told = [
        Some(flow(facts)),
        Some(ingress(facts, StepName::Original, &facts.directions[0])),
        facts.entry.as_ref().map(|_| ingress(facts, StepName::Reply, &facts.directions[1])),
        Some(conntrack(facts)),
        Some(route(facts)),
        Some(rule(facts)),
        facts.entry.as_ref().map(|_| flowtable(facts)),
    ];
    let mut steps: Vec<Step> = told.into_iter().flatten().collect();
    for obstacle in obstacles {
        let Some(step) = steps.iter_mut().find(|step| step.step == place(&obstacle.reason)) else { continue };
        step.ok = StepMark::NotOk;
        step.reasons.push(obstacle.reason.name());
        let probably = if obstacle.certain { "" } else { "probably " };
        step.text += &format!("; {probably}{}", obstacle.reason.text(facts));
    }
    steps
}

fn step(step: StepName, ok: StepMark, text: String) -> Step {
    Step { step, ok, text, reasons: Vec::new() }
}

fn flow(facts: &FlowFacts) -> Step {
    let text = match &facts.entry {
        None => facts.asked.to_string(),
        Some(Entry { original, reply, .. }) => {
            let nat = match (
                (original.source, original.source_port) != (reply.destination, reply.destination_port),
                (original.destination, original.destination_port) != (reply.source, reply.source_port),
            ) {
                (false, false) => "no NAT",
                (true, false) => "source NAT",
                (false, true) => "destination NAT",
                (true, true) => "source and destination NAT",
            };
            match nat {
                "no NAT" => format!("{original}, no NAT"),
                nat => format!(
                    "{original}, leaves as {}, {nat}",
                    without_protocol(&reply.reversed().to_string())
                ),
            }
        }
    };
    step(StepName::Flow, StepMark::Ok, text)
}

fn without_protocol(tuple: &str) -> &str {
    tuple.split_once(' ').map_or(tuple, |(_, ends)| ends)
}

fn ingress(facts: &FlowFacts, name: StepName, direction: &Direction) -> Step {
    if !facts.counting {
        return step(
            name,
            StepMark::Unknown,
            "not counted: the agent's eBPF programs aren't attached".to_owned(),
        );
    }
    let Some(counted) = direction.counted else {
        return step(name, StepMark::Unknown, "no packet was counted at ingress".to_owned());
    };
    let mut text = format!(
        "comes in on {}: {}, {}, {} while watching",
        direction.counted_on().map_or_else(String::new, |index| facts.name(index)),
        packets(counted.packets),
        bytes(counted.bytes),
        direction.moved.packets,
    );
    if direction.moved.packets == 0 {
        let idle = facts.now_ns.saturating_sub(counted.last_seen_ns) / 1_000_000;
        text += &format!(", the last {} ago", duration(idle));
    }
    for (flag, words) in [
        (FlowCounters::IPV4_OPTIONS, ", some with IPv4 options"),
        (FlowCounters::FIRST_FRAGMENT, ", some in fragments"),
    ] {
        if counted.flags & flag != 0 {
            text += words;
        }
    }
    step(name, StepMark::Ok, text)
}

fn conntrack(facts: &FlowFacts) -> Step {
    let Some(entry) = &facts.entry else {
        return step(StepName::Conntrack, StepMark::NotOk, "has no such connection".to_owned());
    };
    let state = match (entry.tcp_state, entry.status.seen_reply()) {
        (Some(TcpState::Opening), _) => "opening",
        (Some(TcpState::Closing), _) => "closing",
        (_, true) => "established",
        (_, false) => "unanswered",
    };
    let counts = match entry.counters {
        Some([original, reply]) => format!("{} and {} packets", original.packets, reply.packets),
        None => "not counted".to_owned(),
    };
    let zone = if entry.zone == 0 { String::new() } else { format!(", zone {}", entry.zone) };
    step(StepName::Conntrack, StepMark::Ok, format!("{state}, {counts}{zone}"))
}

fn route(facts: &FlowFacts) -> Step {
    if facts.is_local() {
        return step(StepName::Route, StepMark::Ok, "nothing is forwarded".to_owned());
    }
    let way = |direction: &Direction| match direction.route {
        Route::Forward { output, gateway, mtu } => {
            let via = gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
            format!("{}{via} (MTU {mtu})", facts.name(output))
        }
        Route::Local => "this node".to_owned(),
        Route::Nowhere(errno) => format!("nowhere ({})", std::io::Error::from_raw_os_error(errno)),
        Route::NotAsked => "?".to_owned(),
    };
    let [original, reply] = &facts.directions;
    let known = !matches!((original.route, reply.route), (Route::NotAsked, Route::NotAsked));
    let text = format!("original direction to {}, reply direction to {}", way(original), way(reply));
    step(StepName::Route, if known { StepMark::Ok } else { StepMark::Unknown }, text)
}

fn rule(facts: &FlowFacts) -> Step {
    let Some(threshold) = facts.ruleset.threshold else {
        let text = match facts.ruleset.owner {
            None => "the agent's table isn't installed",
            Some(_) => "the table kindnet-fastpath has no rule of the agent",
        };
        return step(StepName::Rule, StepMark::NotOk, text.to_owned());
    };
    let text = format!(
        "offloads established flows of more than {threshold} packets; this one has {}",
        facts.packets()
    );
    let below = facts.packets() <= u64::from(threshold);
    // What is in a flowtable needs no rule any more.
    step(StepName::Rule, if below && !facts.offloaded() { StepMark::NotOk } else { StepMark::Ok }, text)
}

fn flowtable(facts: &FlowFacts) -> Step {
    if !facts.offloaded() {
        return step(StepName::Flowtable, StepMark::NotOk, "doesn't have it".to_owned());
    }
    let hardware = facts.entry.as_ref().is_some_and(|entry| entry.status.hw_offloaded());
    let has = if hardware { "has it, in hardware" } else { "has it" };
    let (mark, text) = match (facts.moved(), facts.slow_moved()) {
        _ if !facts.ruleset.meter => (StepMark::Ok, "no meter tells which path its packets take".to_owned()),
        (0, 0) => (StepMark::Ok, "no packets while watching".to_owned()),
        (all, 0) => (StepMark::Ok, format!("{} while watching, all on the fast path", packets(all))),
        (all, slow) => {
            (StepMark::NotOk, format!("{} while watching, {slow} of them on the normal path", packets(all)))
        }
    };
    let so_far = match facts.slow {
        Some(slow) => format!(
            "; since {} the normal path had {}, the last {} ago",
            "its last quiet minute",
            packets(slow.counter.packets),
            duration(slow.idle_ms)
        ),
        None => String::new(),
    };
    step(StepName::Flowtable, mark, format!("{has}: {text}{so_far}"))
}

/// The verdict on a flow whose packets take the fast path.
pub(super) fn accelerated(facts: &FlowFacts) -> String {
    let mut text = match (facts.way(), facts.measured()) {
        (Some(Way::Mixed), _) => {
            format!(
                "accelerated in part: {} of {} took the normal path",
                facts.slow_moved(),
                packets(facts.moved())
            )
        }
        (_, true) => {
            let slow = match facts.slow_moved() {
                0 => "none".to_owned(),
                slow => slow.to_string(),
            };
            let left = match facts.left() {
                Some([original, reply]) => format!(", {} left again", original + reply),
                None => String::new(),
            };
            format!("accelerated: {} while watching{left}, {slow} on the normal path", packets(facts.moved()))
        }
        (_, false) if facts.moved() == 0 => {
            format!(
                "in the flowtable, and quiet: no packets while watching; it leaves after {} s without any",
                facts.flow_timeout_ms / 1000
            )
        }
        (_, false) => {
            "offloaded; which path its packets take can't be seen without the agent's meter".to_owned()
        }
    };
    if facts.ruleset.meter && facts.ruleset.threshold.is_some() {
        let since = match (facts.slow, facts.age_ms()) {
            (Some(slow), _) => format!("for {}", duration(slow.idle_ms)),
            (None, Some(age @ ..60_000)) => format!("since its first packets {} ago", duration(age)),
            (None, _) => "for more than a minute".to_owned(),
        };
        text += &format!("; {since}, {} have bypassed it", packets(facts.bypassed()));
    }
    match facts.forwarded() {
        0 => text,
        forwarded => {
            format!(
                "{text}, {} of them forwarded in eBPF (conntrack hasn't counted these)",
                packets(forwarded)
            )
        }
    }
}

/// The verdict on a flow that a reason hinders.
pub(super) fn hindered(accelerated: Accelerated, obstacle: &Obstacle, facts: &FlowFacts) -> String {
    let probably = if obstacle.certain { "" } else { "probably " };
    let verdict = match accelerated {
        Accelerated::Partly if facts.slow_moved() == 0 => "accelerated in one direction only".to_owned(),
        Accelerated::Partly => {
            format!(
                "accelerated in part ({} of {} took the normal path)",
                facts.slow_moved(),
                packets(facts.moved())
            )
        }
        _ => "not accelerated".to_owned(),
    };
    format!("{verdict}: {probably}{}", obstacle.reason.text(facts))
}

/// The verdict on an unknown flow.
pub(super) fn not_found(facts: &FlowFacts, first: Option<&Obstacle>) -> String {
    let who = if facts.counting {
        "neither conntrack nor the agent's counters know it"
    } else {
        "conntrack doesn't know it"
    };
    match first {
        Some(obstacle) => format!("not found: {who}; maybe {}", obstacle.reason.text(facts)),
        None => format!("not found: {who}"),
    }
}

/// What may help then.
pub(super) fn not_found_remedy(facts: &FlowFacts) -> String {
    if facts.counting {
        "check addresses and ports (`fastpath-agent flows --address=… --port=…`), and that it passes this node".to_owned()
    } else {
        "check addresses and ports; with --ebpf=tc the agent also sees flows that conntrack doesn't"
            .to_owned()
    }
}

fn packets(count: u64) -> String {
    format!("{count} packet{}", if count == 1 { "" } else { "s" })
}

fn bytes(count: u64) -> String {
    match count {
        ..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} kB", count / 1000),
        10_000_000..10_000_000_000 => format!("{} MB", count / 1_000_000),
        _ => format!("{} GB", count / 1_000_000_000),
    }
}

/// A duration in a few characters.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        ..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}
