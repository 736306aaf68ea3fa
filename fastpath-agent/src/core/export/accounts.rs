//! What was exported of each connection, and what isn't yet. Counts are conntrack's, which are exact for each connection and go on
//! while its packets bypass the normal path; the programs' serve for connections that conntrack doesn't count, and for the last packets
//! of one whose end conntrack didn't announce. Times are `CLOCK_MONOTONIC` in ns.

use std::collections::{HashMap, HashSet};

use fastpath_common::FlowCounters;
use serde::{Deserialize, Serialize};

use super::ipfix::{Reason, Record, Seen};
use crate::core::{
    flow::{
        Flow, Node, State, TCP_CLOSING_FLAGS,
        connection::{Entry, TcpState, Tuple},
        path::Metered,
    },
    model::Counter,
};

/// When records are due.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A flow that goes on has a record at least this often.
    pub active_ns: u64,
    /// A flow without packets for so long has one.
    pub inactive_ns: u64,
}

impl Timeouts {
    /// Time from one reading to the next.
    pub fn interval_ns(&self) -> u64 {
        self.active_ns.min(self.inactive_ns)
    }
}

/// The present, by both clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// `CLOCK_MONOTONIC` in ns.
    pub ns: u64,
    /// In ms since 1970, UTC.
    pub unix_ms: u64,
}

impl Now {
    fn unix_ms_of(self, ns: u64) -> u64 {
        self.unix_ms.saturating_sub(self.ns.saturating_sub(ns) / 1_000_000)
    }
}

/// What a connection is known by. Ids and tuples are used again, both together hardly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    id: u32,
    original: Tuple,
}

impl Key {
    fn of(entry: &Entry) -> Self {
        Self { id: entry.id, original: entry.original }
    }
}

/// What is known of a connection. Pairs: original and reply direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    reply: Tuple,
    /// What conntrack had at the last reading, if it counts.
    conntrack: Option<[Counter; 2]>,
    /// What the programs had then.
    seen: [Counter; 2],
    /// Counted and in no record yet.
    pending: [Counter; 2],
    /// Packets of both directions of `pending` that bypassed the normal path.
    fast: u64,
    /// What the meter had at the last reading.
    metered: u64,
    /// Where the next record begins.
    from_ns: [u64; 2],
    /// The last packets.
    last_ns: [u64; 2],
    /// The last record, or the beginning.
    recorded_ns: u64,
    interfaces: [u32; 2],
    tcp_flags: u8,
    closing: bool,
    /// Whether the last reading found it out of the flowtable for a reason.
    left: bool,
    /// The reading that saw it last.
    #[serde(skip)]
    reading: u64,
}

/// A connection whose end conntrack announced.
pub struct Ended<'a> {
    /// As it was at its end.
    pub entry: &'a Entry,
    /// When it began and ended, if conntrack keeps that, in ns since 1970.
    pub times_ns: Option<[u64; 2]>,
    /// What the programs have of it.
    pub seen: [Option<FlowCounters>; 2],
    /// What the meter has of it.
    pub metered: Metered,
}

/// All connections.
#[derive(Debug)]
pub struct Accounts {
    timeouts: Timeouts,
    known: HashMap<Key, Account>,
    /// Whether all that there is was there before, so that nothing of it is exported.
    fresh: bool,
    /// Whether the programs count.
    watched: bool,
    reading: u64,
    /// When the last reading began.
    read_ns: u64,
    /// Connections that the last reading missed, by their tuples, until it is clear whether their end was announced.
    missing: HashMap<Tuple, (Key, usize)>,
    /// What the programs have of these.
    last_seen: HashMap<Key, [Option<FlowCounters>; 2]>,
    /// Directions that were counted while no agent ran and belong to no connection any more.
    strays: HashMap<Tuple, FlowCounters>,
    /// Directions whose last record the agent before had written: they are no strays.
    gone: HashSet<Tuple>,
    /// Whether the last reading saw everything, and whether one ever did.
    complete: bool,
    caught_up: bool,
    due: Vec<Record>,
}

impl Accounts {
    /// Knows nothing: what connections had before the first reading isn't exported.
    pub fn new(timeouts: Timeouts) -> Self {
        Self {
            timeouts,
            known: HashMap::new(),
            fresh: true,
            watched: false,
            reading: 0,
            read_ns: 0,
            missing: HashMap::new(),
            last_seen: HashMap::new(),
            strays: HashMap::new(),
            gone: HashSet::new(),
            complete: false,
            caught_up: true,
            due: Vec::new(),
        }
    }

    /// Goes on where another agent stopped, whose last reading began at `read_ns`. Afterwards [`Self::restore`] and
    /// [`Self::forget`] say what it knew.
    pub fn resumed(timeouts: Timeouts, read_ns: u64) -> Self {
        Self { fresh: false, caught_up: false, read_ns, ..Self::new(timeouts) }
    }

    /// What that agent knew of a connection.
    pub fn restore(&mut self, key: Key, account: Account) {
        self.known.insert(key, account);
    }

    /// It had written the last record of a connection.
    pub fn forget(&mut self, key: &Key, reply: &Tuple) {
        self.known.remove(key);
        self.gone.extend([key.original, *reply]);
    }

    /// All that is known, to be [restored](Self::restore).
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Account)> {
        self.known.iter()
    }

    /// When records are due.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// When the last reading began.
    pub fn read_ns(&self) -> u64 {
        self.read_ns
    }

    /// Records that are due since this was last asked.
    pub fn take_due(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.due)
    }

    /// Begins a reading of all flows. `living`: whether flows that go on may have records; otherwise what they have waits. `watched`:
    /// whether the programs count.
    pub fn begin<'a>(&'a mut self, node: &'a Node, now: Now, living: bool, watched: bool) -> Reading<'a> {
        self.reading += 1;
        self.watched = watched;
        self.missing.clear();
        self.last_seen.clear();
        self.strays.clear();
        self.complete = false;
        Reading { accounts: self, node, now, living, sorted: false }
    }

    /// A connection ended.
    pub fn ended(&mut self, ended: &Ended<'_>, node: &Node, now: Now) -> Key {
        let Ended { entry, seen, .. } = ended;
        let key = Key::of(entry);
        for tuple in [&entry.original, &entry.reply] {
            self.missing.remove(tuple);
            self.strays.remove(tuple);
            if !self.caught_up {
                self.gone.insert(*tuple);
            }
        }
        let account = self.known.remove(&key);
        let known = account.is_some();
        let mut account = account.unwrap_or_else(|| {
            // It began after the last reading. What its tuples had before belongs to others.
            let (began, ended_at) = match ended.times_ns {
                Some([began, ended]) => (at(now, began), at(now, ended)),
                None => (now.ns, now.ns),
            };
            let mut account = Account::new(entry, began);
            account.last_ns = [ended_at; 2];
            account
        });
        if !known {
            account.begin(entry, seen, self.read_ns);
        }
        let grown = account.advance(entry.counters, seen, now.ns);
        let went_over = seen.iter().flatten().any(|seen| seen.flags & FlowCounters::WENT_OVER != 0);
        if went_over && !account.left {
            account.add_fast(grown, seen, &ended.metered, node);
        }
        let closing = account.closing || entry.tcp_state == Some(TcpState::Closing);
        account.record(
            &key,
            if closing { Reason::Ended } else { Reason::Idle },
            now,
            self.watched,
            &mut self.due,
        );
        key
    }

    /// After a reading, and after all ends that were announced until then: what it missed has ended without a word.
    pub fn settle(&mut self, node: &Node, now: Now) {
        let missing = std::mem::take(&mut self.missing);
        let mut last_seen = std::mem::take(&mut self.last_seen);
        let strays = std::mem::take(&mut self.strays);
        if !self.complete {
            return;
        }
        for (key, _) in missing.into_values() {
            let Some(mut account) = self.known.remove(&key) else { continue };
            if let Some(seen) = last_seen.remove(&key) {
                // Whatever conntrack said before, from there on the programs say how it went on.
                let grown = account.advance(None, &seen, now.ns);
                if !account.left
                    && seen.iter().flatten().any(|seen| seen.flags & FlowCounters::WENT_OVER != 0)
                {
                    account.add_fast(grown, &seen, &Metered::Nothing, node);
                }
            }
            let reason = if account.closing { Reason::Ended } else { Reason::Idle };
            account.record(&key, reason, now, self.watched, &mut self.due);
        }
        self.due.extend(strays.into_iter().map(|(tuple, counters)| stray(tuple, &counters, now)));
        (self.fresh, self.caught_up) = (false, true);
    }
}

/// Conntrack's time, in ns since 1970, by the other clock.
fn at(now: Now, unix_ns: u64) -> u64 {
    now.ns.saturating_sub((now.unix_ms * 1_000_000).saturating_sub(unix_ns))
}

/// A direction that was counted while no agent ran.
fn stray(tuple: Tuple, counters: &FlowCounters, now: Now) -> Record {
    let closing = counters.flags & TCP_CLOSING_FLAGS != 0;
    Record {
        tuple,
        leaves: tuple,
        reply: false,
        id: 0,
        count: Counter { packets: counters.packets, bytes: counters.bytes },
        start_ms: now.unix_ms_of(counters.first_seen_ns),
        end_ms: now.unix_ms_of(counters.last_seen_ns),
        reason: if closing { Reason::Ended } else { Reason::Idle },
        seen: Some(Seen {
            fast: Counter::default(),
            input: counters.ifindex,
            output: 0,
            tcp_flags: flags(counters),
        }),
    }
}

/// A reading in progress: first all flows that conntrack has, then those that only the programs have.
pub struct Reading<'a> {
    accounts: &'a mut Accounts,
    node: &'a Node,
    now: Now,
    living: bool,
    /// Whether it is known which connections are missing.
    sorted: bool,
}

impl Reading<'_> {
    /// Whether it matters what the meter has of a flow.
    pub fn wants_metered(flow: &Flow) -> bool {
        // One that is there, isn't idle or ending, and isn't offloaded has left the flowtable for a reason: its path is unknown.
        flow.offloaded() || flow.went_over() && matches!(flow.state, State::Idle | State::Closing)
    }

    /// The next flow, with what the meter has of it if that [matters](Self::wants_metered).
    pub fn add(&mut self, flow: &Flow, metered: Option<&Metered>) {
        match &flow.entry {
            Some(entry) => self.connection(entry, flow, metered.unwrap_or(&Metered::Unknown)),
            None => self.direction(flow),
        }
    }

    fn connection(&mut self, entry: &Entry, flow: &Flow, metered: &Metered) {
        let Accounts { known, fresh, reading, read_ns, timeouts, due, watched, .. } = &mut *self.accounts;
        let (key, fresh, before_ns) = (Key::of(entry), *fresh, *read_ns);
        let fast = Self::wants_metered(flow);
        let account = known.entry(key).or_insert_with(|| {
            let mut account = Account::new(entry, self.now.ns);
            if fresh {
                account.conntrack = entry.counters;
                account.skip(&flow.seen);
                if let Metered::Packets { packets, .. } = metered {
                    account.metered = *packets;
                }
            } else {
                account.begin(entry, &flow.seen, before_ns);
            }
            account
        });
        account.reading = *reading;
        let grown = account.advance(entry.counters, &flow.seen, self.now.ns);
        if fast {
            account.add_fast(grown, &flow.seen, metered, self.node);
        }
        account.left = flow.went_over() && flow.state.cause().is_some();
        let closing = account.closing || flow.state == State::Closing;
        let idle_ns = self.now.ns.saturating_sub(account.last_ns.into_iter().max().unwrap_or(0));
        // The next reading would be too late.
        let age_ns = self.now.ns.saturating_sub(account.recorded_ns) + timeouts.interval_ns();
        let reason = match () {
            () if !self.living => return,
            () if closing => Reason::Ended,
            () if idle_ns >= timeouts.inactive_ns => Reason::Idle,
            () if age_ns > timeouts.active_ns => Reason::Active,
            () => return,
        };
        account.record(&key, reason, self.now, *watched, due);
    }

    /// What was counted of a direction that belongs to no connection any more.
    fn direction(&mut self, flow: &Flow) {
        self.sort();
        let tuple = flow.original;
        let Some(counters) = flow.seen[0] else { return };
        let Accounts { missing, last_seen, strays, gone, caught_up, read_ns, .. } = &mut *self.accounts;
        match missing.get(&tuple) {
            Some((key, direction)) => last_seen.entry(*key).or_default()[*direction] = Some(counters),
            None if !*caught_up && counters.first_seen_ns > *read_ns && !gone.contains(&tuple) => {
                strays.insert(tuple, counters);
            }
            None => {}
        }
    }

    fn sort(&mut self) {
        if std::mem::replace(&mut self.sorted, true) {
            return;
        }
        let Accounts { known, missing, reading, .. } = &mut *self.accounts;
        for (key, account) in known.iter().filter(|(_, account)| account.reading != *reading) {
            missing.insert(key.original, (*key, 0));
            missing.insert(account.reply, (*key, 1));
        }
    }

    /// After the last flow. A reading that isn't ended has missed nothing.
    pub fn end(mut self) {
        self.sort();
        self.accounts.gone = HashSet::new();
        self.accounts.complete = true;
        self.accounts.read_ns = self.now.ns;
    }
}

impl Account {
    fn new(entry: &Entry, now_ns: u64) -> Self {
        Self {
            reply: entry.reply,
            conntrack: entry.counters.map(|_| Default::default()),
            seen: Default::default(),
            pending: Default::default(),
            fast: 0,
            metered: 0,
            from_ns: [now_ns; 2],
            last_ns: [now_ns; 2],
            recorded_ns: now_ns,
            interfaces: [0; 2],
            tcp_flags: 0,
            closing: false,
            left: false,
            reading: 0,
        }
    }

    /// It began after `since_ns`: when, the programs say. What they had of its tuples before belongs to another connection.
    fn begin(&mut self, entry: &Entry, seen: &[Option<FlowCounters>; 2], since_ns: u64) {
        if entry.counters.is_none() && seen.iter().flatten().any(|seen| seen.first_seen_ns < since_ns) {
            self.skip(seen);
        }
        for (from, seen) in self.from_ns.iter_mut().zip(seen) {
            if let Some(seen) = seen {
                *from = seen.first_seen_ns.max(since_ns).min(*from);
            }
        }
        self.recorded_ns = self.from_ns.into_iter().min().unwrap_or(self.recorded_ns);
    }

    /// What the programs have so far isn't exported.
    fn skip(&mut self, seen: &[Option<FlowCounters>; 2]) {
        for (known, seen) in self.seen.iter_mut().zip(seen) {
            *known = seen.map_or_else(Counter::default, |seen| counter(&seen));
        }
    }

    /// Takes the newest counts; returns how many packets are new.
    fn advance(
        &mut self,
        conntrack: Option<[Counter; 2]>,
        seen: &[Option<FlowCounters>; 2],
        now_ns: u64,
    ) -> u64 {
        let mut grown = 0;
        for (direction, seen) in seen.iter().enumerate() {
            let counted = seen.map(|seen| counter(&seen));
            let before = &mut self.seen[direction];
            let more = match (conntrack, self.conntrack, counted) {
                (Some(now), Some(before), _) => since(now[direction], before[direction]),
                (Some(now), None, _) => now[direction],
                (None, _, Some(counted)) => since(counted, *before),
                (None, _, None) => Counter::default(),
            };
            *before = counted.unwrap_or(*before);
            let pending = &mut self.pending[direction];
            pending.packets += more.packets;
            pending.bytes += more.bytes;
            grown += more.packets;
            match seen {
                Some(seen) => {
                    self.interfaces[direction] = seen.ifindex;
                    self.tcp_flags |= flags(seen);
                    self.closing |= seen.flags & TCP_CLOSING_FLAGS != 0;
                    self.last_ns[direction] = seen.last_seen_ns.min(now_ns).max(self.from_ns[direction]);
                }
                None if more.packets > 0 => self.last_ns[direction] = now_ns,
                None => {}
            }
        }
        if conntrack.is_some() {
            self.conntrack = conntrack;
        }
        grown
    }

    /// Of `grown` packets of a flow that went into the flowtable, those that bypassed the normal path.
    fn add_fast(&mut self, grown: u64, seen: &[Option<FlowCounters>; 2], metered: &Metered, node: &Node) {
        let slow = match metered {
            // There is no telling.
            Metered::Unknown => return,
            Metered::Nothing => 0,
            Metered::Packets { packets, .. } => *packets,
        };
        // Less than before: the meter had forgotten it.
        let slow_since = slow.checked_sub(self.metered).unwrap_or(slow);
        self.metered = slow;
        let young = node.young_packets(seen).unwrap_or(1);
        // The programs' counts may have another connection in them.
        let counted: u64 = self.conntrack.unwrap_or(self.seen).iter().map(|counted| counted.packets).sum();
        self.fast += grown.saturating_sub(slow_since).min(counted.saturating_sub(young + slow));
    }

    /// Moves what is pending into records.
    fn record(&mut self, key: &Key, reason: Reason, now: Now, watched: bool, due: &mut Vec<Record>) {
        let mut of = self.pending.iter().map(|pending| pending.packets).sum::<u64>();
        let mut fast = std::mem::take(&mut self.fast).min(of);
        for direction in 0..2 {
            let count = std::mem::take(&mut self.pending[direction]);
            if count.packets == 0 {
                continue;
            }
            // Each direction has its share, and none gets lost by rounding.
            let packets = share(fast, count.packets, of);
            (fast, of) = (fast - packets, of - count.packets);
            let fast = Counter { packets, bytes: share(count.bytes, packets, count.packets) };
            let (tuple, other) =
                if direction == 0 { (key.original, self.reply) } else { (self.reply, key.original) };
            let (input, output) = (self.interfaces[direction], self.interfaces[1 - direction]);
            let seen = watched.then_some(Seen { fast, input, output, tcp_flags: self.tcp_flags });
            let (from, last) = (self.from_ns[direction], self.last_ns[direction]);
            due.push(Record {
                tuple,
                leaves: other.reversed(),
                reply: direction == 1,
                id: key.id,
                count,
                start_ms: now.unix_ms_of(from.min(last)),
                end_ms: now.unix_ms_of(last),
                reason,
                seen,
            });
            self.from_ns[direction] = last;
            self.recorded_ns = now.ns;
        }
    }
}

fn counter(seen: &FlowCounters) -> Counter {
    Counter { packets: seen.packets, bytes: seen.bytes }
}

fn flags(seen: &FlowCounters) -> u8 {
    (seen.flags & FlowCounters::TCP_FLAGS) as u8
}

/// What was counted since; less than before: it began again at 0.
fn since(now: Counter, before: Counter) -> Counter {
    match (now.packets.checked_sub(before.packets), now.bytes.checked_sub(before.bytes)) {
        (Some(packets), Some(bytes)) => Counter { packets, bytes },
        _ => now,
    }
}

/// What `part` of `whole` has of `amount`.
fn share(amount: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(amount) * u128::from(part);
    u64::try_from(product / u128::from(whole.max(1))).unwrap_or(amount)
}

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;
