//! The running agent: waits for the kernel's events, and has the reconciler answer them.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    core::{
        flow::Node,
        history::{Events, Kind},
        link::table::LinkTable,
        model::TABLE,
        pace::{Outcome, Pace, Trigger},
        policy::others::Others,
        revalidate::Touched,
    },
    daemon::metrics::scrape::Scraper,
    kernel::{
        LinkSource, bpf, event_socket, export_file,
        links::{LinkError, Links},
        lock::{Lock, LockError},
        nft::{CommitError, Event, NftError},
        node_monitor::NodeMonitor,
        probe::Kernel,
    },
};

mod answers;
pub mod cleanup;
pub mod counts;
pub mod crossings;
pub mod export;
mod forward;
pub mod host;
mod links;
pub mod measure;
pub mod metrics;
mod offload;
mod one_way;
pub mod page;
pub mod question;
pub mod readers;
pub mod ready;
pub mod reconcile;
mod reload;
pub mod revalidate;
pub mod rules;
mod sandbox;
pub mod serve;
pub mod supervisor;
pub mod surroundings;
mod threshold;
mod turns;
mod unclear;
pub mod watch;

#[cfg(test)]
mod loop_tests;

use cleanup::TableCleanup;
use counts::Reconciles;
use crossings::Crossings;
use export::{Export, Exporting};
use forward::{Change, Forwarding};
use host::{Host, Linux, Order, Orders, Signals};
use offload::Offload;
use ready::{Inputs, NotReady};
use reconcile::Standing;
use revalidate::Emptied;
use serve::Server;
use supervisor::Supervisor;
use surroundings::{Observer, hear};
use threshold::Chooser;
use turns::Turns;
use watch::Watch;

/// Why the agent can't go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The ruleset can't be read or written at all.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Links can't be read.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// Programs or maps can't be removed.
    #[error(transparent)]
    Bpf(#[from] bpf::BpfError),
    /// Removing our table failed.
    #[error("cannot remove table inet {TABLE}: {0}")]
    Remove(#[source] CommitError),
    /// What an agent left in its run directory can't be removed.
    #[error(transparent)]
    Socket(#[from] event_socket::SocketError),
    /// The file of exported flow records can't be removed.
    #[error("cannot remove the file of exported flow records: {0}")]
    Exported(#[source] std::io::Error),
    /// Another agent runs here.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Signals can't be received.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// `--once` ended without the ruleset in place.
    #[error("the ruleset is not in place: {0}")]
    NotInPlace(&'static str),
}

/// Runs the agent until it is told to stop, or once.
pub async fn run(mut config: Config, kernel: &Kernel) -> Result<(), DaemonError> {
    // From here on SIGHUP doesn't end the agent.
    let orders = Signals::open(&config).map_err(DaemonError::Signals)?;
    info!(node = config.node, kernel = kernel.release, "fastpath-agent {}", env!("CARGO_PKG_VERSION"));
    let _lock = Lock::take()?;
    let server = match config.metrics_bind_address.filter(|_| !config.once) {
        // Acceleration is worth more than its numbers.
        Some(address) => {
            if !address.ip().is_loopback() && supervisor::by_systemd() {
                info!(%address, "metrics for other hosts: the service's unit needs IPAddressAllow= for them");
            }
            Server::open(address, config.page, config.names).await.inspect_err(|error| warn!("{error}")).ok()
        }
        None => None,
    };
    let export = if config.once { None } else { Export::open(&config).await };
    if config.rules.threshold_auto {
        config.rules.threshold = threshold::standing();
    }
    sandbox::before_start(&config);
    // Subscribes first and reads then, so that nothing is missed in between.
    let links = Links::open()?;
    let offload = Offload::open(&config, kernel)?;
    let neighbourhood = match &offload {
        Some(_) => Some(NodeMonitor::open().map_err(LinkError::Listen)?),
        None => None,
    };
    let mut agent = Agent::new(Linux, config, links, offload, neighbourhood)?;
    agent.server = server;
    agent.exported = export.as_ref().map(Export::counts);
    agent.exporting = export.map(Export::run);
    agent.lacks = kernel.lacks_flowtable().map(str::to_owned);
    agent.release.clone_from(&kernel.release);
    if agent.config.once {
        agent.reconcile(Trigger::Start)?;
        while agent.unwatched {
            agent.watch_links();
        }
        return agent.in_place();
    }
    agent.serve(orders).await?;
    if agent.config.cleanup_on_exit { agent.cleanup() } else { Ok(()) }
}

/// Waits until so many milliseconds after the start; without them for ever.
async fn at(started: Instant, due_ms: Option<u64>) {
    match due_ms {
        Some(due) => sleep_until(started + Duration::from_millis(due)).await,
        None => std::future::pending().await,
    }
}

struct Agent<H: Host> {
    host: H,
    config: Config,
    started: Instant,
    pace: Pace,
    links_source: H::Links,
    links: LinkTable,
    /// Why they couldn't be read when they should have been, until they are.
    links_unread: Option<String>,
    /// Absent where the kernel has no flowtable: then flows are only watched.
    offload: Option<Offload<H>>,
    /// Present with `offload`.
    observer: Option<Observer<H::Neighbourhood>>,
    watch: Option<Watch>,
    /// Whether programs have to be attached to more links.
    unwatched: bool,
    /// Until every link that was there at the start is watched.
    starting: bool,
    crossings: Option<Crossings<H::Flows>>,
    /// Absent unless packets are forwarded ahead of the flowtable.
    forwarding: Option<Forwarding>,
    /// Absent if nothing is served.
    server: Option<Server>,
    /// Absent if nothing is exported, as what it has counted.
    exporting: Option<Exporting>,
    exported: Option<Arc<export::Counts>>,
    /// Reads the kernel for them.
    scraper: Option<Arc<Scraper>>,
    /// Why this kernel can't offload flows, if it can't.
    lacks: Option<String>,
    release: String,
    /// In s since 1970, UTC.
    started_unix: f64,
    reconciles: Reconciles,
    /// Of links, and of the ruleset.
    overruns: [u64; 2],
    supervisor: Supervisor,
    /// Whether it was said that repairs wait.
    backing_off: bool,
    /// The surroundings have changed in a way that the next reconcile must respect.
    surroundings_changed: bool,
    /// Absent where the operator has chosen the threshold, or flows aren't watched.
    chooser: Option<Chooser>,
    /// For the page.
    events: Events,
}

impl<H: Host> Agent<H> {
    /// `offload` and `neighbourhood` are both there or both absent. All of them listen already.
    fn new(
        host: H,
        config: Config,
        mut links_source: H::Links,
        offload: Option<Offload<H>>,
        neighbourhood: Option<H::Neighbourhood>,
    ) -> Result<Self, DaemonError> {
        let started = Instant::now();
        let observer = neighbourhood.map(|source| Observer::new(source, host.modules(), &config, started));
        let links = links_source.list()?.into_iter().collect::<LinkTable>();
        let mut agent = Self {
            host,
            started,
            pace: Pace::default(),
            links_source,
            links,
            links_unread: None,
            offload,
            observer,
            watch: None,
            unwatched: false,
            starting: true,
            crossings: None,
            forwarding: None,
            server: None,
            lacks: None,
            exporting: None,
            exported: None,
            scraper: None,
            release: String::new(),
            started_unix: measure::unix_seconds(),
            reconciles: Reconciles::default(),
            overruns: [0; 2],
            supervisor: Supervisor::from_environment(),
            backing_off: false,
            surroundings_changed: false,
            chooser: None,
            events: Events::default(),
            config,
        };
        agent.look_around();
        Ok(agent)
    }

    /// Answers what happens until it is told to stop.
    async fn serve(&mut self, mut orders: impl Orders) -> Result<(), DaemonError> {
        self.pace.trigger(Trigger::Start, self.now());
        let turns = Turns::new();
        loop {
            let (due, trigger) = self.pace.next();
            turns.ended();
            tokio::select! {
                // Orders come first. Every future may be cancelled without losing anything.
                biased;
                () = turns.woken() => {}
                order = orders.next() => match order {
                    Order::Stop(signal) => {
                        info!(signal, cleanup = self.config.cleanup_on_exit, "stopping");
                        self.supervisor.stopping();
                        return Ok(());
                    }
                    Order::Reload => self.reload()?,
                    Order::Mode => self.follow_mode()?,
                },
                // Before the announcements, so that a storm of them can't put it off; pacing leaves them their turn.
                () = sleep_until(self.started + Duration::from_millis(due)) => {
                    if trigger == Trigger::SafetyNet {
                        self.distrust()?;
                        self.look_at_lengths();
                        if let Some(crossings) = &mut self.crossings {
                            crossings.look_for_lost();
                            if self.offload.as_ref().is_some_and(|offload| offload.reconciler.offloads().is_some()) {
                                crossings.look_at_helped();
                            }
                        }
                    }
                    self.reconcile(trigger)?;
                    self.sample();
                }
                () = at(self.started, self.offload.as_ref().and_then(|o| o.revalidation.due())) => self.revalidate()?,
                // Few, and asked at most sixteen at a time. Before the announcements for the same reason.
                question = Server::next(&mut self.server) => self.answer(question),
                happened = Forwarding::next(&mut self.forwarding, self.started) => self.forwarding_event(happened),
                () = at(self.started, self.supervisor.due()) => self.supervisor.alive(self.now()),
                event = self.links_source.next() => self.link_event(event?)?,
                event = Offload::next(&mut self.offload) => self.ruleset_event(event?)?,
                happened = Observer::next(&mut self.observer, self.started) => self.surroundings_event(happened)?,
                lengths = Chooser::next(&mut self.chooser) => self.choose_threshold(lengths.as_ref())?,
                () = export::go_on(&mut self.exporting), if !self.starting => {}
                () = Crossings::ready(&mut self.crossings) => self.follow_crossings().await?,
                // Last: everything else comes first.
                () = tokio::task::yield_now(), if self.unwatched => self.watch_links(),
            }
        }
    }

    /// Loads the programs, which takes longer than all else: the rules are in place before. Then nothing is left to do that
    /// takes more than `CAP_NET_ADMIN`.
    fn start_watching(&mut self) {
        self.load_programs();
        self.host.confine(&self.config);
        self.start_forwarding();
        self.follow_flows();
        // Most of what starting took: the kernel's types (BTF), above all. To attach to many links takes its time.
        self.host.give_back();
    }

    fn load_programs(&mut self) {
        self.watch = self.host.programs(&self.config).map(|eyes| Watch::new(eyes, &self.config));
        self.scraper = (self.server.as_ref())
            .map(|_| Arc::new(Scraper::new(self.config.pin_path.clone(), self.watch.is_some())));
        self.note(Kind::Started, env!("CARGO_PKG_VERSION"));
        let Some(watch) = &mut self.watch else {
            if self.config.rules.threshold_auto {
                warn!("the threshold stays {}: auto needs watched flows", self.config.rules.threshold);
            }
            return;
        };
        if watch.eyes().can_forward() {
            self.forwarding = Forwarding::open();
        }
        watch.take_over(&self.links);
        self.crossings = Some(&self.config)
            .filter(|config| crossings::wanted(config))
            .and_then(|config| self.host.crossings(config));
    }

    fn follow_flows(&mut self) {
        if let Some(crossings) = &mut self.crossings {
            if self.offload.is_none() {
                crossings.help_none();
            }
            crossings.look_for_lost();
            crossings.arm_old();
            if let Some(scraper) = &self.scraper {
                crossings.count(scraper.marks());
            }
        }
        let offloads = self.offload.as_ref().is_some_and(|offload| offload.bug.is_none());
        if self.config.rules.threshold_auto && offloads && self.watch.is_some() {
            self.chooser = Some(Chooser::new(self.host.threshold_age_ms(&self.config), self.now()));
            self.look_at_lengths();
        }
    }

    fn watch_links(&mut self) {
        if let Some(watch) = &mut self.watch {
            self.unwatched = watch.follow(&self.links);
        }
        if self.starting && !self.unwatched {
            self.starting = false;
            if let Some(watch) = &self.watch {
                info!(interfaces = watch.attached(), "flows are watched");
            }
            self.host.give_back();
        }
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn follow_crossings(&mut self) -> Result<(), DaemonError> {
        let (Some(crossings), Some(watch)) = (&mut self.crossings, &mut self.watch) else { return Ok(()) };
        if crossings.wants_node() {
            // Those that were read before do where they can't be read now.
            let addresses = self.links_source.addresses().unwrap_or_else(|error| {
                debug!(%error, "addresses can't be read; keeping the last ones");
                crossings.addresses()
            });
            crossings.judge_by(Node {
                addresses,
                ..offload::judges(&self.links, self.offload.as_ref(), &self.config)
            });
        }
        crossings.handle(watch.eyes());
        let streams = crossings.take_streams();
        if let (Some(offload), Some(wanted)) = (&mut self.offload, crossings.assistance()) {
            offload.reconciler.assist(wanted);
            self.pace.trigger(Trigger::Assist, self.now());
        }
        self.help_one_way(streams).await;
        // Readers get their turn, too.
        tokio::task::yield_now().await;
        Ok(())
    }

    fn ruleset_event(&mut self, event: Event) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(offload) = &mut self.offload else { return Ok(()) };
        let mut at_interfaces = false;
        let touched = match &event {
            Event::Overrun => {
                offload.revalidation.lost(&mut offload.monitor, offload.reconciler.ruleset())?
            }
            Event::Generation { .. } => {
                let observer = &mut self.observer;
                let ruleset = offload.reconciler.ruleset();
                offload.revalidation.touched(&mut offload.monitor, ruleset, |notice| {
                    at_interfaces |= Others::may_be_at_interface(notice);
                    hear(observer, notice);
                })?
            }
        };
        if let Some(observer) = &mut self.observer {
            if touched == Touched::EVERYTHING {
                observer.distrust();
            }
            observer.schedule(now);
            offload.revalidation.unsure(observer.awaits_rules());
        }
        if touched.forwarding {
            debug!(?event, "a change may concern offloaded flows");
            let trigger = match event {
                Event::Overrun => revalidate::Trigger::Overrun,
                Event::Generation { .. } => revalidate::Trigger::Ruleset,
            };
            offload.revalidation.changed(trigger, now);
        }
        self.forwarding_changed(match event {
            Event::Overrun => Change::Everything,
            Event::Generation { .. } if at_interfaces => Change::Chains,
            Event::Generation { .. } => Change::Anything,
        });
        let Some(offload) = &mut self.offload else { return Ok(()) };
        match event {
            Event::Overrun => self.overrun("ruleset"),
            // Of any generation: what all of them changed comes with the first one.
            Event::Generation { .. } if touched.own_table => {
                offload.reconciler.touched();
                // Perhaps by hand (`fastpath-agent revalidate`), which leaves nothing to reconcile.
                if let Some(crossings) = &mut self.crossings {
                    crossings.emptied();
                }
                self.pace.trigger(Trigger::Ruleset, now);
            }
            Event::Generation { generation, .. } => offload.reconciler.passed(generation),
        }
        Ok(())
    }

    /// Revalidates offloaded flows.
    fn revalidate(&mut self) -> Result<(), DaemonError> {
        let now = self.now();
        if let Some(offload) = &mut self.offload {
            let result = offload.reconciler.empty();
            debug!(?result, "revalidated offloaded flows");
            if let (Ok(Emptied::Done { .. }), Some(crossings)) = (&result, &mut self.crossings) {
                crossings.emptied();
            }
            let emptied = matches!(result, Ok(Emptied::Done { .. }));
            let trigger = offload.revalidation.ran(result, now)?;
            if emptied {
                self.note(Kind::Revalidated, trigger);
            }
        }
        Ok(())
    }

    fn reconcile(&mut self, trigger: Trigger) -> Result<(), DaemonError> {
        if self.links_unread.is_some() {
            self.reread_links();
        }
        let mut outcome = Outcome::Done;
        if let Some(offload) = &mut self.offload {
            let begun = Instant::now();
            let report = offload.reconciler.reconcile(trigger, &self.links)?;
            self.reconciles.ran(trigger, &report, begun.elapsed());
            debug!(%trigger, ?report, "reconciled");
            outcome = report.outcome;
            if let Some(crossings) = &mut self.crossings {
                crossings.postpone(&offload.reconciler.take_postponed());
            }
            let renewed = offload.reconciler.take_renewed();
            if let Some(crossings) = self.crossings.as_mut().filter(|_| renewed) {
                crossings.offloads_again();
            }
        }
        if outcome == Outcome::Repaired {
            self.note(Kind::Repaired, TABLE);
        }
        if outcome != Outcome::Failed {
            self.reconciled();
        }
        if trigger == Trigger::Start {
            self.start_watching();
        }
        self.watch_links();
        if self.links_unread.is_some() {
            outcome = Outcome::Failed;
        }
        self.pace.ran(outcome, self.now());
        let wait = self.pace.backing_off();
        if let (Some(wait), false) = (wait, self.backing_off) {
            warn!(
                wait_ms = wait,
                "another program keeps changing table {TABLE}: the agent puts it back ever more slowly, up to every 30 s. Find \
                 it with nft monitor trace, or in the log of the node's firewall"
            );
        }
        self.backing_off = wait.is_some();
        self.tell();
        Ok(())
    }

    /// Whether the node is as the flags want it.
    fn ready(&self) -> Result<(), NotReady> {
        let offload = self.offload.as_ref();
        ready::ready(&Inputs {
            threshold: self.config.rules.threshold_in_force(),
            lacks: self.lacks.as_deref(),
            bug: offload.and_then(|o| o.bug),
            standing: offload.and_then(|o| o.reconciler.standing()),
            failure: offload.and_then(|o| o.reconciler.failure()),
            watches: self.watch.as_ref().is_some_and(Watch::watches),
        })
    }

    /// What flows are judged by, but for addresses and clocks.
    fn judges(&self) -> Node {
        offload::judges(&self.links, self.offload.as_ref(), &self.config)
    }

    /// Tells the service manager what is so. An agent that has done all it can is started; what is amiss is in the status.
    fn tell(&mut self) {
        let ready = self.ready();
        self.note_ready(&ready);
        let (started, status) = match ready {
            Ok(()) => (true, self.standing()),
            Err(reason) => (reason.is_lasting(), reason.to_string()),
        };
        self.supervisor.report(started, status, self.now());
    }

    /// What a node that is ready does, in a line.
    fn standing(&self) -> String {
        let rules = self.offload.iter().flat_map(|offload| &offload.reconciler.surroundings().rules);
        if let Some(rule) = rules.into_iter().find(|rule| rule.leaves_everything_out()) {
            return format!("offloading no flow that passes {rule}, which wants every packet");
        }
        match self.offload.as_ref().and_then(|offload| offload.reconciler.offloads()) {
            Some((threshold, managed)) if threshold > 0 => {
                format!(
                    "offloading flows of more than {threshold} packets between {} interfaces",
                    managed.len()
                )
            }
            _ => "watching flows, offloading none".to_owned(),
        }
    }

    fn in_place(&self) -> Result<(), DaemonError> {
        match self.offload.as_ref().and_then(|o| o.reconciler.standing()) {
            Some(Standing::Right) => Ok(()),
            None => Err(DaemonError::NotInPlace("this kernel can't offload flows")),
            Some(Standing::Foreign) => {
                Err(DaemonError::NotInPlace("another program has a table of that name"))
            }
            Some(Standing::Wrong) => Err(DaemonError::NotInPlace("the kernel refused it")),
        }
    }
}

impl Agent<Linux> {
    fn cleanup(self) -> Result<(), DaemonError> {
        let table = match self.offload {
            Some(offload) => cleanup::remove_table(&mut offload.reconciler.into_ruleset())?,
            None => TableCleanup::Absent,
        };
        drop(self.watch);
        let ebpf = bpf::cleanup(&self.config.pin_path)?;
        export_file::remove(&self.config.run_dir).map_err(DaemonError::Exported)?;
        info!(table = ?table, ebpf = ?ebpf, "cleaned up");
        Ok(())
    }
}
