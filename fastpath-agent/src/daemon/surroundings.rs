//! Follows what other programs have on this node: what the kernel announces is read again, gathered for some milliseconds
//! and on another thread, so that the loop goes on; an overrun and the safety net have all of it read. The result goes to
//! the reconciler, and offloaded flows are revalidated if needed.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use tracing::{debug, warn};

use super::{Agent, DaemonError, Offload, at, forward::Change, host::Host, revalidate::Trigger, rules::Said};
use crate::{
    config::Config,
    core::{
        forwarding::Settings,
        link::{
            table::{LinkChange, LinkEvent, LinkTable},
            watch::uppers,
        },
        model::{IfIndex, Link},
        pace,
        policy::{
            concern::Concern,
            ignore::Ignore,
            known::{Known, Parts},
            moments::Moment,
            others::Others,
        },
        recurring::Need,
        revalidate::Notice,
        surroundings::Surroundings,
    },
    kernel::{
        Neighbourhood,
        alarm::Alarm,
        links::LinkError,
        module_monitor::ModuleMonitor,
        node_monitor::NodeEvent,
        surroundings::{Ask, Report},
    },
};

/// From the first announcement to the reading: one change is often several.
const DELAY_MS: u64 = 20;
/// Least time between two readings, whatever is announced.
const GAP_MS: u64 = 250;
/// When it is tried again what couldn't be read.
const RETRY_MS: u64 = 5_000;
/// From one look for tables of iptables-legacy to the next.
const LEGACY_MS: u64 = 1_000;

/// What is known of other programs, and which parts must be read again.
pub struct Observer<N> {
    source: N,
    settings: Settings,
    pin_path: PathBuf,
    /// Rules that flows may bypass.
    ignored: Arc<[Ignore]>,
    /// What was said of rules.
    said: Said,
    /// Absent while a thread reads.
    known: Option<Known>,
    /// The tables in it, which stay here.
    tables: Option<Arc<Others>>,
    reading: Option<(JoinHandle<(Known, Report)>, Parts)>,
    wanted: Parts,
    due: Option<u64>,
    read_at: u64,
    /// What couldn't be read, as last reported.
    failures: Vec<String>,
    legacy: Legacy,
    /// The point from which on times are counted.
    started: Instant,
    clock: Clock,
}

/// Moments at which rules change their minds by the clock.
#[derive(Default)]
struct Clock {
    moments: BTreeSet<Moment>,
    /// Absent while there are none.
    alarm: Option<Alarm>,
}

impl Clock {
    /// Follows these from now on. False if that can't be done.
    fn follow(&mut self, moments: &BTreeSet<Moment>) -> bool {
        self.moments.clone_from(moments);
        if moments.is_empty() {
            self.alarm = None;
            return true;
        }
        let set = match &self.alarm {
            Some(_) => self.set(),
            None => Alarm::open().and_then(|alarm| {
                self.alarm = Some(alarm);
                self.set()
            }),
        };
        set.inspect_err(|error| self.fails(error)).is_ok()
    }

    fn set(&self) -> io::Result<()> {
        let Some(alarm) = &self.alarm else { return Ok(()) };
        alarm.set(|now| self.moments.iter().filter_map(|moment| moment.next(now)).min())
    }

    fn fails(&mut self, error: &io::Error) {
        warn!(%error, "the clock can't be followed: flows are revalidated at intervals");
        self.alarm = None;
    }
}

/// Looks for tables of iptables-legacy, which the kernel doesn't announce; only where it can have some.
struct Legacy {
    /// Says when such a kernel module was loaded; `None` if that can't be followed.
    modules: Option<ModuleMonitor>,
    /// Those that were found last.
    tables: Option<BTreeSet<String>>,
    look_at: Option<u64>,
}

impl Legacy {
    /// Read again: `tables` are there.
    fn read(&mut self, tables: &Option<BTreeSet<String>>, source: &impl Neighbourhood, now: u64) {
        self.tables.clone_from(tables);
        self.look_at = source.legacy_tables().map(|_| now + LEGACY_MS);
    }

    /// Looks, if it is time; true if others are there than before.
    fn differs(&mut self, source: &impl Neighbourhood, now: u64) -> bool {
        if self.look_at.is_none_or(|at| at > now) {
            return false;
        }
        let found = source.legacy_tables();
        self.look_at = Some(now + LEGACY_MS);
        found.map_or_else(|| Some(BTreeSet::new()), Result::ok) != self.tables
    }
}

impl<N: Neighbourhood> Observer<N> {
    /// Listens to `source` and `modules`, and has read nothing yet. `started` is the point from which on times are counted.
    pub fn new(source: N, modules: Option<ModuleMonitor>, config: &Config, started: Instant) -> Self {
        let mut observer = Self {
            source,
            settings: Settings::default(),
            pin_path: config.pin_path.clone(),
            ignored: Arc::clone(&config.rules.ignored),
            said: Said::default(),
            known: Some(Known::default()),
            tables: None,
            reading: None,
            wanted: Parts::all(),
            due: None,
            read_at: 0,
            failures: Vec::new(),
            legacy: Legacy { modules, tables: None, look_at: None },
            started,
            clock: Clock::default(),
        };
        observer.read_settings();
        observer
    }

    /// Settings of forwarding, read again; true if one isn't what was announced last.
    fn read_settings(&mut self) -> bool {
        match self.source.settings() {
            Ok(announced) => {
                let before = std::mem::replace(&mut self.settings, Settings::read(announced));
                before.differs(&self.settings)
            }
            Err(error) => {
                warn!(%error, "forwarding settings (sysctl) can't be read: each event about one counts as a change");
                self.settings = Settings::default();
                false
            }
        }
    }

    /// Reads all of it at once, as at the start.
    pub fn read_now(&mut self, links: &LinkTable) -> Surroundings {
        let ask = self.ask(links);
        let mut known = self.known.take().unwrap_or_default();
        let report = (self.source.reader())(&mut known, &ask);
        self.take(known, report, 0)
    }

    fn ask(&mut self, links: &LinkTable) -> Ask {
        let parts = std::mem::take(&mut self.wanted);
        self.due = None;
        Ask {
            parts,
            uppers: uppers(links),
            started: self.started.into_std(),
            pin_path: self.pin_path.clone(),
        }
    }

    /// What the rules make necessary that change by themselves.
    fn need(&mut self, rules: &[Concern]) -> Need {
        let mut need = self.known.as_ref().map(|known| known.need(rules)).unwrap_or_default();
        // Flows that are revalidated at intervals don't need the clock.
        let moments = if need.anytime { BTreeSet::new() } else { need.moments.clone() };
        need.anytime |= !self.clock.follow(&moments);
        need
    }

    fn take(&mut self, known: Known, report: Report, now: u64) -> Surroundings {
        let found = known.surroundings(&self.ignored);
        self.said.say(&found.rules);
        self.tables.clone_from(&known.tables);
        self.legacy.read(&known.legacy, &self.source, now);
        self.known = Some(known);
        self.read_at = now;
        for failure in &report.failures {
            if !self.failures.contains(failure) {
                warn!("{failure}");
            }
        }
        if report.unsettled || !report.failures.is_empty() {
            self.wanted.all = true;
            self.due = Some(now + if report.unsettled { GAP_MS } else { RETRY_MS });
        }
        self.failures = report.failures;
        if !self.wanted.is_empty() {
            self.schedule(now);
        }
        debug!(?found, "read the surroundings");
        found
    }

    /// Takes note of a change of the ruleset.
    pub fn heard(&mut self, notice: &Notice<'_>) {
        let reading = self.reading.as_ref().map(|(_, parts)| parts);
        self.wanted.note(notice, self.tables.as_deref(), reading);
    }

    /// Takes note of a change of the links.
    pub fn link_changed(&mut self, index: IfIndex, links: &LinkTable) {
        let master = links.get(index).and_then(|link| link.master);
        self.wanted.programs.extend([Some(index), master].into_iter().flatten());
    }

    /// Everything must be read again.
    pub fn distrust(&mut self) {
        self.wanted = Parts::all();
    }

    /// Sets the time of the next reading, if one is wanted.
    pub fn schedule(&mut self, now: u64) {
        if !self.wanted.is_empty() {
            let due = (now + DELAY_MS).max(self.read_at + GAP_MS);
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// What was read; absent while a thread reads.
    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// Whether all that was announced has been read.
    pub fn is_current(&self) -> bool {
        self.reading.is_none() && self.wanted.is_empty() && self.known.is_some()
    }

    /// Whether rules or sets were announced that haven't been read yet.
    pub fn awaits_rules(&self) -> bool {
        let Parts { all, tables, sets, .. } = &self.wanted;
        *all || !tables.is_empty() || !sets.is_empty()
    }

    /// Time of the next reading; `None` while a thread reads.
    pub fn due(&self) -> Option<u64> {
        let due = self.due.into_iter().chain(self.legacy.look_at).min();
        due.filter(|_| self.reading.is_none())
    }

    /// Does what is due: looks for legacy tables, or has a thread read what is wanted. True if other legacy tables are there.
    fn on_time(&mut self, links: &LinkTable, now: u64) -> bool {
        let differs = self.legacy.differs(&self.source, now);
        if differs {
            self.wanted.legacy = true;
            self.due = Some(now);
        }
        if self.due.is_some_and(|due| due <= now) {
            self.begin(links);
        }
        differs
    }

    /// Has a thread read what is wanted.
    fn begin(&mut self, links: &LinkTable) {
        let mut ask = self.ask(links);
        let Some(mut known) = self.known.take() else { return };
        ask.parts.programs.retain(|index| ask.uppers.contains_key(index));
        let same = known.uppers.keys().eq(ask.uppers.keys())
            && known.uppers.iter().zip(ask.uppers.values()).all(|((_, upper), name)| upper.name == *name);
        if ask.parts.is_empty() && same {
            self.known = Some(known);
            return;
        }
        let parts = ask.parts.clone();
        let read = self.source.reader();
        let task = spawn_blocking(move || {
            let report = read(&mut known, &ask);
            (known, report)
        });
        self.reading = Some((task, parts));
    }

    /// The next event, the end of a reading, or the time for one; never without an observer. Cancelling
    /// it loses nothing.
    pub(super) async fn next(observer: &mut Option<Self>, started: Instant) -> Happened {
        let Some(observer) = observer else { return std::future::pending().await };
        let due = observer.due();
        let Self { source, reading, legacy, clock, .. } = observer;
        let strikes = async {
            match &mut clock.alarm {
                Some(alarm) => alarm.next().await,
                None => std::future::pending().await,
            }
        };
        let module = async {
            match &mut legacy.modules {
                Some(modules) => modules.next().await,
                None => std::future::pending().await,
            }
        };
        let read = async {
            match reading {
                Some((task, _)) => task.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = at(started, due) => Happened::Due,
            result = read => {
                observer.reading = None;
                // A thread that panicked has taken with it what was known.
                Happened::Read(result.ok())
            }
            struck = strikes => Happened::Struck(struck),
            events = source.next() => Happened::Announced(events),
            loaded = module => Happened::ModuleLoaded(loaded),
        }
    }

    /// Takes note of events; returns the trigger if offloaded flows have to be revalidated.
    fn announced(&mut self, events: Vec<NodeEvent>) -> (Option<Trigger>, bool) {
        let (mut trigger, mut lost) = (None, false);
        for event in events {
            match event {
                NodeEvent::RouteRules => {
                    self.wanted.route_rules = true;
                    trigger = Some(Trigger::RouteRules);
                }
                NodeEvent::Routes => trigger = trigger.or(Some(Trigger::Routes)),
                NodeEvent::Forwarding(announced) => {
                    let changed = announced.into_iter().filter(|one| self.settings.note(*one)).count();
                    trigger = trigger.or((changed > 0).then_some(Trigger::Forwarding));
                }
                NodeEvent::TrafficControl(Some(index)) => drop(self.wanted.programs.insert(index)),
                NodeEvent::TrafficControl(None) => self.wanted.all_programs = true,
                NodeEvent::Overrun => lost = true,
            }
        }
        (trigger, lost)
    }
}

/// What an [`Observer`] waits for.
pub(super) enum Happened {
    /// It is time to read what was announced.
    Due,
    /// Something was announced.
    Announced(std::io::Result<Vec<NodeEvent>>),
    /// The clock reached a moment, or was set; or it can't be followed any more.
    Struck(io::Result<()>),
    /// A kernel module was loaded, or that can't be followed any more.
    ModuleLoaded(std::io::Result<()>),
    /// A thread has read what was wanted; `None` if it didn't get to its end.
    Read(Option<(Known, Report)>),
}

/// Takes note of a change of the ruleset.
pub(super) fn hear<N: Neighbourhood>(observer: &mut Option<Observer<N>>, notice: &Notice<'_>) {
    if let Some(observer) = observer {
        observer.heard(notice);
    }
}

/// Passes on what was read; returns whether it is new, which takes a reconcile.
fn surround<H: Host>(
    offload: &mut Offload<H>,
    observer: &mut Observer<H::Neighbourhood>,
    found: Surroundings,
    now: u64,
) -> bool {
    offload.revalidation.recurs(observer.need(&found.rules), now);
    offload.revalidation.unsure(observer.awaits_rules());
    offload.reconciler.surrounded_by(found)
}

impl<H: Host> Agent<H> {
    /// Reads what other programs have before anything is written.
    pub(super) fn look_around(&mut self) {
        if let (Some(offload), Some(observer)) = (&mut self.offload, &mut self.observer) {
            let found = observer.read_now(&self.links);
            surround(offload, observer, found, 0);
        }
    }

    /// Reads everything about other programs again, and compares.
    pub(super) fn distrust_surroundings(&mut self) -> Result<(), DaemonError> {
        let now = self.now();
        let (Some(offload), Some(observer)) = (&mut self.offload, &mut self.observer) else { return Ok(()) };
        let touched =
            offload.revalidation.reread(&mut offload.monitor, offload.reconciler.ruleset(), |notice| {
                observer.heard(notice);
            })?;
        if touched.forwarding {
            offload.revalidation.changed(Trigger::Overrun, now);
        }
        if observer.read_settings() {
            offload.revalidation.changed(Trigger::Forwarding, now);
        }
        observer.distrust();
        observer.schedule(now);
        self.forwarding_changed(Change::Everything);
        Ok(())
    }

    /// A link was announced, maybe with nothing new that we look at, but with a program at XDP.
    pub(super) fn link_announced(&mut self, event: &LinkEvent) {
        let now = self.now();
        if let LinkEvent::Changed(link) = event {
            self.forwarding_changed(Change::Interface(link.index));
            // Chains at interfaces are known by name.
            let is_renamed = self.links.get(link.index).is_some_and(|known| known.name != link.name);
            if is_renamed && self.forwarding.is_some() {
                self.forwarding_changed(Change::Chains);
                if let Some(observer) = &mut self.observer {
                    observer.distrust();
                    observer.schedule(now);
                }
            }
        }
        let (Some(observer), LinkEvent::Changed(link)) = (&mut self.observer, event) else { return };
        if self.links.get(link.index) == Some(link) {
            observer.link_changed(link.index, &self.links);
            observer.schedule(now);
        }
    }

    /// A link changed: with another master or name its packets may meet other rules, and it may be on top of other links.
    pub(super) fn link_surroundings(&mut self, change: &LinkChange) {
        let now = self.now();
        let (Some(offload), Some(observer)) = (&mut self.offload, &mut self.observer) else { return };
        let index = match change {
            LinkChange::Appeared(index) => *index,
            LinkChange::Changed { before: link, .. } | LinkChange::Gone(link) => link.index,
        };
        observer.link_changed(index, &self.links);
        observer.schedule(now);
        if let LinkChange::Changed { before, .. } = change {
            let differs = self.links.get(index).is_some_and(|link| decides_otherwise(before, link));
            // One that isn't in the flowtable has no offloaded flows, like that of a pod that is just being set up.
            let is_managed = || {
                offload.reconciler.offloads().is_some_and(|(_, mut all)| all.any(|managed| managed == index))
            };
            if differs && is_managed() {
                offload.revalidation.changed(Trigger::Link, now);
            }
        }
    }

    /// Links were read again: what wasn't announced counts as if it had been.
    pub(super) fn compare_links(&mut self, before: &LinkTable) {
        let now = self.now();
        let moved =
            |link: &Link| before.get(link.index).is_some_and(|before| decides_otherwise(before, link));
        if let (Some(offload), true) = (&mut self.offload, self.links.iter().any(moved)) {
            offload.revalidation.changed(Trigger::Link, now);
        }
    }

    /// Handles an event, the time for a reading, or its end.
    pub(super) fn surroundings_event(&mut self, happened: Happened) -> Result<(), DaemonError> {
        let now = self.now();
        if let Happened::Announced(Ok(events)) = &happened {
            events.iter().for_each(|event| self.forwarding_changed(Change::of(event)));
            self.verify_programs(events.iter().filter_map(|event| match event {
                NodeEvent::TrafficControl(index) => *index,
                _ => None,
            }));
        }
        let (Some(offload), Some(observer)) = (&mut self.offload, &mut self.observer) else { return Ok(()) };
        match happened {
            Happened::Due => {
                if observer.on_time(&self.links, now) {
                    offload.revalidation.changed(Trigger::Surroundings, now);
                }
            }
            Happened::Struck(result) => {
                offload.revalidation.strikes(now);
                if let Err(error) = result.and_then(|()| observer.clock.set()) {
                    observer.clock.fails(&error);
                    offload.revalidation.unsure(true);
                }
            }
            Happened::ModuleLoaded(Ok(())) => {
                if observer.source.legacy_tables().is_some() {
                    observer.legacy.look_at.get_or_insert(now);
                }
            }
            Happened::ModuleLoaded(Err(error)) => {
                debug!(%error, "loading of kernel modules can't be followed any more");
                observer.legacy.modules = None;
            }
            Happened::Announced(events) => {
                let (trigger, lost) = observer.announced(events.map_err(LinkError::Listen)?);
                if let Some(trigger) = trigger {
                    debug!(?trigger, "a change may concern offloaded flows");
                    offload.revalidation.changed(trigger, now);
                }
                observer.schedule(now);
                if lost {
                    // Anything may have changed.
                    offload.revalidation.changed(Trigger::Overrun, now);
                    self.overrun("links");
                    self.distrust()?;
                }
            }
            Happened::Read(read) => {
                let (known, report) = read
                    .unwrap_or_else(|| (Known::default(), Report { unsettled: true, ..Report::default() }));
                let found = observer.take(known, report, now);
                let other = !offload.reconciler.surroundings().judges_as(&found);
                if surround(offload, observer, found, now) {
                    self.surroundings_changed |= other;
                    self.pace.trigger(pace::Trigger::Surroundings, now);
                }
                self.forwarding_surrounded();
            }
        }
        Ok(())
    }

    /// A reconcile ended well: flows that the rules before it offloaded are revalidated.
    pub(super) fn reconciled(&mut self) {
        let now = self.now();
        if let Some(offload) = &mut self.offload
            && std::mem::take(&mut self.surroundings_changed)
        {
            offload.revalidation.changed(Trigger::Surroundings, now);
        }
    }
}
/// Whether packets may meet another fate since a link changed: other chains and rules by its master, or by its name if it got that while
/// it was up (Linux 6.2); or its MTU, which IPv6's cached routes don't notice (`rt6_mtu_change` leaves them as they are). A link that
/// goes down takes its flows with it.
fn decides_otherwise(before: &Link, link: &Link) -> bool {
    let is_up = before.admin_up && link.admin_up;
    before.master != link.master || before.mtu != link.mtu || is_up && before.name != link.name
}
