//! What the loop contributes to a page of metrics: its own counts, and what is needed to read the kernel's. The reading itself
//! is done elsewhere, so that the loop isn't held up.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::debug;

use super::{Agent, Crossings, counts::Crossed, export, host::Host, reconcile::Standing, rules};
use crate::{
    core::{flow::Node, ruleset::desired},
    daemon::metrics::{self, Metrics, scrape::Scraper},
    kernel::{LinkSource, clock::tick_ns},
};

/// The numbers for a page of metrics.
pub struct Asked {
    agent: metrics::Agent,
    node: Node,
    marked: VecDeque<u64>,
    scraper: Arc<Scraper>,
}

impl Asked {
    /// Reads the rest from the kernel, which takes its time.
    pub fn read(self) -> Metrics {
        Metrics { agent: self.agent, kernel: self.scraper.read(self.node, self.marked) }
    }
}

/// Seconds since 1970, UTC.
pub(super) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl<H: Host> Agent<H> {
    /// What is known now; `None` if no metrics are served.
    pub(super) fn asked(&mut self) -> Option<Asked> {
        let scraper = Arc::clone(self.scraper.as_ref()?);
        let mut node = self.judges();
        node.metered = node.threshold.is_some();
        node.tick_ns = tick_ns();
        match self.links_source.addresses() {
            Ok(addresses) => node.addresses = addresses,
            Err(error) => debug!(%error, "flows that end on this node can't be told from forwarded ones"),
        }
        let marked = self.crossings.as_mut().map(Crossings::take_marks).unwrap_or_default();
        Some(Asked { agent: self.counted(), node, marked, scraper })
    }

    fn counted(&self) -> metrics::Agent {
        let offload = self.offload.as_ref();
        let reconciler = offload.map(|o| &o.reconciler);
        let Crossed { crossed, offloaded, not_offloaded } =
            self.crossings.as_ref().map(Crossings::counts).unwrap_or_default();
        metrics::Agent {
            started_unix: self.started_unix,
            release: self.release.clone(),
            flowtable: self.lacks.is_none(),
            ready: self.ready().is_ok(),
            threshold: self.config.rules.threshold,
            standing: match reconciler.and_then(|r| r.standing()) {
                Some(Standing::Right) => "right",
                Some(Standing::Foreign) => "foreign",
                Some(Standing::Wrong) => "wrong",
                None => "none",
            },
            reconciles: self.reconciles.by_trigger.clone(),
            reconcile_seconds: Some(self.reconciles.seconds.clone()),
            failures: self.reconciles.failures,
            commits: self.reconciles.commits,
            repairs: self.reconciles.repairs,
            overruns: self.overruns,
            revalidations: offload.map(|o| o.revalidation.counts().clone()).unwrap_or_default(),
            crossed,
            offloaded,
            not_offloaded,
            assisted: self.crossings.as_ref().map_or(0, Crossings::assisted),
            managed: reconciler.and_then(|r| r.offloads()).map_or(0, |(_, managed)| managed.len()),
            watched: self.watch.as_ref().map_or(0, |watch| watch.attached()),
            left_out: self.left_out(),
            rules: reconciler.map_or_else(BTreeMap::new, |r| rules::counted(&r.surroundings().rules)),
            export: self.exported.as_deref().map(export::Counts::shown),
            rule_revalidations: offload.map(|o| o.revalidation.by_cause().clone()).unwrap_or_default(),
        }
    }

    fn left_out(&self) -> BTreeMap<&'static str, u64> {
        match &self.offload {
            Some(offload) => offload.reconciler.left_out(&self.links),
            None => {
                let policy = self.config.rules.policy(false, false);
                desired::left_out(&policy, &self.links, &BTreeMap::new(), &Default::default())
            }
        }
    }
}
