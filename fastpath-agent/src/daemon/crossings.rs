//! Follows flows across the threshold: the programs signal each one, conntrack says whether it is offloaded, and all
//! readers get it. Decides nothing about flows: that is `core`'s.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fastpath_common::{FlowCounters, FlowKey, Signal};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{Level, debug, enabled, info, trace, warn};

mod assistance;

use assistance::arm;

use super::{
    counts::Crossed,
    readers::Readers,
    unclear::{all, unclear},
};
use crate::{
    config::Config,
    core::{
        flow::{
            Flow, Node, State,
            assist::Assist,
            connection::{Entry, TcpState, Tuple},
            crossing::{self, Settled},
            one_way::{self, Streams},
            record::{Event, FlowRecord},
            traffic::Marks,
        },
        why_not::WhyNot,
    },
    daemon::metrics::{BELOW_THRESHOLD, ENDED},
    kernel::{
        bpf::{BpfError, FlowEyes},
        flow_source::FlowSource,
        memory,
        old_connections::Crossed as Old,
    },
};

/// Signals handled at a time, so that a burst doesn't hold up links and ruleset.
const SLICE: usize = 256;
/// Least time from one look into the ring to the next: under load signals come in batches, which cost much less.
const GAP: Duration = Duration::from_millis(20);
/// For how long what flows are judged by is as good as new.
const NODE_AGE: Duration = Duration::from_millis(200);
/// Signals after which it is worth while to give memory back.
const BURST: usize = 10_000;

/// The flows that cross.
pub struct Crossings<S> {
    source: S,
    followed: crossing::Crossings,
    readers: Option<Readers>,
    /// Absent if it isn't wanted.
    assist: Option<Assist>,
    /// Connections that `assist` wants to know about.
    to_look_up: Vec<Tuple>,
    node: Node,
    node_read: Option<Instant>,
    started: Instant,
    /// When the ring may be looked into again.
    next_look: Instant,
    /// Signals that had been lost when the last sweep began; `None` to sweep again.
    swept: Option<u64>,
    sweep_failed: bool,
    sweeping: bool,
    /// Swept up and not handled yet.
    found: Vec<FlowKey>,
    /// Connections that crossed earlier: where they come from, and those that wait to be handled.
    search: Option<mpsc::Receiver<Vec<Old>>>,
    old: Vec<Old>,
    /// Signals handled since memory was given back last.
    handled: usize,
    /// Streams that may go one way, and those of them to help now.
    streams: Streams,
    to_help: Vec<Entry>,
    /// Directions of flows that were counted here, and that the programs mustn't count when they are offloaded again.
    counted: Vec<FlowKey>,
    /// Whether it was said that conntrack can't be asked.
    blind: bool,
    /// Where offloaded flows are marked, if metrics are served.
    marks: Option<Marks>,
    counts: Crossed,
    /// Connections that the programs had seen go into the flowtable before this agent counted.
    went_over: u64,
    /// Whether the programs signal every crossing; `None` if that isn't known.
    tells_all: Option<bool>,
}

/// Whether flows should be followed.
pub fn wanted(config: &Config) -> bool {
    let Config { rules, mode, once, .. } = config;
    // Where the mode may change they have to be ready for it.
    let may_offload = rules.offloads || mode.file.is_some();
    rules.threshold != 0 && may_offload && !once
}

impl<S: FlowSource> Crossings<S> {
    /// Begins to follow flows, and to tell `readers` of them.
    pub fn new(config: &Config, source: S, readers: Option<Readers>) -> Self {
        // Of a flow whose first direction is still in the map, the second one is known when it crosses too.
        let remembered = config.max_flows as usize / 2;
        let now = Instant::now();
        Self {
            source,
            followed: crossing::Crossings::new(remembered),
            readers,
            assist: config.assist.then(Assist::default),
            to_look_up: Vec::new(),
            node: Node::default(),
            node_read: None,
            started: now,
            next_look: now,
            swept: Some(0),
            sweep_failed: false,
            sweeping: false,
            found: Vec::new(),
            search: None,
            old: Vec::new(),
            handled: 0,
            streams: Streams::default(),
            to_help: Vec::new(),
            counted: Vec::new(),
            blind: false,
            marks: None,
            counts: Crossed::default(),
            went_over: 0,
            tells_all: None,
        }
    }

    /// From now on crossings are counted, and offloaded flows marked.
    pub fn count(&mut self, marks: Marks) {
        self.marks = Some(marks);
        self.went_over = self.source.went_over().unwrap_or_default();
    }

    /// What was counted here, and by the programs for flows that were offloaded.
    pub fn counts(&self) -> Crossed {
        let went_over = self.source.went_over().map_or(0, |all| all.saturating_sub(self.went_over));
        let Crossed { crossed, offloaded, ref not_offloaded } = self.counts;
        Crossed {
            crossed: crossed + went_over,
            offloaded: offloaded + went_over,
            not_offloaded: not_offloaded.clone(),
        }
    }

    /// Connections that were offloaded with our help.
    pub fn assisted(&self) -> u64 {
        self.assist.as_ref().map_or(0, Assist::offloaded)
    }

    /// Directions of offloaded flows that were marked since this was last asked.
    pub fn take_marks(&mut self) -> VecDeque<u64> {
        self.marks.as_mut().map(Marks::take).unwrap_or_default()
    }

    /// Waits until there is something to do. Safe to cancel.
    pub async fn ready(crossings: &mut Option<Self>) {
        let Some(this) = crossings else { return std::future::pending().await };
        if this.tells_all.is_none() {
            return;
        }
        let room = this.followed.room() >= SLICE;
        if room && (this.sweeping || !this.found.is_empty() || !this.to_look_up.is_empty()) {
            return;
        }
        let due =
            [this.followed.due_ms(), this.assist.as_ref().and_then(Assist::due_ms), this.streams.due_ms()];
        let due = due.into_iter().flatten().min().map(|due| this.started + Duration::from_millis(due));
        let look = this.next_look;
        let failed = tokio::select! {
            found = async { this.search.as_mut().expect("there is one").recv().await }, if this.search.is_some() => {
                if found.is_none() {
                    this.search = None;
                }
                this.old = found.unwrap_or_default();
                None
            }
            () = Readers::changed(&mut this.readers) => None,
            () = sleep_until(due.unwrap_or(look)), if due.is_some() => None,
            failed = async { sleep_until(look).await; this.source.signalled().await.err() }, if room => failed,
        };
        if let Some(error) = failed {
            warn!(%error, "flows that cross the threshold are not followed any more");
            *crossings = None;
        }
    }

    /// Whether what flows are judged by has to be read again.
    pub fn wants_node(&self) -> bool {
        self.node_read.is_none_or(|at| at.elapsed() >= NODE_AGE)
    }

    /// What flows are judged by isn't so any more.
    pub fn judge_again(&mut self) {
        self.node_read = None;
    }

    /// Addresses of this node, as far as they are known.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.node.addresses.clone()
    }

    /// Takes what flows are judged by from now on.
    pub fn judge_by(&mut self, node: Node) {
        self.node = node;
        self.node_read = Some(Instant::now());
    }

    /// Handles a slice of what is there.
    pub fn handle(&mut self, eyes: &mut dyn FlowEyes) {
        self.node.now_ns = self.source.now_ns();
        self.tell_all(eyes);
        self.look_again();
        self.look_at_assisted(eyes);
        self.look_at_streams(eyes);
        self.look_at_old(eyes);
        for key in std::mem::take(&mut self.counted) {
            if let Err(error) = eyes.mark(&key, Signal::Sent, Signal::Sent) {
                debug!(%error, "a connection may be counted once more when it is offloaded again");
            }
        }
        if self.handled >= BURST && self.followed.due_ms().is_none() && !self.sweeping {
            self.followed.shrink();
            memory::give_back();
            self.handled = 0;
        }
        if self.followed.room() < SLICE {
            return;
        }
        if !self.found.is_empty() {
            let rest = self.found.split_off(SLICE.min(self.found.len()));
            let found = std::mem::replace(&mut self.found, rest);
            return self.signalled(found.iter().map(Tuple::from_flow_key));
        }
        if let Err(error) = self.sweep(eyes) {
            warn!(%error, "lost signals can't be searched for; trying again in a minute");
            (self.sweeping, self.sweep_failed) = (false, true);
        }
        let events = self.source.take(SLICE);
        self.next_look = Instant::now() + if events.len() < SLICE { GAP } else { Duration::ZERO };
        if !events.is_empty() {
            let tuples = if self.publishes() { all(&events) } else { unclear(&events, eyes) };
            self.handled += events.len() - tuples.len();
            self.signalled(tuples.into_iter());
            // The ring is empty now.
            if events.len() < SLICE {
                self.sweep_if_lost();
            }
        }
    }

    /// Whether every flow is published.
    fn publishes(&self) -> bool {
        self.readers.as_ref().is_some_and(Readers::any) || enabled!(Level::TRACE)
    }

    /// Has the programs signal offloaded flows too, if every flow is published.
    fn tell_all(&mut self, eyes: &mut dyn FlowEyes) {
        let all = Some(self.publishes());
        if self.tells_all != all {
            self.tells_all = all;
            if let Err(error) = eyes.tell_all(all == Some(true)) {
                debug!(%error, "offloaded flows can't be followed");
            }
        }
    }

    /// Whether it is known without asking conntrack that the flow of this direction is offloaded, and counted as such.
    fn has_gone_over(&self, key: &FlowKey) -> bool {
        self.source.has_gone_over(key).unwrap_or(false)
    }

    /// Begins a sweep of the map if signals were lost since the last one began, or that failed.
    pub fn look_for_lost(&mut self) {
        if std::mem::take(&mut self.sweep_failed) {
            self.swept = None;
        }
        self.sweep_if_lost();
    }

    fn sweep_if_lost(&mut self) {
        if self.sweeping {
            return;
        }
        let begun = self.source.lost().and_then(|lost| {
            if self.swept == Some(lost) {
                return Ok(false);
            }
            self.source.begin_sweep()?;
            info!(
                lost = lost.wrapping_sub(self.swept.unwrap_or_default()),
                "the ring of events overflowed: searching the map for crossings"
            );
            self.swept = Some(lost);
            Ok(true)
        });
        match begun {
            Ok(begun) => self.sweeping = begun,
            Err(error) => debug!(%error, "unknown whether signals were lost"),
        }
    }

    /// The next piece of the map.
    fn sweep(&mut self, eyes: &mut dyn FlowEyes) -> Result<(), BpfError> {
        if !self.sweeping {
            return Ok(());
        }
        match self.source.sweep()? {
            Some(lost) => {
                for key in lost {
                    // From now on it is as if the event had come.
                    if eyes.mark(&key, Signal::Lost, Signal::Sent)? {
                        self.found.push(key);
                    }
                }
            }
            None => {
                self.sweeping = false;
                // Some may have been lost behind its back.
                self.sweep_if_lost();
            }
        }
        Ok(())
    }

    fn signalled(&mut self, tuples: impl Iterator<Item = Tuple>) {
        let (first, mut others) = crossing::one_of_each(tuples.collect());
        self.handled += first.len() + others.len();
        let found = self.first_look(&first);
        others.retain(|tuple| !found.contains(tuple));
        if !others.is_empty() {
            self.first_look(&others);
        }
    }

    /// Returns both directions of the connections that were found.
    fn first_look(&mut self, tuples: &[Tuple]) -> HashSet<Tuple> {
        // Where conntrack can't be asked, the second look asks again.
        let entries = self.look_up(tuples).unwrap_or_else(|| vec![None; tuples.len()]);
        let found = entries.iter().flatten().flat_map(|entry| [entry.original, entry.reply]).collect();
        let now = self.now_ms();
        for (tuple, entry) in tuples.iter().zip(entries) {
            self.consider(entry.as_ref());
            if let Some(settled) = self.followed.signalled(*tuple, entry, now) {
                self.settled(settled);
            }
        }
        found
    }

    fn look_again(&mut self) {
        let now = self.now_ms();
        let waiting = self.followed.take_due(now, SLICE);
        if waiting.is_empty() {
            return;
        }
        let tuples: Vec<Tuple> = waiting.iter().map(|waiting| waiting.tuple).collect();
        let entries = self.look_up(&tuples).unwrap_or_else(|| {
            self.look_later(&tuples);
            vec![None; tuples.len()]
        });
        for (waiting, entry) in waiting.into_iter().zip(entries) {
            self.consider(entry.as_ref());
            if let Some(settled) = self.followed.looked_again(waiting, entry) {
                if let (Settled::Connection(entry), true) = (&settled, self.helps())
                    && !entry.status.offloaded()
                {
                    self.streams.consider(entry, now);
                }
                self.settled(settled);
            }
        }
    }

    /// Checks streams that may go one way.
    fn look_at_streams(&mut self, eyes: &mut dyn FlowEyes) {
        let now = self.now_ms();
        let tuples = self.streams.due(now);
        if tuples.is_empty() {
            return;
        }
        let Some(entries) = self.look_up(&tuples) else { return self.streams.later(&tuples, now) };
        for (tuple, entry) in tuples.iter().zip(entries) {
            match (self.streams.looked(tuple, entry.as_ref(), now), entry) {
                (one_way::Next::Help, entry) => self.to_help.extend(entry),
                (one_way::Next::Arm, Some(entry)) => arm(eyes, &entry),
                _ => {}
            }
        }
    }

    /// Streams that may go one way and should be helped now.
    pub fn take_streams(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.to_help)
    }

    /// Asks conntrack; `None` if it can't be asked, which is logged once.
    fn look_up(&mut self, tuples: &[Tuple]) -> Option<Vec<Option<Entry>>> {
        match self.source.connections(tuples) {
            Ok(entries) => {
                self.blind = false;
                Some(entries)
            }
            Err(error) => {
                if !self.blind {
                    warn!(%error, "conntrack can't be read: unknown whether flows that cross the threshold are offloaded");
                }
                self.blind = true;
                None
            }
        }
    }

    /// The end of following a flow.
    fn settled(&mut self, settled: Settled) {
        let publishes = self.readers.as_ref().is_some_and(Readers::any);
        let counted = self.count_settled(&settled);
        if counted && !self.publishes() {
            return;
        }
        let flow = self.flow(settled);
        if !counted {
            let cause = match flow.as_ref().map(|flow| &flow.state) {
                Ok(State::Stalled(cause) | State::Never(cause)) => cause.why.name(),
                Ok(State::BelowThreshold) => BELOW_THRESHOLD,
                Ok(_) => ENDED,
                Err(_) => WhyNot::Unknown.name(),
            };
            *self.counts.not_offloaded.entry(cause).or_default() += 1;
        }
        let flow = match flow {
            Ok(flow) => flow,
            Err(error) => return debug!(%error, "a flow that crossed the threshold can't be published"),
        };
        let cause = flow.state.cause().map(ToString::to_string);
        trace!(flow = %flow.original, fate = flow.state.name(), cause, "crossed the threshold");
        if let (true, Some(readers)) = (publishes, &self.readers) {
            let flow = Box::new(FlowRecord::new(&flow, &self.node));
            readers.publish(&Event::Crossed { time_ms: unix_ms(), flow });
        }
    }

    /// Counts it; false if it takes a closer look to tell why it isn't offloaded.
    fn count_settled(&mut self, settled: &Settled) -> bool {
        let by_programs = match settled {
            Settled::Connection(Entry { original, reply, .. })
            | Settled::Ended(Entry { original, reply, .. }) => {
                [original, reply].iter().filter_map(|t| t.flow_key()).any(|key| self.has_gone_over(&key))
            }
            Settled::Unknown(_) => false,
        };
        let Some(marks) = &mut self.marks else { return true };
        if by_programs {
            return true;
        }
        self.counts.crossed += 1;
        match settled {
            Settled::Connection(entry) if entry.status.offloaded() => {
                self.counts.offloaded += 1;
                for tuple in [entry.original, entry.reply] {
                    marks.mark(&tuple);
                    self.counted.extend(tuple.flow_key());
                }
                true
            }
            // As it would be judged, but for what has no end.
            Settled::Connection(Entry { tcp_state: Some(TcpState::Closing), .. }) => {
                *self.counts.not_offloaded.entry(ENDED).or_default() += 1;
                true
            }
            Settled::Connection(_) => false,
            Settled::Ended(_) | Settled::Unknown(_) => {
                *self.counts.not_offloaded.entry(ENDED).or_default() += 1;
                true
            }
        }
    }

    fn flow(&self, settled: Settled) -> Result<Flow, BpfError> {
        Ok(match settled {
            Settled::Connection(entry) => {
                let seen = self.counted(&entry)?;
                Flow::settled(entry, seen, &self.node)
            }
            Settled::Ended(entry) => Flow::ended(entry.original, Some(entry.reply), self.counted(&entry)?),
            Settled::Unknown(tuple) => Flow::ended(tuple, None, [self.counted_one(&tuple)?, None]),
        })
    }

    fn counted(&self, entry: &Entry) -> Result<[Option<FlowCounters>; 2], BpfError> {
        Ok([self.counted_one(&entry.original)?, self.counted_one(&entry.reply)?])
    }

    fn counted_one(&self, tuple: &Tuple) -> Result<Option<FlowCounters>, BpfError> {
        tuple.flow_key().map(|key| self.source.counted(&key)).transpose().map(Option::flatten)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
