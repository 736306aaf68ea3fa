//! A flow: what conntrack says of a connection joined with what was counted of its two directions, and what that makes it.

pub mod assist;
pub mod best;
pub mod column;
pub mod connection;
pub mod crossing;
pub mod expression;
pub mod filter;
pub mod group;
pub mod left_out;
pub mod one_way;
pub mod path;
pub mod rates;
pub mod record;
pub mod search;
pub mod sums;
pub mod trace;
pub mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use fastpath_common::FlowCounters;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use self::{
    connection::{Entry, TcpState, Tuple},
    left_out::LeftOut,
    path::{Metered, Path},
};
use crate::core::{
    model::{IfIndex, IfName},
    ruleset::exclude::Exclusions,
    why_not::{Cause, WhyNot},
};

/// TCP flags that end an offload (FIN, RST).
pub const TCP_CLOSING_FLAGS: u64 = 1 | 4;
/// A flow out of the flowtable without a packet for longer than this is idle. It left because it had none for as long as
/// the kernel waits (30 s), or when the flowtable was emptied.
const IDLE_NS: u64 = 1_000_000_000;
/// A flow younger than this may have crossed the threshold with the very packet that was counted last.
const JUST_CROSSED_NS: u64 = 1_000_000_000;

/// A flow with both its directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The connection; `None` if conntrack has none (any more) for what was counted.
    pub entry: Option<Entry>,
    /// The tuple of the original direction as packets of it come in, before NAT.
    pub original: Tuple,
    /// The same of the reply direction; unknown without an entry.
    pub reply: Option<Tuple>,
    /// What was counted at ingress, original and reply direction; `None` where nothing was seen.
    pub seen: [Option<FlowCounters>; 2],
    /// Its state.
    pub state: State,
    /// Which way its packets take, if it is offloaded.
    pub path: Path,
}

/// State of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "kebab-case", tag = "state", content = "cause")]
#[strum(serialize_all = "kebab-case")]
pub enum State {
    /// Handed to hardware.
    HwOffloaded,
    /// In the flowtable.
    Offloaded,
    /// Has just had more packets than the threshold.
    Crossed,
    /// Has had more packets than the threshold and still isn't offloaded.
    Stalled(Cause),
    /// Is never offloaded, however many packets it has.
    Never(Cause),
    /// The same without anything that keeps it out, and without packets: the next one brings it back.
    Idle,
    /// Hasn't had more packets than the threshold.
    BelowThreshold,
    /// A FIN or RST was seen.
    Closing,
    /// Was counted, but conntrack doesn't have it any more, or never had it.
    Gone,
}

/// What a flow is judged by.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Packets after which the rule offloads; `None` if there is no such rule.
    pub threshold: Option<u32>,
    /// The one before.
    pub earlier: Earlier,
    /// Whether a rule meters packets that could be offloaded but are still on the normal path.
    pub metered: bool,
    /// Flows that are never offloaded.
    pub exclusions: Arc<Exclusions>,
    /// Rules of other programs that want every packet of their flows.
    pub left_out: Arc<LeftOut>,
    /// Interfaces in the flowtable.
    pub managed: BTreeSet<IfIndex>,
    /// Interfaces that the operator has left out of it.
    pub unselected: BTreeSet<IfIndex>,
    /// Names of all interfaces.
    pub names: BTreeMap<IfIndex, IfName>,
    /// Addresses of this node.
    pub addresses: BTreeSet<IpAddr>,
    /// `CLOCK_MONOTONIC` now, in ns.
    pub now_ns: u64,
    /// Resolution of the times of flows, in ns: the kernel's tick.
    pub tick_ns: u64,
}

/// An earlier threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    /// The greatest that flows may have crossed which began before; 0 if there was none.
    pub highest: u32,
    /// Until when it was in force, `CLOCK_MONOTONIC` in ns.
    pub until_ns: u64,
}

impl Earlier {
    /// Packets that a flow which began at `began_ns` may have had on the forward path until it was offloaded, the one that
    /// offloaded it among them. `threshold` is the one in force.
    pub fn young_packets(&self, threshold: u32, began_ns: Option<u64>) -> u64 {
        let is_older = began_ns.is_some_and(|began| began < self.until_ns);
        u64::from(if is_older { threshold.max(self.highest) } else { threshold }) + 1
    }
}

impl Node {
    /// Packets that a flow may have had on the forward path until it was offloaded, the one that offloaded it among them; `None`
    /// if nothing offloads.
    pub(in crate::core) fn young_packets(&self, seen: &[Option<FlowCounters>; 2]) -> Option<u64> {
        Some(self.earlier.young_packets(self.threshold?, first_seen(seen)))
    }
}

impl Flow {
    /// Joins a connection with what was counted of its directions.
    pub fn join(entry: Entry, seen: [Option<FlowCounters>; 2], node: &Node) -> Self {
        let just_crossed =
            first_seen(&seen).is_some_and(|first| node.now_ns.saturating_sub(first) < JUST_CROSSED_NS);
        Self::judged(entry, seen, node, just_crossed)
    }

    /// The same of a flow that has had its time since it crossed the threshold: it isn't called crossed any more.
    pub fn settled(entry: Entry, seen: [Option<FlowCounters>; 2], node: &Node) -> Self {
        Self::judged(entry, seen, node, false)
    }

    fn judged(entry: Entry, seen: [Option<FlowCounters>; 2], node: &Node, just_crossed: bool) -> Self {
        let state = judge(&entry, &seen, node, just_crossed);
        let (original, reply, path) = (entry.original, Some(entry.reply), Path::default());
        Self { original, reply, entry: Some(entry), seen, state, path }
    }

    /// What was counted and conntrack has no connection for: it has ended, unless packets come all the same. `tuple` is of the
    /// direction that was seen first.
    pub fn unknown(tuple: Tuple, seen: [Option<FlowCounters>; 2], node: &Node) -> Self {
        let reply = seen[1].map(|_| tuple.reversed());
        let ends = seen.iter().flatten().any(|counted| counted.flags & TCP_CLOSING_FLAGS != 0);
        let state =
            if ends || is_idle(&seen, node) { State::Gone } else { State::not(WhyNot::UnknownToConntrack) };
        Self { state, ..Self::ended(tuple, reply, seen) }
    }

    /// A direction that was counted, and has ended.
    #[cfg(test)]
    pub(crate) fn gone(tuple: Tuple, seen: FlowCounters) -> Self {
        Self::ended(tuple, None, [Some(seen), None])
    }

    /// A connection that conntrack has no more.
    pub fn ended(original: Tuple, reply: Option<Tuple>, seen: [Option<FlowCounters>; 2]) -> Self {
        Self { entry: None, original, reply, seen, state: State::Gone, path: Path::default() }
    }

    /// The same with what was metered of it on the forward path, which must have been read after the rest.
    pub fn measured(mut self, metered: &Metered, node: &Node) -> Self {
        if self.offloaded() {
            self.path = Path::measure(&self.seen, metered, node);
        }
        self
    }

    /// What keeps it from being offloaded besides that conntrack doesn't count its packets; `None` if conntrack does.
    pub fn uncounted(&self, node: &Node) -> Option<Cause> {
        let entry = self.entry.as_ref().filter(|entry| entry.counters.is_none())?;
        // An interface that was left out comes first, and the next packet may take another one.
        let keeps_out = match self.state.why_not()? {
            WhyNot::NotCounted => true,
            WhyNot::Excluded => node.exclusions.of(entry).is_none(),
            _ => false,
        };
        let counted = Entry { counters: Some(Default::default()), ..entry.clone() };
        keeps_out.then(|| stalled(&counted, &self.seen, node))
    }

    /// Whether conntrack calls it offloaded, to hardware or not.
    pub fn offloaded(&self) -> bool {
        matches!(self.state, State::Offloaded | State::HwOffloaded)
    }

    /// Whether it was seen to go into the flowtable, at some time.
    pub fn went_over(&self) -> bool {
        self.seen.iter().flatten().any(|counted| counted.flags & FlowCounters::WENT_OVER != 0)
    }

    /// Whether it is offloaded, but its packets are still on the normal path.
    pub fn slow(&self) -> bool {
        self.path.accelerated == Some(false)
    }

    /// What is to be said of an offloaded flow whose packets eBPF has forwarded; nothing of others.
    pub fn forwarded(&self) -> Option<String> {
        let forwarded = self.path.forwarded;
        (self.offloaded() && forwarded > 0).then(|| format!("{forwarded} packets forwarded in eBPF"))
    }

    /// Packets of both directions as counted at ingress, offloaded or not.
    pub fn packets(&self) -> u64 {
        self.sum(|c| c.packets)
    }

    /// Bytes of both directions from the IP header on, likewise.
    pub fn bytes(&self) -> u64 {
        self.sum(|c| c.bytes)
    }

    /// When a packet was last seen, `CLOCK_MONOTONIC` in ns; `None` if none was.
    pub fn last_seen_ns(&self) -> Option<u64> {
        last_seen(&self.seen)
    }

    /// When the first packet was seen, likewise.
    pub fn first_seen_ns(&self) -> Option<u64> {
        first_seen(&self.seen)
    }

    /// Interfaces that its packets came in on, original direction first.
    pub fn interfaces(&self) -> impl Iterator<Item = IfIndex> {
        self.seen.iter().flatten().map(|c| IfIndex(c.ifindex))
    }

    /// What an [`Expression`](expression::Expression) is about.
    pub fn subject<'a>(&'a self, node: &'a Node) -> expression::Subject<'a> {
        let name = |seen: Option<FlowCounters>| Some(node.names.get(&IfIndex(seen?.ifindex))?.as_text());
        expression::Subject {
            state: &self.state,
            slow: self.slow(),
            original: &self.original,
            reply: self.reply.as_ref(),
            interfaces: self.seen.map(name),
        }
    }

    fn sum(&self, field: impl Fn(&FlowCounters) -> u64) -> u64 {
        self.seen.iter().flatten().map(field).sum()
    }
}

fn last_seen(seen: &[Option<FlowCounters>; 2]) -> Option<u64> {
    seen.iter().flatten().map(|c| c.last_seen_ns).max()
}

fn first_seen(seen: &[Option<FlowCounters>; 2]) -> Option<u64> {
    seen.iter().flatten().map(|c| c.first_seen_ns).min()
}

fn judge(entry: &Entry, seen: &[Option<FlowCounters>; 2], node: &Node, just_crossed: bool) -> State {
    if entry.status.hw_offloaded() {
        return State::HwOffloaded;
    }
    if entry.status.offloaded() {
        return State::Offloaded;
    }
    let flags = seen.iter().flatten().fold(0, |flags, c| flags | c.flags);
    if flags & TCP_CLOSING_FLAGS != 0 || entry.tcp_state == Some(TcpState::Closing) {
        return State::Closing;
    }
    if entry.original.flow_key().is_none() {
        return State::not(WhyNot::Protocol);
    }
    // A masqueraded connection's replies go to an address of this node, and yet it is forwarded.
    if node.addresses.contains(&entry.reply.source) || node.addresses.contains(&entry.original.source) {
        return State::not(WhyNot::Local);
    }
    let Some(threshold) = node.threshold else { return State::not(WhyNot::NoRule) };
    let counted = match entry.counters {
        Some([original, reply]) => original.packets + reply.packets,
        None => seen.iter().flatten().map(|c| c.packets).sum(),
    };
    if counted <= u64::from(threshold) {
        return State::BelowThreshold;
    }
    if just_crossed {
        return State::Crossed;
    }
    match stalled(entry, seen, node) {
        cause if cause.why == WhyNot::Unknown && is_idle(seen, node) => State::Idle,
        cause => State::because(cause),
    }
}

fn is_idle(seen: &[Option<FlowCounters>; 2], node: &Node) -> bool {
    last_seen(seen).is_some_and(|last| node.now_ns.saturating_sub(last) > IDLE_NS)
}

fn stalled(entry: &Entry, seen: &[Option<FlowCounters>; 2], node: &Node) -> Cause {
    if let Some(exclusion) = node.exclusions.of(entry) {
        return Cause::about(WhyNot::Excluded, exclusion);
    }
    if !entry.status.seen_reply() {
        return WhyNot::OneWay.into();
    }
    if entry.tcp_state == Some(TcpState::Opening) {
        return WhyNot::NotEstablished.into();
    }
    if let Some(helper) = &entry.helper {
        return Cause::about(WhyNot::Helper, helper.clone());
    }
    // Where its first packets came in. One that has gone since isn't what keeps others on the normal path.
    let interfaces = seen.iter().flatten().map(|counted| IfIndex(counted.ifindex));
    let stranger = interfaces
        .filter(|index| !node.managed.contains(index))
        .find_map(|index| Some((node.names.get(&index)?, node.unselected.contains(&index))));
    let by_choice = matches!(stranger, Some((_, true)));
    if entry.counters.is_none() && !by_choice {
        return WhyNot::NotCounted.into();
    }
    match stranger {
        Some((name, true)) => Cause::about(WhyNot::Excluded, format!("the choice of interfaces: {name}")),
        Some((name, false)) => Cause::about(WhyNot::Interface, name.to_string()),
        None if let Some(rule) = node.left_out.by(entry) => {
            Cause::about(WhyNot::EveryPacket, rule.to_owned())
        }
        None if seen[0].is_some() != seen[1].is_some() => WhyNot::NotWatched.into(),
        None => WhyNot::Unknown.into(),
    }
}

/// What flows are asked for by: all that [`State::name`] returns, and [`SLOW`].
pub const STATE_NAMES: [&str; 10] = [
    "offloaded",
    SLOW,
    "hw-offloaded",
    "crossed",
    "stalled",
    "never",
    "idle",
    "below-threshold",
    "closing",
    "gone",
];
/// Flows that are [`Flow::slow`].
pub const SLOW: &str = "slow";

impl State {
    /// Not offloaded for this cause: for now, or never.
    pub fn because(cause: Cause) -> Self {
        if cause.todo().is_some() { Self::Stalled(cause) } else { Self::Never(cause) }
    }

    /// The same for a reason that is about nothing further.
    pub fn not(why: WhyNot) -> Self {
        Self::because(why.into())
    }

    /// What keeps it from being offloaded, if anything does.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Stalled(cause) | Self::Never(cause) => Some(cause),
            _ => None,
        }
    }

    /// The same by its name.
    pub fn why_not(&self) -> Option<WhyNot> {
        self.cause().map(|cause| cause.why)
    }

    /// Its name, as filters and JSON have it.
    pub fn name(&self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
