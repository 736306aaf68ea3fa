//! What the loop contributes to answers at the HTTP port: its own counts, what happened, and what is needed to read the
//! kernel's. The reading itself is done elsewhere, so that the loop isn't held up.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::debug;

use super::{
    Agent, Crossings, Watch, counts::Crossed, export, host::Host, ready::NotReady, reconcile::Standing, rules,
};
use crate::{
    cli::PageFor,
    core::{
        flow::{Flow, Node},
        history::{Event, Kind},
        link::table::LinkChange,
        ruleset::desired,
    },
    daemon::metrics::{
        self, Metrics,
        scrape::{Hour, Scraper},
    },
    kernel::{
        LinkSource,
        clock::{monotonic_ns, tick_ns},
        flows::FlowsError,
    },
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

/// What the loop knows for the page.
pub struct Seen {
    /// The node and its agent.
    pub status: Status,
    /// What happened within the last hour.
    pub events: Vec<Event>,
    node: Node,
    marked: VecDeque<u64>,
    scraper: Arc<Scraper>,
}

/// How node and agent are.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// `--hostname-override`, or what the kernel has.
    pub node: String,
    /// Release of the kernel.
    pub kernel: String,
    /// What the agent does, or why it can't, in a line.
    pub standing: String,
    /// Whether the node is as the flags want it.
    pub ready: bool,
    /// `--fastpath-threshold`.
    pub threshold: u32,
    /// Whether programs count packets.
    pub watches: bool,
    /// Interfaces in the flowtable.
    pub managed: usize,
}

impl Seen {
    /// Addresses of the node.
    pub fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.node.addresses
    }

    /// Reads all flows from the kernel, which takes its time, and hands each out.
    ///
    /// # Errors
    ///
    /// If they can't be read.
    pub fn read(self, each: impl FnMut(Flow, &Node)) -> Result<(Status, Vec<Event>, Hour), FlowsError> {
        let hour = self.scraper.each_flow(self.node, self.marked, each)?;
        Ok((self.status, self.events, hour))
    }
}

/// Seconds since 1970, UTC.
pub(super) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl<H: Host> Agent<H> {
    /// What is known now; `None` if no metrics are served.
    pub(super) fn asked(&mut self) -> Option<Asked> {
        let (scraper, node, marked) = self.reading()?;
        Some(Asked { agent: self.counted(), node, marked, scraper })
    }

    /// The same for the page.
    pub(super) fn seen(&mut self) -> Option<Seen> {
        let (scraper, node, marked) = self.reading()?;
        let ready = self.ready();
        let offload = self.offload.as_ref();
        let managed = offload.and_then(|o| o.reconciler.offloads()).map_or(0, |(_, managed)| managed.len());
        let status = Status {
            node: self.config.node.clone(),
            kernel: self.release.clone(),
            ready: ready.is_ok(),
            standing: ready.map_or_else(|reason| reason.to_string(), |()| self.standing()),
            threshold: self.config.rules.threshold_in_force(),
            watches: self.watch.as_ref().is_some_and(Watch::watches),
            managed,
        };
        Some(Seen { status, events: self.events.last_hour(monotonic_ns()), node, marked, scraper })
    }

    /// Takes a reading for the history, at a time at which the loop is awake in any case. It is read beside the loop.
    pub(super) fn sample(&mut self) {
        let wanted = |scraper: &Arc<Scraper>| scraper.watches() && scraper.is_rested();
        if self.config.page == PageFor::Off || !self.scraper.as_ref().is_some_and(wanted) {
            return;
        }
        let Some((scraper, node, marked)) = self.reading() else { return };
        // Not one of the runtime's threads: they wait for more to do, and end by a timer.
        let read = move || scraper.each_flow(node, marked, |_, _| {}).map(drop);
        let started = thread::Builder::new().name("history".to_owned()).spawn(move || {
            if let Err(error) = read() {
                debug!(%error, "the history lacks a reading");
            }
        });
        if let Err(error) = started {
            debug!(%error, "the history lacks a reading");
        }
    }

    /// Notes what happened, for the page.
    pub(super) fn note(&mut self, kind: Kind, about: &str) {
        if self.scraper.is_some() && self.config.page != PageFor::Off {
            self.events.note(kind, about, monotonic_ns());
        }
    }

    /// Notes that an interface came or went.
    pub(super) fn note_link(&mut self, change: &LinkChange) {
        let (kind, name) = match change {
            LinkChange::Appeared(index) => match self.links.get(*index) {
                Some(link) => (Kind::InterfaceCame, link.name.clone()),
                None => return,
            },
            LinkChange::Gone(link) => (Kind::InterfaceWent, link.name.clone()),
            LinkChange::Changed { .. } => return,
        };
        self.note(kind, name.as_str());
    }

    /// Notes whether the node is as the flags want it, if that has changed.
    pub(super) fn note_ready(&mut self, ready: &Result<(), NotReady>) {
        if self.scraper.is_some() && self.config.page != PageFor::Off && *ready != Err(NotReady::Starting) {
            self.events.readiness(ready.as_ref().err().map(ToString::to_string), monotonic_ns());
        }
    }

    /// What is read by, and with.
    fn reading(&mut self) -> Option<(Arc<Scraper>, Node, VecDeque<u64>)> {
        let scraper = Arc::clone(self.scraper.as_ref()?);
        let mut node = self.judges();
        node.metered = node.threshold.is_some();
        node.tick_ns = tick_ns();
        match self.links_source.addresses() {
            Ok(addresses) => node.addresses = addresses,
            Err(error) => debug!(%error, "flows that end on this node can't be told from forwarded ones"),
        }
        let marked = self.crossings.as_mut().map(Crossings::take_marks).unwrap_or_default();
        Some((scraper, node, marked))
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
            threshold: self.config.rules.threshold_in_force(),
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
