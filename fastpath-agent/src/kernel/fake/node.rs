//! All that the agent's loop depends on, as a script: ruleset, links, programs and events, changed by a test while the loop
//! runs, also in the middle of a transaction. Events are queued as the kernel does it, the agent's own among them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use fastpath_common::{FlowKey, Signal};
use tokio::sync::Notify;

use super::FakeRuleset;

use crate::{
    core::{
        forwarding::Announced,
        link::table::LinkEvent,
        model::{IfIndex, Link, TABLE},
        policy::known::Known,
        revalidate::{BaseChains, Notice, Subject},
        route_rule::RouteRules,
        ruleset::{
            observed::{Generation, Observed, ObservedTable},
            plan::Op,
        },
        threshold::Lengths,
    },
    kernel::{
        LinkSource, Neighbourhood, Ruleset, RulesetMonitor,
        bpf::{Attachment, BpfError, FlowEyes, Mechanism},
        fake::connection::Flows,
        links::LinkError,
        nft::{CommitError, Event, Lost, NftError, Rejection},
        node_monitor::NodeEvent,
        surroundings::{Ask, Report},
    },
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The ruleset can't be read.
    Observe,
    /// A transaction fails.
    Commit,
    /// The kernel refuses its first operation.
    RefusedFirst,
    /// The kernel refuses its last operation.
    RefusedLast,
    /// Another program's transaction comes between reading and committing.
    Beaten,
    /// The kernel takes no program on a link.
    Attach,
    /// Nor does it take one away.
    Detach,
    /// It can't be told where programs are.
    Attachments,
    /// Programs can't be run, or told anything.
    Programs,
    /// Links can't be listed.
    Links,
    /// Addresses can't.
    Addresses,
    /// Other programs' changes can't be read.
    Changes,
    /// Nor can all chains.
    Chains,
    /// Settings of forwarding can't be read.
    Settings,
    /// Conntrack can't be asked.
    Conntrack,
    /// The maps can't be read.
    Maps,
}

/// A point in the agent's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Between reading the ruleset and the transaction that comes of it.
    BeforeCommit,
    /// Between a transaction and its announcement.
    AfterCommit,
    /// While programs are attached.
    Attaching,
}

/// What happens to the node.
type Happening = Box<dyn FnOnce(&mut World)>;

/// What there is on the node.
pub struct World {
    /// The ruleset.
    pub ruleset: FakeRuleset,
    /// The links.
    pub links: BTreeMap<IfIndex, Link>,
    /// Links with programs.
    pub attached: BTreeSet<IfIndex>,
    /// What goes wrong with the next calls, in this order for each kind.
    pub faults: VecDeque<Fault>,
    /// This goes wrong after so many calls that go well, with this errno.
    pub fails_after: Option<(Fault, usize, i32)>,
    /// How many packets its flows had.
    pub lengths: Lengths,
    /// Nothing happens by itself any more.
    pub settled: bool,
    /// What happens at the next of such moments, one each time.
    pub at: VecDeque<(Moment, Happening)>,
    generations: VecDeque<Event>,
    /// For each transaction of another program: whether it changed our table.
    notices: Vec<bool>,
    notices_lost: bool,
    link_events: VecDeque<LinkEvent>,
    node_events: VecDeque<NodeEvent>,
    pub(super) flows: Flows,
    pub(super) news: Rc<Notify>,
}

impl World {
    /// Another program changes our table, or something else in the ruleset.
    pub fn commit(&mut self, change: impl FnOnce(&mut Option<ObservedTable>)) {
        let before = self.ruleset.table.clone();
        self.ruleset.disturb(change);
        self.notices.push(before != self.ruleset.table);
        if self.ruleset.table.is_none() {
            self.torn_down();
        }
        self.forget_assisted();
        self.committed();
    }

    fn committed(&mut self) {
        let generation = Generation(self.ruleset.generation);
        self.generations.push_back(Event::Generation { generation, process: None, name: None });
        self.news.notify_waiters();
    }

    /// A link comes, or changes.
    pub fn set_link(&mut self, link: Link) {
        if let Some(before) = self.links.get(&link.index) {
            self.ruleset.rename_device(&before.name, &link.name);
        }
        self.ruleset.devices.insert(link.name.clone());
        self.links.insert(link.index, link.clone());
        self.announce_link(LinkEvent::Changed(link));
    }

    /// A link goes, with its programs.
    pub fn remove_link(&mut self, index: IfIndex) {
        let Some(link) = self.links.remove(&index) else { return };
        self.ruleset.remove_device(&link.name);
        self.attached.remove(&index);
        self.announce_link(LinkEvent::Gone(index));
    }

    fn announce_link(&mut self, event: LinkEvent) {
        self.link_events.push_back(event);
        self.news.notify_waiters();
    }

    /// Something else is announced.
    pub fn announce(&mut self, event: NodeEvent) {
        self.node_events.push_back(event);
        self.news.notify_waiters();
    }

    /// All announcements of links that wait are lost.
    pub fn lose_links(&mut self) {
        self.link_events.clear();
        self.announce_link(LinkEvent::Overrun);
    }

    /// The same of the ruleset.
    pub fn lose_ruleset(&mut self) {
        self.generations.clear();
        self.notices.clear();
        self.notices_lost = true;
        self.generations.push_back(Event::Overrun);
        self.news.notify_waiters();
    }

    /// Programs are detached from a link; this is announced, if they are of traffic control.
    pub fn detach(&mut self, index: IfIndex, announced: bool) {
        if self.attached.remove(&index) && announced {
            self.announce(NodeEvent::TrafficControl(Some(index)));
        }
    }

    /// From now on nothing goes wrong, and nothing happens by itself.
    pub fn settle(&mut self) {
        self.settled = true;
        self.make_room(usize::MAX);
        self.faults.clear();
        self.at.clear();
    }

    /// What happens at this moment.
    fn comes(&mut self, moment: Moment) {
        if let Some(at) = self.at.iter().position(|(next, _)| *next == moment)
            && let Some((_, happens)) = self.at.remove(at)
        {
            happens(self);
        }
    }

    /// The errno of a call that this goes wrong with.
    fn fails(&mut self, fault: Fault) -> Option<i32> {
        match &mut self.fails_after {
            Some((wanted, 0, errno)) if *wanted == fault => {
                let errno = *errno;
                self.fails_after = None;
                return Some(errno);
            }
            Some((wanted, calls, _)) if *wanted == fault => *calls -= 1,
            _ => {}
        }
        let at = self.faults.iter().position(|next| *next == fault)?;
        self.faults.remove(at).map(|_| libc::ENOMEM)
    }
}

/// A handle on the node; all of them are on the same one.
#[derive(Clone)]
pub struct Node(Rc<RefCell<World>>);

impl Node {
    /// A node with these links and nothing else.
    pub fn new(links: impl IntoIterator<Item = Link>) -> Self {
        let links: BTreeMap<IfIndex, Link> = links.into_iter().map(|link| (link.index, link)).collect();
        Self(Rc::new(RefCell::new(World {
            lengths: Lengths::default(),
            ruleset: FakeRuleset::new(links.values().map(|link| link.name.clone())),
            links,
            attached: BTreeSet::new(),
            faults: VecDeque::new(),
            fails_after: None,
            settled: false,
            at: VecDeque::new(),
            generations: VecDeque::new(),
            notices: Vec::new(),
            notices_lost: false,
            link_events: VecDeque::new(),
            node_events: VecDeque::new(),
            flows: Flows::default(),
            news: Rc::new(Notify::new()),
        })))
    }

    /// Does something to it, or looks at it.
    pub fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    /// Fails if this goes wrong with the programs and maps.
    fn works(&self, fault: Fault) -> Result<(), BpfError> {
        self.refuses(fault).map_or(Ok(()), |errno| Err(bpf_error(errno)))
    }

    /// The errno of a call that this goes wrong with.
    pub(super) fn refuses(&self, fault: Fault) -> Option<i32> {
        self.with(|world| world.fails(fault))
    }

    /// Waits until there is something of a kind.
    pub(super) async fn wait<T>(&self, take: impl Fn(&mut World) -> Option<T>) -> T {
        let news = self.with(|world| Rc::clone(&world.news));
        loop {
            if let Some(found) = self.with(|world| take(world)) {
                return found;
            }
            news.notified().await;
        }
    }
}

/// What is read where other programs have nothing.
pub fn nothing_of_others() -> Known {
    Known {
        tables: Some(Arc::default()),
        legacy: Some(BTreeSet::new()),
        route_rules: Some(RouteRules::default()),
        ..Known::default()
    }
}

fn io_error(errno: i32) -> NftError {
    NftError::Io { operation: "fake", object: "ruleset", source: io::Error::from_raw_os_error(errno) }
}

fn bpf_error(errno: i32) -> BpfError {
    BpfError::Io { operation: "fake".into(), source: io::Error::from_raw_os_error(errno) }
}

fn dump_error(errno: i32) -> LinkError {
    LinkError::Dump(io::Error::from_raw_os_error(errno))
}

impl Ruleset for Node {
    fn observe(&mut self) -> Result<Observed, NftError> {
        self.with(|world| {
            world.fails(Fault::Observe).map_or_else(|| world.ruleset.observe(), |errno| Err(io_error(errno)))
        })
    }

    fn commit(&mut self, ops: &[Op], expected: Generation) -> Result<Generation, CommitError> {
        self.with(|world| {
            if ops.is_empty() {
                return Ok(expected);
            }
            if world.fails(Fault::Beaten).is_some() {
                world.commit(|_| {});
            }
            world.comes(Moment::BeforeCommit);
            if let Some(errno) = world.fails(Fault::Commit) {
                return Err(CommitError::Io(io_error(errno)));
            }
            for (fault, index) in [(Fault::RefusedFirst, 0), (Fault::RefusedLast, ops.len() - 1)] {
                if let Some(errno) = world.fails(fault) {
                    let source = io::Error::from_raw_os_error(errno);
                    let rejection = Rejection { index, source, message: None, device: None };
                    return Err(CommitError::Rejected(vec![rejection]));
                }
            }
            let generation = world.ruleset.commit(ops, expected)?;
            world.committed_ops(ops);
            world.committed();
            world.comes(Moment::AfterCommit);
            Ok(generation)
        })
    }

    fn base_chains(&mut self) -> Result<BaseChains, NftError> {
        self.refuses(Fault::Chains).map_or_else(|| Ok(BaseChains::default()), |errno| Err(io_error(errno)))
    }
}

impl RulesetMonitor for Node {
    async fn next(&mut self) -> Result<Event, NftError> {
        Ok(self.wait(|world| world.generations.pop_front()).await)
    }

    fn changes(&mut self, mut each: impl FnMut(&Notice<'_>)) -> Result<Result<(), Lost>, NftError> {
        if let Some(errno) = self.refuses(Fault::Changes) {
            return Err(io_error(errno));
        }
        let (notices, lost) =
            self.with(|world| (std::mem::take(&mut world.notices), std::mem::take(&mut world.notices_lost)));
        for is_ours in notices {
            let table = if is_ours { TABLE } else { "firewall" };
            each(&Notice { family: libc::NFPROTO_INET as u8, table, subject: Subject::Other });
        }
        Ok(if lost { Err(Lost) } else { Ok(()) })
    }
}

impl LinkSource for Node {
    async fn next(&mut self) -> Result<LinkEvent, LinkError> {
        Ok(self.wait(|world| world.link_events.pop_front()).await)
    }

    fn try_next(&mut self) -> Option<LinkEvent> {
        self.with(|world| world.link_events.pop_front())
    }

    fn list(&mut self) -> Result<Vec<Link>, LinkError> {
        let links = || self.with(|world| world.links.values().cloned().collect());
        self.refuses(Fault::Links).map_or_else(|| Ok(links()), |errno| Err(dump_error(errno)))
    }

    fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, LinkError> {
        self.refuses(Fault::Addresses).map_or_else(|| Ok(BTreeSet::new()), |errno| Err(dump_error(errno)))
    }
}

impl Neighbourhood for Node {
    async fn next(&mut self) -> io::Result<Vec<NodeEvent>> {
        Ok(vec![self.wait(|world| world.node_events.pop_front()).await])
    }

    fn settings(&mut self) -> io::Result<Vec<Announced>> {
        let refused = self.refuses(Fault::Settings);
        refused.map_or_else(|| Ok(Vec::new()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn legacy_tables(&self) -> Option<io::Result<BTreeSet<String>>> {
        None
    }

    fn reader(&self) -> fn(&mut Known, &Ask) -> Report {
        |known, _| {
            *known = nothing_of_others();
            Report::default()
        }
    }
}

impl FlowEyes for Node {
    fn attach(&mut self, link: &Link) -> Result<Attachment, BpfError> {
        self.with(|world| world.comes(Moment::Attaching));
        self.works(Fault::Attach)?;
        self.with(|world| {
            if !world.links.contains_key(&link.index) {
                return Err(bpf_error(libc::ENODEV));
            }
            world.attached.insert(link.index);
            Ok(attachment(link))
        })
    }

    fn detach(&mut self, index: IfIndex) -> Result<(), BpfError> {
        self.works(Fault::Detach)?;
        self.with(|world| world.attached.remove(&index));
        Ok(())
    }

    fn attachments(&self) -> Result<Vec<Attachment>, BpfError> {
        self.works(Fault::Attachments).map(|()| Vec::new())
    }

    fn attachments_on(&self, link: &Link) -> Result<Vec<Attachment>, BpfError> {
        self.works(Fault::Attachments)?;
        let is_there = self.with(|world| world.attached.contains(&link.index));
        Ok(is_there.then(|| attachment(link)).into_iter().collect())
    }

    fn set_threshold(&mut self, _: u32) -> Result<(), BpfError> {
        self.works(Fault::Programs)
    }

    fn mark(&mut self, key: &FlowKey, from: Signal, to: Signal) -> Result<bool, BpfError> {
        self.works(Fault::Programs)?;
        Ok(self.with(|world| world.mark(key, from, to)))
    }

    fn went_over(&mut self, keys: &[FlowKey]) -> Result<Vec<bool>, BpfError> {
        self.works(Fault::Programs)?;
        Ok(vec![false; keys.len()])
    }

    fn tell_all(&mut self, _: bool) -> Result<(), BpfError> {
        self.works(Fault::Programs)
    }

    fn can_forward(&self) -> bool {
        false
    }

    fn forward_between(&mut self, _: &BTreeMap<IfIndex, u64>) -> Result<(), BpfError> {
        self.works(Fault::Programs)
    }

    fn ask_again(&mut self, _: bool) -> Result<(), BpfError> {
        self.works(Fault::Programs)
    }
}

fn attachment(link: &Link) -> Attachment {
    Attachment { index: link.index, name: link.name.clone(), mechanism: Mechanism::Tcx, without_xdp: None }
}
