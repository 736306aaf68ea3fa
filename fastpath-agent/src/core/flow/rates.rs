//! From counts to rates: what one reading of all flows says beside the one before it. Holds no flow but those that are
//! to be shown; of the others, a few bytes each, up to a limit.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
};

use fastpath_common::{FlowCounters, Tally};

use strum::EnumCount;

use super::{Flow, Node, State, best::Best, connection::Tuple, group::Group, path::Path, search::Search};

use crate::core::model::IfIndex;

/// Directions of flows whose counts are remembered from one reading to the next: more than three times the default
/// size of the flows map, in at most 9 MB (32 bytes and a control byte for each of 262,144 slots, 7/8 of them used).
pub const MAX_REMEMBERED: usize = 262_144 / 8 * 7;

/// The clock of the counters stops within a tick of the kernel (10 ms at most) and packets may wait.
const CLOCK_LAG_NS: u64 = 100_000_000;

/// Packets and bits in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Packets (skbs) per second.
    pub packets: f64,
    /// Bits per second, from the IP header on.
    pub bits: f64,
}

impl Rate {
    fn new(tally: Tally, interval_ns: u64) -> Self {
        let per_second = |count: u64| count as f64 * 1e9 / interval_ns as f64;
        Self { packets: per_second(tally.packets), bits: 8.0 * per_second(tally.bytes) }
    }
}

/// What was counted up to the last reading.
pub struct Rates {
    /// By hash of the direction's tuple. Where two have the same, rates of one of them are wrong.
    remembered: HashMap<u64, Count>,
    hasher: RandomState,
    limit: usize,
    /// Time of the last reading, `CLOCK_MONOTONIC` in ns.
    read_at_ns: Option<u64>,
    /// Changes with every reading, so that what a reading hasn't seen is told apart.
    parity: bool,
    /// There were more than fit: what is idle is not remembered, so that what is busy is.
    crowded: bool,
    /// Packets that were metered on the forward path, by conntrack id. The meter has room for 65,536 flows.
    metered: HashMap<u32, u64>,
}

struct Count {
    packets: u64,
    bytes: u64,
    /// [`Rates::parity`] when it was seen last.
    parity: bool,
    /// Had no packets since the reading before that.
    idle: bool,
    /// Its flow was offloaded then.
    offloaded: bool,
}

impl Rates {
    /// Remembers `limit` directions of flows at most.
    pub fn new(limit: usize) -> Self {
        Self {
            remembered: HashMap::new(),
            hasher: RandomState::new(),
            limit,
            read_at_ns: None,
            parity: false,
            crowded: false,
            metered: HashMap::new(),
        }
    }

    /// The same, as if there had been a reading without any flow at `at_ns`.
    pub(super) fn since(limit: usize, at_ns: u64) -> Self {
        Self { read_at_ns: Some(at_ns), ..Self::new(limit) }
    }

    /// What tuples are hashed with.
    pub(super) fn hasher(&self) -> RandomState {
        self.hasher.clone()
    }

    /// Begins a reading at `now_ns`.
    pub fn begin(&mut self, now_ns: u64) -> Reading<'_> {
        self.parity = !self.parity;
        let since_ns = self.read_at_ns.filter(|at| *at < now_ns);
        Reading { rates: self, since_ns, now_ns, turned_away: 0, metered: HashMap::new() }
    }
}

/// A reading in progress. One that isn't ended leaves [`Rates`] useless.
pub struct Reading<'r> {
    rates: &'r mut Rates,
    since_ns: Option<u64>,
    now_ns: u64,
    turned_away: u64,
    metered: HashMap<u32, u64>,
}

impl Reading<'_> {
    /// What a direction is remembered by.
    pub(super) fn key(&self, tuple: &Tuple) -> u64 {
        self.rates.hasher.hash_one(tuple)
    }

    /// Whether the flow of a direction that isn't measured yet was offloaded at the last reading.
    pub(super) fn was_offloaded(&self, key: u64) -> bool {
        self.rates.remembered.get(&key).is_some_and(|count| count.offloaded)
    }

    /// What was counted of one direction since the last reading; `None` if that can't be told. `offloaded`: its flow is.
    pub(super) fn measure(
        &mut self,
        tuple: &Tuple,
        counters: &FlowCounters,
        offloaded: bool,
    ) -> Option<Tally> {
        let whole = Tally { packets: counters.packets, bytes: counters.bytes };
        let idle = self.since_ns.is_some_and(|at| counters.last_seen_ns + CLOCK_LAG_NS < at);
        let Rates { remembered, hasher, limit, parity, crowded, .. } = &mut *self.rates;
        let count = Count { packets: whole.packets, bytes: whole.bytes, parity: *parity, idle, offloaded };
        let key = hasher.hash_one(tuple);
        if let Some(before) = remembered.get_mut(&key) {
            let packets = whole.packets.checked_sub(before.packets);
            let bytes = whole.bytes.checked_sub(before.bytes);
            *before = count;
            // Less than before: it was evicted and started again at 0.
            let since = packets.zip(bytes).map_or(whole, |(packets, bytes)| Tally { packets, bytes });
            return self.since_ns.map(|_| since);
        }
        if remembered.len() < *limit && !(idle && *crowded) {
            remembered.insert(key, count);
        } else {
            self.turned_away += 1;
        }
        let begun_since = self.since_ns.is_some_and(|at| counters.first_seen_ns > at);
        match (begun_since, idle) {
            (true, _) => Some(whole),
            (false, true) => Some(Tally::default()),
            (false, false) => None,
        }
    }

    /// How much passed of both directions of a flow since the last reading; `None` if that can't be told.
    pub fn rate(&mut self, flow: &Flow) -> Option<Rate> {
        let interval_ns = self.now_ns - self.since_ns.unwrap_or(self.now_ns);
        let tuples = [Some(flow.original), flow.reply];
        let mut sum = Some(Tally::default());
        for (tuple, counters) in tuples.into_iter().zip(flow.seen) {
            let (Some(tuple), Some(counters)) = (tuple, counters) else { continue };
            let since = self.measure(&tuple, &counters, flow.offloaded());
            sum = sum.zip(since).map(|(sum, since)| Tally {
                packets: sum.packets + since.packets,
                bytes: sum.bytes + since.bytes,
            });
        }
        sum.filter(|_| interval_ns > 0 && flow.seen != [None; 2]).map(|sum| Rate::new(sum, interval_ns))
    }

    /// Of `since` packets of an offloaded flow since the last reading, those that bypassed the forward path; `None` if that
    /// can't be told. `id` is conntrack's.
    pub(super) fn bypassed(&mut self, id: u32, path: &Path, since: u64) -> Option<u64> {
        let (bypassed, metered) = (path.bypassed?, path.metered?);
        let before = self.rates.metered.get(&id).copied().unwrap_or(0);
        if metered > 0 {
            self.metered.insert(id, metered);
        }
        // Less than before: the meter had forgotten it.
        let slow = metered.checked_sub(before).unwrap_or(metered);
        // A flow that crossed the threshold meanwhile has had packets on the forward path that nothing metered.
        Some(since.saturating_sub(slow).min(bypassed))
    }

    /// Forgets what is gone; and what is idle, if others found no room.
    pub fn end(self) {
        let Rates { remembered, limit, parity, crowded, read_at_ns, metered, .. } = self.rates;
        *metered = self.metered;
        *crowded = remembered.len() as u64 + self.turned_away > *limit as u64;
        remembered.retain(|_, count| count.parity == *parity && !(count.idle && *crowded));
        *read_at_ns = Some(self.now_ns);
    }
}

/// By what flows are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Packets per second, most first
    Packets,
    /// Bits per second, most first
    Bits,
    /// Packets since the flow began, most first
    Total,
    /// When the first packet was seen, oldest first
    Age,
    /// State, offloaded first
    State,
}

impl Order {
    /// Order of two flows; of flows that are alike in what is asked, the one that had packets last comes first.
    pub fn compare(self, a: &Row, b: &Row) -> Ordering {
        let rate = |row: &Row, part: fn(Rate) -> f64| row.rate.map_or(-1.0, part);
        let by_rate = |part: fn(Rate) -> f64| rate(b, part).total_cmp(&rate(a, part));
        let begun = |row: &Row| row.flow.first_seen_ns().unwrap_or(u64::MAX);
        let order = match self {
            Self::Packets => by_rate(|r| r.packets),
            Self::Bits => by_rate(|r| r.bits),
            Self::Total => b.flow.packets().cmp(&a.flow.packets()),
            Self::Age => begun(a).cmp(&begun(b)),
            Self::State => a.flow.state.cmp(&b.flow.state).then_with(|| by_rate(|r| r.packets)),
        };
        let tuple = |row: &Row| {
            let t = row.flow.original;
            (t.source, t.source_port, t.destination, t.destination_port, t.protocol)
        };
        let recent = || b.flow.last_seen_ns().cmp(&a.flow.last_seen_ns());
        order.then_with(recent).then_with(|| tuple(a).cmp(&tuple(b)))
    }
}

/// What to keep of a reading.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which flows come first.
    pub order: Order,
    /// The last ones instead.
    pub reversed: bool,
    /// Which flows count as rows.
    pub search: Search,
    /// That many rows at most.
    pub rows: usize,
}

impl Wanted {
    /// Order of two rows.
    pub fn compare(&self, a: &Row, b: &Row) -> Ordering {
        let order = self.order.compare(a, b);
        if self.reversed { order.reverse() } else { order }
    }
}

/// A flow and how fast it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The flow.
    pub flow: Flow,
    /// Both directions together; `None` if it isn't counted, or isn't known from the last reading.
    pub rate: Option<Rate>,
}

/// What passed since the last reading, of all flows or of those that come in on one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Connections that conntrack has.
    pub flows: u64,
    /// Those that are fast, could be, and never will be.
    pub groups: [u64; Group::COUNT],
    /// Those among them that conntrack calls offloaded, to hardware or not.
    pub offloaded_flows: u64,
    /// Those among these whose packets are still on the normal path.
    pub slow_flows: u64,
    /// Those that could be offloaded, have had more packets than the threshold, and aren't.
    pub stalled_flows: u64,
    /// What was counted.
    pub all: Tally,
    /// Packets in `all` that bypassed the forward path.
    pub bypassed: f64,
    /// Packets in `all` of which that can't be told.
    pub unmeasured: u64,
}

impl Traffic {
    /// Share of the packets that bypassed the forward path, 0 to 1; `None` if there were no packets, or that can't be
    /// told.
    pub fn share(&self) -> Option<f64> {
        (self.all.packets > 0 && self.unmeasured == 0).then(|| self.bypassed / self.all.packets as f64)
    }

    fn count_flow(&mut self, flow: &Flow) {
        if flow.entry.is_some() {
            self.flows += 1;
            self.groups[flow.group() as usize] += 1;
            self.offloaded_flows += u64::from(flow.offloaded());
            self.slow_flows += u64::from(flow.slow());
            self.stalled_flows += u64::from(stalled(flow));
        }
    }

    /// `bypassed`: which share of them did; `None` if that can't be told.
    fn count_packets(&mut self, since: Tally, bypassed: Option<f64>) {
        self.all.packets += since.packets;
        self.all.bytes += since.bytes;
        match bypassed {
            Some(share) => self.bypassed += since.packets as f64 * share,
            None => self.unmeasured += since.packets,
        }
    }
}

/// What can never be offloaded, or was left out by choice, isn't stalled.
fn stalled(flow: &Flow) -> bool {
    matches!(&flow.state, State::Stalled(_))
}

/// A whole reading: the rows that are wanted, and sums over everything.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it began, `CLOCK_MONOTONIC` in ns.
    pub at_ns: u64,
    /// Time since the last reading; `None` if there is none, so that there are no rates.
    pub interval_ns: Option<u64>,
    /// In the order that was asked for.
    pub rows: Vec<Row>,
    /// Flows that are asked for, with those that had no room in `rows`.
    pub matched: u64,
    /// Over all flows, asked for or not.
    pub total: Traffic,
    /// The same by the interface that packets come in on.
    pub interfaces: BTreeMap<IfIndex, Traffic>,
    /// Directions of flows that can't be remembered for the next reading: there are too many.
    pub turned_away: u64,
}

impl Sample {
    /// A sum as a rate.
    pub fn rate(&self, tally: Tally) -> Option<Rate> {
        self.interval_ns.map(|interval| Rate::new(tally, interval))
    }
}

type ComesFirst<'a> = Box<dyn Fn(&Row, &Row) -> Ordering + 'a>;

/// Takes flows one after the other and keeps what is wanted of them.
pub struct Collector<'a> {
    reading: Reading<'a>,
    node: &'a Node,
    wanted: &'a Wanted,
    rows: Best<Row, ComesFirst<'a>>,
    sample: Sample,
}

impl<'a> Collector<'a> {
    /// Begins a reading at `node.now_ns`.
    pub fn begin(rates: &'a mut Rates, node: &'a Node, wanted: &'a Wanted) -> Self {
        let reading = rates.begin(node.now_ns);
        let sample = Sample {
            at_ns: node.now_ns,
            interval_ns: reading.since_ns.map(|since| node.now_ns - since),
            rows: Vec::new(),
            matched: 0,
            total: Traffic::default(),
            interfaces: BTreeMap::new(),
            turned_away: 0,
        };
        let rows = Best::new(wanted.rows, Box::new(|a: &Row, b: &Row| wanted.compare(a, b)) as Box<_>);
        Self { reading, node, wanted, rows, sample }
    }

    /// The next flow.
    pub fn add(&mut self, flow: Flow) {
        self.sample.total.count_flow(&flow);
        let tuples = [Some(flow.original), flow.reply];
        let mut directions = [None; 2];
        let (mut measured, mut counted_at) = (true, None);
        for ((tuple, counters), direction) in tuples.into_iter().zip(flow.seen).zip(&mut directions) {
            let (Some(tuple), Some(counters)) = (tuple, counters) else { continue };
            let index = IfIndex(counters.ifindex);
            let interface = self.sample.interfaces.entry(index).or_default();
            if counted_at.replace(index) != Some(index) {
                interface.count_flow(&flow);
            }
            let since = self.reading.measure(&tuple, &counters, flow.offloaded());
            measured &= since.is_some();
            *direction = since.map(|since| (index, since));
        }
        let counted = || directions.iter().flatten();
        let since = counted().fold(Tally::default(), |sum, (_, since)| Tally {
            packets: sum.packets + since.packets,
            bytes: sum.bytes + since.bytes,
        });
        // The meter doesn't tell directions apart.
        let bypassed = if flow.offloaded() {
            let id = flow.entry.as_ref().map_or(0, |entry| entry.id);
            self.reading.bypassed(id, &flow.path, since.packets)
        } else {
            Some(0)
        };
        let share = bypassed.map(|bypassed| bypassed as f64 / since.packets.max(1) as f64);
        for (index, since) in counted() {
            self.sample.interfaces.entry(*index).or_default().count_packets(*since, share);
        }
        self.sample.total.count_packets(since, share);
        if !self.wanted.search.matches(&flow, self.node) {
            return;
        }
        self.sample.matched += 1;
        let rate = self.sample.rate(since).filter(|_| measured && counted_at.is_some());
        self.rows.push(Row { flow, rate });
    }

    /// After the last flow. A reading that isn't ended leaves [`Rates`] useless.
    pub fn end(mut self) -> Sample {
        self.sample.rows = self.rows.into_sorted();
        self.sample.turned_away = self.reading.turned_away;
        self.reading.end();
        self.sample
    }
}

/// Sums of one reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// When it was, `CLOCK_MONOTONIC` in ns.
    pub at_ns: u64,
    /// Share of packets that bypassed the forward path, 0 to 1; `None` if there were none or that isn't known.
    pub share: Option<f64>,
    /// What was counted; `None` if that isn't known.
    pub rate: Option<Rate>,
}

/// The last readings' sums, never more than a fixed number.
#[derive(Debug)]
pub struct History {
    points: VecDeque<Point>,
    limit: usize,
}

impl History {
    /// Keeps `limit` points, at least one.
    pub fn new(limit: usize) -> Self {
        Self { points: VecDeque::new(), limit: limit.max(1) }
    }

    /// Adds the newest and drops the oldest if there are too many.
    pub fn push(&mut self, sample: &Sample) {
        if self.points.len() == self.limit {
            self.points.pop_front();
        }
        let rate = sample.rate(sample.total.all);
        let share = sample.total.share().filter(|_| rate.is_some());
        self.points.push_back(Point { at_ns: sample.at_ns, share, rate });
    }

    /// From the newest to the oldest.
    pub fn newest_first(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().rev()
    }
}

#[cfg(test)]
#[path = "rates_tests.rs"]
mod tests;
