//! Reads from the kernel what a page of metrics needs, and the last hour's history. Keeps only what counters are made of.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use fastpath_common::Tally;

use super::{Kernel, Maps};
use crate::{
    core::{
        flow::{
            Flow, Node,
            sums::FlowSums,
            traffic::{Adding, MAX_REMEMBERED, Marks, Passed, Traffic},
        },
        history::{History, STEP_NS, Step},
    },
    kernel::{
        Ruleset, Unread,
        bpf::{self, BpfError, Pinned},
        clock::monotonic_ns,
        flows::{FlowsError, for_each_metered},
        lengths, memory,
        nft::Nft,
    },
};

/// Flows in one reading after which memory is given back.
const MANY: u64 = 10_000;
/// Where nobody asks, readings take at most this part of a processor: 1/1000.
const REST: u32 = 1000;
/// And come at this distance at least.
const APART: Duration = Duration::from_nanos(STEP_NS);

/// Reads, one reading at a time.
pub struct Scraper {
    pin_path: PathBuf,
    /// Whether programs count.
    watches: bool,
    kept: Mutex<Kept>,
}

/// What is kept from one reading to the next.
struct Kept {
    traffic: Traffic,
    /// Counters never go back, also where they are put together from numbers of slightly different moments.
    counted: Tally,
    left: u64,
    history: History,
    /// When the last reading ended, and how long it took.
    last: (Instant, Duration),
}

/// What was read for the page of the last hour.
pub struct Hour {
    /// Steps of which anything is known, oldest first, with their numbers.
    pub steps: Vec<(u64, Step)>,
    /// Packets and bytes since the agent started.
    pub total: Passed,
    /// When it was read, `CLOCK_MONOTONIC` in ns.
    pub now_ns: u64,
    /// How long reading took.
    pub took: Duration,
}

impl Scraper {
    /// Begins to count now.
    pub fn new(pin_path: PathBuf, watches: bool) -> Self {
        let now_ns = monotonic_ns();
        let mut history = History::default();
        history.add(now_ns, Passed::default());
        let traffic = Traffic::new(MAX_REMEMBERED, now_ns);
        let kept = Kept {
            traffic,
            counted: Tally::default(),
            left: 0,
            history,
            last: (Instant::now(), Duration::ZERO),
        };
        Self { pin_path, watches, kept: Mutex::new(kept) }
    }

    /// For the part that finds out which flows are offloaded.
    pub fn marks(&self) -> Marks {
        self.lock().traffic.marks()
    }

    /// Reads everything; `marked` are those directions that were marked since the last time. Takes as long as
    /// `fastpath-agent flows` does: not for the loop that reconciles.
    pub fn read(&self, node: Node, marked: VecDeque<u64>) -> Kernel {
        let begun = Instant::now();
        let mut kept = self.lock();
        let mut kernel = Kernel::default();
        let addresses = node.addresses.clone();
        match self.flows(&mut kept, node, marked, &mut kernel) {
            Ok(flows) => kernel.flows = Some(flows),
            Err(error) => failed(&mut kernel, "flows", &error),
        }
        if self.watches {
            match self.maps(&mut kept) {
                Ok(maps) => kernel.maps = Some(maps),
                Err(error) => failed(&mut kernel, "maps", &error),
            }
            kernel.prospect = lengths::read(&self.pin_path, &addresses).ok().and_then(|l| l.prospect());
        }
        match Nft::open().and_then(|mut nft| nft.observe_but(Unread::Exclusions)) {
            Ok(observed) => {
                let table = observed.table.as_ref();
                kernel.rule_offloads = table.and_then(|table| table.offloads()).map(|c| c.packets);
                kernel.untraced = table.and_then(|table| table.untraced());
            }
            Err(error) => failed(&mut kernel, "ruleset", &error),
        }
        if kernel.flows.as_ref().is_some_and(|flows| flows.all() > MANY) {
            memory::give_back();
        }
        kernel.usage = memory::usage();
        kept.ended(begun);
        kernel.seconds = begun.elapsed().as_secs_f64();
        kernel
    }

    /// Whether programs count.
    pub fn watches(&self) -> bool {
        self.watches
    }

    /// Whether it is time for a reading that nobody has asked for.
    pub fn is_rested(&self) -> bool {
        // One that is being read now is reading enough.
        let Ok(kept) = self.kept.try_lock() else { return false };
        let (ended, took) = kept.last;
        ended.elapsed() >= APART.max(took * REST)
    }

    /// Reads all flows, and the last hour with them. Hands each out as it is judged by the given node. Takes as long as
    /// `fastpath-agent flows` does.
    pub fn each_flow(
        &self,
        node: Node,
        marked: VecDeque<u64>,
        mut each: impl FnMut(Flow, &Node),
    ) -> Result<Hour, FlowsError> {
        let begun = Instant::now();
        let mut kept = self.lock();
        let mut flows = 0;
        let (Node { now_ns, .. }, read) = self.read_flows(&mut kept, node, marked, |flow, node| {
            flows += 1;
            each(flow, node);
        });
        read?;
        kept.ended(begun);
        if flows > MANY {
            memory::give_back();
        }
        let steps = kept.history.steps(now_ns).collect();
        Ok(Hour { steps, total: kept.traffic.total(), now_ns, took: begun.elapsed() })
    }

    /// A reading that fails half-way still counts what it has seen.
    fn flows(
        &self,
        kept: &mut Kept,
        node: Node,
        marked: VecDeque<u64>,
        kernel: &mut Kernel,
    ) -> Result<FlowSums, FlowsError> {
        let mut sums = FlowSums::default();
        let (node, read) = self.read_flows(kept, node, marked, |flow, _| sums.add(&flow));
        let traffic = &kept.traffic;
        kernel.unmeasured = traffic.unmeasured();
        kernel.interfaces = traffic
            .interfaces()
            .filter_map(|(index, passed)| Some((node.names.get(&index)?.to_string(), passed)))
            .collect();
        read.map(|()| sums)
    }

    /// What they were judged by is given back, with the time of the reading.
    fn read_flows(
        &self,
        kept: &mut Kept,
        mut node: Node,
        marked: VecDeque<u64>,
        mut each: impl FnMut(Flow, &Node),
    ) -> (Node, Result<(), FlowsError>) {
        node.now_ns = monotonic_ns();
        node.earlier = bpf::earlier_threshold(&self.pin_path);
        let mut adding = kept.traffic.begin(&node, marked);
        let read = for_each_metered(&self.pin_path, &node, Adding::wants_metered, |flow, metered| {
            adding.add(&flow, metered.as_ref());
            let flow = match metered {
                Some(metered) => flow.measured(&metered, &node),
                None => flow,
            };
            each(flow, &node);
        });
        adding.end();
        kept.traffic.keep(|index| node.names.contains_key(&index));
        if self.watches && read.is_ok() {
            kept.history.add(node.now_ns, kept.traffic.total());
        }
        (node, read)
    }

    fn maps(&self, kept: &mut Kept) -> Result<Maps, BpfError> {
        let pinned = Pinned::open(&self.pin_path)?;
        let (entries, capacity) = pinned.occupancy()?;
        let mut stats = pinned.stats()?;
        kept.left = kept.left.max(stats.flows_entered.saturating_sub(entries.into()));
        kept.counted.packets = kept.counted.packets.max(stats.counted.packets);
        kept.counted.bytes = kept.counted.bytes.max(stats.counted.bytes);
        stats.counted = kept.counted;
        Ok(Maps { entries, capacity, left: kept.left, stats })
    }

    /// A panic in an earlier reading leaves counts that are too low, nothing worse.
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn ended(&mut self, begun: Instant) {
        self.last = (Instant::now(), begun.elapsed());
    }
}

fn failed(kernel: &mut Kernel, part: &'static str, error: &dyn std::error::Error) {
    tracing::debug!(part, %error, "a part of the metrics can't be read");
    kernel.failed.push(part);
}
