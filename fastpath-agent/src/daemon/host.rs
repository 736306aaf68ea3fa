//! What the loop depends on: facilities of the kernel, each behind a trait, and the user's orders. [`Linux`] is the real one;
//! tests have a script.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use tracing::warn;

use super::{
    cleanup,
    crossings::{self, Crossings},
    readers::Readers,
    sandbox,
};
use crate::{
    cli::EbpfMode,
    config::Config,
    core::threshold::Lengths,
    kernel::{
        LinkSource, Neighbourhood, Ruleset, RulesetMonitor,
        bpf::{self, Chatter, FlowEyes, Hook, LoadConfig},
        clock::monotonic_ns,
        file_watch::FileWatch,
        flow_source::{FlowSource, Flows},
        lengths,
        links::Links,
        memory,
        module_monitor::ModuleMonitor,
        nft::{Monitor, Nft},
        node_monitor::NodeMonitor,
    },
};

/// A node.
pub trait Host {
    /// Its ruleset.
    type Ruleset: Ruleset;
    /// Announcements of it.
    type Monitor: RulesetMonitor;
    /// Its links.
    type Links: LinkSource;
    /// What else decides over packets.
    type Neighbourhood: Neighbourhood;
    /// Its flows.
    type Flows: FlowSource;
    /// What the agent is told.
    type Orders: Orders;

    /// Loads the programs; `None` if that isn't wanted or fails (which is logged).
    fn programs(&self, config: &Config) -> Option<Box<dyn FlowEyes>>;

    /// For how many ms the programs have had their threshold; `None` if it was never changed.
    fn threshold_age_ms(&self, config: &Config) -> Option<u64>;

    /// Follows flows that cross the threshold; `None` if that fails (which is logged).
    fn crossings(&self, config: &Config) -> Option<Crossings<Self::Flows>>;

    /// How many packets its flows had, those with one of `addresses` left out; comes when it is counted.
    fn lengths(&self, config: &Config, addresses: BTreeSet<IpAddr>) -> oneshot::Receiver<Lengths>;

    /// Says which kernel modules are loaded; `None` if it can't be listened to.
    fn modules(&self) -> Option<ModuleMonitor>;

    /// Gives up the privileges that only starting took.
    fn confine(&self, config: &Config);

    /// Gives back memory that only starting took.
    fn give_back(&self);
}

/// What people, or the service manager, tell the agent.
pub trait Orders {
    /// The next order. Cancelling it loses nothing.
    fn next(&mut self) -> impl Future<Output = Order>;
}

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// To end, by the signal of this name.
    Stop(&'static str),
    /// To read the files of exclusions and mode again.
    Reload,
    /// To read the file of the mode again.
    Mode,
}

/// Signals, and the file of the mode.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    mode: Option<FileWatch>,
}

impl Signals {
    /// From here on they end nothing by themselves.
    pub fn open(config: &Config) -> std::io::Result<Self> {
        let watch = |file: &PathBuf| {
            let failed = |error| warn!("{}: changes are only read on SIGHUP: {error}", file.display());
            FileWatch::open(file).map_err(failed).ok()
        };
        Ok(Self {
            mode: config.mode.file.as_ref().filter(|_| !config.once).and_then(watch),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Orders for Signals {
    async fn next(&mut self) -> Order {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Order::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Order::Stop("SIGINT"),
            _ = self.hangup.recv() => Order::Reload,
            () = changed(&mut self.mode) => Order::Mode,
        }
    }
}

async fn changed(file: &mut Option<FileWatch>) {
    match file {
        Some(watch) => {
            if let Err(error) = watch.changed().await {
                warn!("the mode is only read again on SIGHUP: {error}");
                *file = None;
            }
        }
        None => std::future::pending().await,
    }
}

/// The node that the agent runs on.
pub struct Linux;

impl Host for Linux {
    type Ruleset = Nft;
    type Monitor = Monitor;
    type Links = Links;
    type Neighbourhood = NodeMonitor;
    type Flows = Flows;
    type Orders = Signals;

    fn programs(&self, config: &Config) -> Option<Box<dyn FlowEyes>> {
        let hook = match config.ebpf {
            EbpfMode::Off => {
                cleanup::remove_leftovers(config);
                return None;
            }
            EbpfMode::Tc => Hook::Tc,
            EbpfMode::Xdp => Hook::Xdp,
            EbpfMode::XdpGeneric => Hook::XdpGeneric,
        };
        let load = LoadConfig {
            pin_path: config.pin_path.clone(),
            max_flows: config.max_flows,
            // Otherwise nothing reads the signals.
            threshold: if crossings::wanted(config) { config.rules.threshold_in_force() } else { 0 },
            hook,
            forward: config.forward,
            chatter: match config.verbosity {
                ..7 => Chatter::Silent,
                7 => Chatter::Flows,
                8.. => Chatter::Packets,
            },
        };
        let mut eyes = bpf::load(&load).inspect_err(|error| warn!("flows are not watched: {error}")).ok()?;
        if let Some(log) = eyes.take_log() {
            tokio::spawn(log.follow());
        }
        Some(Box::new(eyes))
    }

    fn threshold_age_ms(&self, config: &Config) -> Option<u64> {
        let changed_ns = bpf::earlier_threshold(&config.pin_path).until_ns;
        (changed_ns > 0).then(|| monotonic_ns().saturating_sub(changed_ns) / 1_000_000)
    }

    fn crossings(&self, config: &Config) -> Option<Crossings<Flows>> {
        let flows = Flows::open(&config.pin_path)
            .inspect_err(|error| warn!(%error, "flows that cross the threshold are not followed"))
            .ok()?;
        let readers = Readers::open(&config.run_dir)
            .inspect_err(|error| warn!("`fastpath-agent flows --follow` has nothing to read: {error}"))
            .ok();
        Some(Crossings::new(config, flows, readers))
    }

    fn lengths(&self, config: &Config, addresses: BTreeSet<IpAddr>) -> oneshot::Receiver<Lengths> {
        lengths::count(config.pin_path.clone(), addresses)
    }

    fn modules(&self) -> Option<ModuleMonitor> {
        ModuleMonitor::open()
            .inspect_err(|error| tracing::debug!(%error, "loading of kernel modules can't be followed"))
            .ok()
    }

    fn confine(&self, config: &Config) {
        sandbox::when_started(config);
    }

    fn give_back(&self) {
        memory::give_back();
    }
}
