//! Reads from the kernel what a page of metrics needs. Keeps only what counters are made of.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use fastpath_common::Tally;

use super::{Kernel, Maps};
use crate::{
    core::flow::{
        Node,
        sums::FlowSums,
        traffic::{Adding, MAX_REMEMBERED, Marks, Traffic},
    },
    kernel::{
        Ruleset, Unread,
        bpf::{self, BpfError, Pinned},
        clock::monotonic_ns,
        flows::{FlowsError, for_each_metered},
        memory,
        nft::Nft,
    },
};

/// Flows in one reading after which memory is given back.
const MANY: u64 = 10_000;

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
}

impl Scraper {
    /// Begins to count now.
    pub fn new(pin_path: PathBuf, watches: bool) -> Self {
        let traffic = Traffic::new(MAX_REMEMBERED, monotonic_ns());
        Self { pin_path, watches, kept: Mutex::new(Kept { traffic, counted: Tally::default(), left: 0 }) }
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
        match self.flows(&mut kept.traffic, node, marked, &mut kernel) {
            Ok(flows) => kernel.flows = Some(flows),
            Err(error) => failed(&mut kernel, "flows", &error),
        }
        if self.watches {
            match self.maps(&mut kept) {
                Ok(maps) => kernel.maps = Some(maps),
                Err(error) => failed(&mut kernel, "maps", &error),
            }
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
        kernel.seconds = begun.elapsed().as_secs_f64();
        kernel
    }

    /// A reading that fails half-way still counts what it has seen.
    fn flows(
        &self,
        traffic: &mut Traffic,
        mut node: Node,
        marked: VecDeque<u64>,
        kernel: &mut Kernel,
    ) -> Result<FlowSums, FlowsError> {
        node.now_ns = monotonic_ns();
        node.earlier = bpf::earlier_threshold(&self.pin_path);
        let mut sums = FlowSums::default();
        let mut adding = traffic.begin(&node, marked);
        let read = for_each_metered(&self.pin_path, &node, Adding::wants_metered, |flow, metered| {
            adding.add(&flow, metered.as_ref());
            sums.add(&match metered {
                Some(metered) => flow.measured(&metered, &node),
                None => flow,
            });
        });
        adding.end();
        traffic.keep(|index| node.names.contains_key(&index));
        kernel.unmeasured = traffic.unmeasured();
        kernel.interfaces = traffic
            .interfaces()
            .filter_map(|(index, passed)| Some((node.names.get(&index)?.to_string(), passed)))
            .collect();
        read.map(|()| sums)
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

fn failed(kernel: &mut Kernel, part: &'static str, error: &dyn std::error::Error) {
    tracing::debug!(part, %error, "a part of the metrics can't be read");
    kernel.failed.push(part);
}
