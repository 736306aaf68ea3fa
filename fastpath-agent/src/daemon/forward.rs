//! Forwarding ahead of the flowtable (`--forward=peer`): tells the programs which interfaces take part, and that they have to
//! ask again. An interface that something was announced of takes no part until it was read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use fastpath_common::forward;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Agent, at, host::Host};
use crate::{
    core::{
        link::table::LinkTable,
        model::{IfIndex, Link},
        peer::{self, Chains, NoForwarding, OtherEnd, Surface},
    },
    kernel::{
        bpf::FlowEyes,
        forward_monitor::{ForwardMonitor, Heard},
        misread_routes::{self, Announced},
        node_monitor::NodeEvent,
        surface,
    },
};

/// From an announcement to the reading: one change is often several.
const DELAY_MS: u64 = 20;
/// Least time between two readings.
const GAP_MS: u64 = 100;

/// What is known of interfaces.
#[derive(Default)]
pub(super) struct Forwarding {
    surfaces: BTreeMap<IfIndex, Surface>,
    /// To be read again; `None`: all.
    stale: Option<BTreeSet<IfIndex>>,
    /// Whether anything may be forwarded, by the last reading of other programs' tables; absent while a newer one is awaited.
    chains: Option<Result<Chains, NoForwarding>>,
    /// Interfaces to which routes lead that a program's look-up misreads; absent while they have to be read.
    misread: Option<BTreeSet<IfIndex>>,
    due: Option<u64>,
    read_at: u64,
    said: Option<String>,
    /// Always there; only a default has none.
    monitor: Option<ForwardMonitor>,
}

impl Forwarding {
    /// Begins to listen; nothing is known yet. `None` if it can't (which is logged).
    pub(super) fn open() -> Option<Self> {
        let failed = |error: &io::Error| {
            warn!(
                "packets take the flowtable's way, none is forwarded: pods and IPsec policies can't be heard of: {error} (it \
                 takes CAP_NET_BROADCAST)"
            );
        };
        let monitor = ForwardMonitor::open().inspect_err(failed).ok()?;
        Some(Self { monitor: Some(monitor), ..Self::default() })
    }

    /// The time for a reading, or an announcement; never where nothing is forwarded. Cancelling it loses nothing.
    pub(super) async fn next(forwarding: &mut Option<Self>, started: Instant) -> Happened {
        let Some(forwarding) = forwarding else { return std::future::pending().await };
        let Some(monitor) = &mut forwarding.monitor else { return std::future::pending().await };
        tokio::select! {
            () = at(started, forwarding.due) => Happened::Due,
            heard = monitor.next() => Happened::Heard(heard),
        }
    }

    fn schedule(&mut self, now: u64) {
        self.due.get_or_insert((now + DELAY_MS).max(self.read_at + GAP_MS));
    }

    /// Each interface's part.
    fn parts(&self, links: &LinkTable) -> BTreeMap<IfIndex, u64> {
        let Some(Ok(chains)) = &self.chains else { return BTreeMap::new() };
        let is_stale = |index| self.stale.as_ref().is_none_or(|stale| stale.contains(index));
        let part = |link: &Link, surface: &Surface| {
            let from = peer::from(link, surface, chains).map_or(0, |()| forward::IN);
            let to = |[a, b, c, d, e, f]: [u8; 6]| {
                forward::OUT | forward::address([[a, b], [c, d], [e, f]].map(u16::from_ne_bytes))
            };
            from | peer::to(link, surface, chains, self.misread.as_ref()).map_or(0, to)
        };
        let known = self.surfaces.iter().filter(|(index, _)| !is_stale(index));
        let parts = known.filter_map(|(index, surface)| Some((*index, part(links.get(*index)?, surface))));
        parts.filter(|(_, part)| *part != 0).collect()
    }

    fn tell(&mut self, eyes: &mut dyn FlowEyes, links: &LinkTable) {
        if let Err(error) = eyes.forward_between(&self.parts(links)) {
            let error = error.to_string();
            if self.said.as_ref() != Some(&error) {
                warn!("forwarding can't be told what has changed: {error}");
            }
            self.said = Some(error);
        }
    }
}

/// What [`Forwarding`] waits for.
pub(super) enum Happened {
    /// It is time to read what was announced.
    Due,
    /// Something that only forwarding has to know, or that can't be heard of any more.
    Heard(io::Result<Heard>),
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Something that the kernel's look-ups answer for.
    Anything,
    /// Something that only the kernel itself judges by.
    Judged,
    /// An interface, or what is attached to it.
    Interface(IfIndex),
    /// Chains at interfaces: other programs' tables are about to be read again.
    Chains,
    /// What is in pods.
    Pods,
    /// Routes that a program's look-up misreads.
    Routes,
    /// It isn't known what.
    Everything,
}

impl Change {
    /// What an event changes.
    pub(super) fn of(event: &NodeEvent) -> Self {
        match event {
            NodeEvent::RouteRules => Self::Chains,
            NodeEvent::Routes | NodeEvent::Forwarding(_) => Self::Judged,
            NodeEvent::TrafficControl(Some(index)) => Self::Interface(*index),
            NodeEvent::TrafficControl(None) | NodeEvent::Overrun => Self::Everything,
        }
    }
}

impl<H: Host> Agent<H> {
    /// Has the programs ask again, and leaves out what may have changed until it was read.
    pub(super) fn forwarding_changed(&mut self, change: Change) {
        let now = self.now();
        let (Some(forwarding), Some(watch)) = (&mut self.forwarding, &mut self.watch) else { return };
        match change {
            Change::Anything | Change::Judged => {
                if let Err(error) = watch.eyes().ask_again(change == Change::Judged) {
                    debug!(%error, "forwarding wasn't told to ask again");
                }
                return;
            }
            Change::Interface(index) => {
                if let Some(stale) = &mut forwarding.stale {
                    stale.insert(index);
                }
            }
            Change::Chains => forwarding.chains = None,
            Change::Pods => forwarding.stale = None,
            Change::Routes => forwarding.misread = None,
            Change::Everything => {
                (forwarding.stale, forwarding.chains, forwarding.misread) = (None, None, None);
            }
        }
        forwarding.tell(watch.eyes(), &self.links);
        forwarding.schedule(now);
    }

    /// Other programs' tables and policy rules were read.
    pub(super) fn forwarding_surrounded(&mut self) {
        let (Some(forwarding), Some(watch), Some(observer)) =
            (&mut self.forwarding, &mut self.watch, &self.observer)
        else {
            return;
        };
        let Some(chains) = observer.known().filter(|_| !observer.awaits_rules()).map(peer::chains) else {
            return;
        };
        if let Err(reason) = &chains
            && forwarding.chains.as_ref() != Some(&chains)
        {
            warn!("packets take the flowtable's way, none is forwarded: {reason}");
        }
        forwarding.chains = Some(chains);
        forwarding.tell(watch.eyes(), &self.links);
    }

    /// Begins, with all that is to be read.
    pub(super) fn start_forwarding(&mut self) {
        let known = self.observer.as_ref().and_then(|observer| observer.known().map(peer::chains));
        let Some(forwarding) = &mut self.forwarding else { return };
        // Without a ruleset of its own the agent knows of no other one, and there is nothing to forward.
        forwarding.chains = known;
        self.read_surfaces();
    }

    /// Does what is due, or takes note of an announcement.
    pub(super) fn forwarding_event(&mut self, happened: Happened) {
        match happened {
            Happened::Due => self.read_surfaces(),
            Happened::Heard(Ok(Heard::OtherEnds(ends))) => {
                for (of, peer) in ends {
                    let said = peer.map_or(OtherEnd::Here, OtherEnd::There);
                    let is_veth = self.links.get(of).is_some_and(|link| link.kind.as_deref() == Some("veth"));
                    let known = self.forwarding.as_ref().and_then(|forwarding| forwarding.surfaces.get(&of));
                    if is_veth && known.is_some_and(|known| known.other_end != said) {
                        self.forwarding_changed(Change::Interface(of));
                    }
                }
            }
            Happened::Heard(Ok(Heard::Lost)) => self.forwarding_changed(Change::Pods),
            Happened::Heard(Ok(Heard::Routes(routes))) => self.misread_routes_changed(&routes),
            Happened::Heard(Ok(Heard::IpsecPolicy)) => self.forwarding_changed(Change::Judged),
            Happened::Heard(Err(error)) => {
                warn!("nothing is forwarded any more: pods and IPsec policies can't be heard of: {error}");
                self.forwarding_changed(Change::Everything);
                self.forwarding = None;
            }
        }
    }

    /// Interfaces that such a route leads to take no part from now on. They do again once it is known that no other one does: only
    /// veths are worth that reading.
    fn misread_routes_changed(&mut self, routes: &[Announced]) {
        let Some(forwarding) = &mut self.forwarding else { return };
        let Some(misread) = &mut forwarding.misread else { return };
        let links = &self.links;
        let is_veth =
            |index: &IfIndex| links.get(*index).is_some_and(|link| link.kind.as_deref() == Some("veth"));
        let (mut more, mut fewer) = (false, routes.is_empty());
        for route in routes {
            match route {
                Announced::Came(to) => to.iter().for_each(|index| more |= misread.insert(*index)),
                Announced::Went(to) => {
                    fewer |= to.iter().any(|index| is_veth(index) && misread.contains(index))
                }
            }
        }
        if fewer {
            self.forwarding_changed(Change::Routes);
        } else if more && let Some(watch) = &mut self.watch {
            forwarding.tell(watch.eyes(), &self.links);
        }
    }

    /// Reads the interfaces that something was announced of, and routes where that is needed.
    pub(super) fn read_surfaces(&mut self) {
        let now = self.now();
        let (Some(forwarding), Some(watch)) = (&mut self.forwarding, &mut self.watch) else { return };
        (forwarding.due, forwarding.read_at) = (None, now);
        match forwarding.stale.replace(BTreeSet::new()) {
            Some(stale) => {
                forwarding.surfaces.retain(|index, _| !stale.contains(index));
                let links = stale.iter().filter_map(|index| self.links.get(*index));
                forwarding.surfaces.extend(surface::read(links, &self.config.pin_path));
            }
            None => forwarding.surfaces = surface::read(self.links.iter(), &self.config.pin_path),
        }
        if forwarding.misread.is_none() {
            let read = misread_routes::read();
            forwarding.misread =
                read.inspect_err(|error| warn!("nothing is forwarded: routes can't be read: {error}")).ok();
        }
        forwarding.tell(watch.eyes(), &self.links);
    }
}
