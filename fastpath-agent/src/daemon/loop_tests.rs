//! The loop against a node in memory: whatever happens there, in whatever order and between whichever two calls, the node ends as
//! it should be, and within a second where it is announced and the kernel takes what it is given.

use std::{collections::BTreeSet, future::Future, net::IpAddr, pin::pin};

use clap::Parser;
use proptest::{collection::vec, prelude::*, sample::Index};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::*;
use crate::{
    cli::Cli,
    core::{
        model::{IfIndex, IfName, Link, OperState, test_link},
        ruleset::{
            diff::ForeignTable,
            observed::{ObservedTable, Owner},
        },
        threshold::Lengths,
    },
    daemon::{
        host::Order,
        reconcile::{Reconciler, Report},
        revalidate::Revalidation,
    },
    kernel::{
        bpf::FlowEyes,
        fake::{Connection, FakeRuleset, Fault, Moment, Node, World, nothing_of_others},
        module_monitor::ModuleMonitor,
        node_monitor::NodeEvent,
    },
};

impl Host for Node {
    type Ruleset = Self;
    type Monitor = Self;
    type Links = Self;
    type Neighbourhood = Self;
    type Flows = Self;
    type Orders = mpsc::UnboundedReceiver<Order>;

    fn programs(&self, _: &Config) -> Option<Box<dyn FlowEyes>> {
        Some(Box::new(self.clone()))
    }

    fn crossings(&self, config: &Config) -> Option<Crossings<Self>> {
        Some(Crossings::new(config, self.clone(), None))
    }

    fn threshold_age_ms(&self, _: &Config) -> Option<u64> {
        None
    }

    fn lengths(&self, _: &Config, _: BTreeSet<IpAddr>) -> oneshot::Receiver<Lengths> {
        let (answer, receiver) = oneshot::channel();
        let _ = answer.send(self.with(|world| world.lengths.clone()));
        receiver
    }

    fn modules(&self) -> Option<ModuleMonitor> {
        None
    }

    fn confine(&self, _: &Config) {}

    fn give_back(&self) {}
}

impl Orders for mpsc::UnboundedReceiver<Order> {
    async fn next(&mut self) -> Order {
        match self.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}

/// Something that happens on the node.
#[derive(Clone, Debug)]
enum Step {
    /// A link comes, or is replaced by another of that index.
    LinkComes(u8),
    LinkGoes(Index),
    LinkRenamed(Index, u8),
    LinkDown(Index, bool),
    LinkEnslaved(Index, Index),
    TableDeleted,
    RulesDeleted,
    DeviceTakenOut,
    OthersCommit,
    ProgramsDetached(Index, bool),
    LinksLost,
    RulesetLost,
    NodeLost,
    PolicyRules,
    /// A connection that is older than the rules, between two links.
    OldConnection(u16, Index, Index),
    /// There is room for so many signals of flows.
    SignalRoom(usize),
    Reload,
    Fails(Fault),
    /// This happens at the next such moment.
    At(Moment, Box<Step>),
    Rest(u16),
}

const FAULTS: [Fault; 16] = [
    Fault::Observe,
    Fault::Commit,
    Fault::RefusedFirst,
    Fault::RefusedLast,
    Fault::Beaten,
    Fault::Attach,
    Fault::Detach,
    Fault::Attachments,
    Fault::Programs,
    Fault::Links,
    Fault::Addresses,
    Fault::Changes,
    Fault::Chains,
    Fault::Settings,
    Fault::Conntrack,
    Fault::Maps,
];

fn step() -> impl Strategy<Value = Step> {
    let fault = prop::sample::select(&FAULTS);
    let moment = prop_oneof![Just(Moment::BeforeCommit), Just(Moment::AfterCommit), Just(Moment::Attaching)];
    let simple = prop_oneof![
        4 => (0..12u8).prop_map(Step::LinkComes),
        2 => any::<Index>().prop_map(Step::LinkGoes),
        2 => (any::<Index>(), 0..12u8).prop_map(|(which, name)| Step::LinkRenamed(which, name)),
        2 => (any::<Index>(), any::<bool>()).prop_map(|(which, down)| Step::LinkDown(which, down)),
        1 => any::<(Index, Index)>().prop_map(|(port, master)| Step::LinkEnslaved(port, master)),
        2 => Just(Step::TableDeleted),
        1 => Just(Step::RulesDeleted),
        1 => Just(Step::DeviceTakenOut),
        2 => Just(Step::OthersCommit),
        2 => any::<(Index, bool)>().prop_map(|(which, announced)| Step::ProgramsDetached(which, announced)),
        1 => Just(Step::LinksLost),
        1 => Just(Step::RulesetLost),
        1 => Just(Step::NodeLost),
        1 => Just(Step::PolicyRules),
        3 => (0..8u16, any::<Index>(), any::<Index>()).prop_map(|(id, one, other)| Step::OldConnection(id, one, other)),
        1 => (0..4usize).prop_map(Step::SignalRoom),
    ];
    prop_oneof![
        12 => simple.clone(),
        1 => Just(Step::Reload),
        2 => fault.prop_map(Step::Fails),
        3 => (moment, simple).prop_map(|(moment, step)| Step::At(moment, Box::new(step))),
        4 => prop_oneof![0..3u16, 0..400u16].prop_map(Step::Rest),
    ]
}

fn name(number: u8) -> IfName {
    IfName::new(&format!("eth{number}")).expect("a name")
}

fn link(index: u8) -> Link {
    Link { index: IfIndex(u32::from(index) + 2), ..test_link(&format!("eth{index}")) }
}

impl Step {
    /// Does it to the node.
    fn happens(self, world: &mut World) {
        let one = |world: &World, which: Index| {
            let links: Vec<Link> = world.links.values().cloned().collect();
            (!links.is_empty()).then(|| which.get(&links).clone())
        };
        match self {
            Self::LinkComes(number) => {
                // No two links have the same name.
                let link = link(number);
                if world.links.values().all(|other| other.name != link.name || other.index == link.index) {
                    world.set_link(link);
                }
            }
            Self::LinkGoes(which) => {
                if let Some(link) = one(world, which) {
                    world.remove_link(link.index);
                }
            }
            Self::LinkRenamed(which, number) => {
                let name = name(number);
                if let Some(link) = one(world, which)
                    && world.links.values().all(|other| other.name != name)
                {
                    world.set_link(Link { name, ..link });
                }
            }
            Self::LinkDown(which, down) => {
                if let Some(link) = one(world, which) {
                    let oper_state = if down { OperState::Down } else { OperState::Up };
                    world.set_link(Link { admin_up: !down, oper_state, ..link });
                }
            }
            Self::LinkEnslaved(port, master) => {
                if let Some((port, master)) = one(world, port).zip(one(world, master))
                    && port.index != master.index
                    && master.master.is_none()
                {
                    world.set_link(Link { master: Some(master.index), ..port });
                }
            }
            Self::TableDeleted => world.commit(|table| *table = None),
            Self::RulesDeleted => world.commit(|table| {
                table.iter_mut().flat_map(|table| &mut table.chains).for_each(|chain| chain.rules.clear());
            }),
            Self::DeviceTakenOut => world.commit(|table| {
                let flowtables = table.iter_mut().flat_map(|table| &mut table.flowtables);
                flowtables.flat_map(|flowtable| &mut flowtable.devices).for_each(|devices| {
                    devices.pop_first();
                });
            }),
            Self::OthersCommit => world.commit(|_| {}),
            Self::ProgramsDetached(which, announced) => {
                if let Some(link) = one(world, which) {
                    world.detach(link.index, announced);
                }
            }
            Self::LinksLost => world.lose_links(),
            Self::RulesetLost => world.lose_ruleset(),
            Self::NodeLost => world.announce(NodeEvent::Overrun),
            Self::PolicyRules => world.announce(NodeEvent::RouteRules),
            Self::OldConnection(id, here, there) => {
                if let Some((here, there)) = one(world, here).zip(one(world, there))
                    && here.index != there.index
                {
                    world.connect(Connection::between(id, [here.index, there.index]));
                }
            }
            Self::SignalRoom(signals) => world.make_room(signals),
            Self::Fails(fault) => world.faults.push_back(fault),
            Self::At(moment, step) => world.at.push_back((moment, Box::new(|world| step.happens(world)))),
            Self::Reload | Self::Rest(_) => unreachable!("the driver does it"),
        }
    }

    /// Whether it undoes the agent's work, which is answered ever more slowly.
    fn undoes(&self) -> bool {
        match self {
            Self::TableDeleted | Self::RulesDeleted | Self::DeviceTakenOut => true,
            Self::At(_, step) => step.undoes(),
            _ => false,
        }
    }
}

fn config() -> Config {
    config_with(&[])
}

fn config_with(flags: &[&str]) -> Config {
    let words = [&["fastpath-agent", "run", "--metrics-bind-address="], flags].concat();
    let cli = Cli::try_parse_from(words).expect("flags");
    Config::new(cli.agent().unwrap(), "node".to_owned()).expect("a configuration")
}

fn agent(node: &Node, config: Config) -> Agent<Node> {
    let mut ruleset = node.clone();
    let revalidation = Revalidation::start(&config, &mut ruleset);
    let reconciler = Reconciler::new(ruleset, config.rules.policy(true, true), ForeignTable::Refuse);
    let offload = Offload { monitor: node.clone(), revalidation, reconciler, bug: None };
    Agent::new(node.clone(), config, node.clone(), Some(offload), Some(node.clone())).expect("an agent")
}

/// Runs the loop while `story` happens, in time that passes when no task has anything to do.
fn run<F: Future<Output = ()>>(node: &Node, story: impl FnOnce(mpsc::UnboundedSender<Order>) -> F) {
    run_with(node, config(), story);
}

fn run_with<F: Future<Output = ()>>(
    node: &Node,
    config: Config,
    story: impl FnOnce(mpsc::UnboundedSender<Order>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (order, orders) = mpsc::unbounded_channel();
        let mut agent = agent(node, config);
        let stop = order.clone();
        let story = pin!(async {
            story(order).await;
            let _ = stop.send(Order::Stop("SIGTERM"));
            std::future::pending::<()>().await;
        });
        tokio::select! {
            result = agent.serve(orders) => result.expect("the loop goes on until it is told to stop"),
            () = story => unreachable!("it waits for the end"),
            () = traffic(node) => unreachable!("it never ends"),
        }
        assert_eq!(agent.ready(), Ok(()));
    });
}

/// Packets of all connections.
async fn traffic(node: &Node) {
    let threshold = config().rules.threshold;
    loop {
        node.with(|world| world.packets(threshold));
        let ms = if node.with(|world| world.settled) { 1000 } else { 20 };
        sleep(Duration::from_millis(ms)).await;
    }
}

async fn happen(node: &Node, orders: &mpsc::UnboundedSender<Order>, step: Step) {
    match step {
        Step::Rest(ms) => sleep(Duration::from_millis(ms.into())).await,
        Step::Reload => orders.send(Order::Reload).expect("the agent listens"),
        step => node.with(|world| step.happens(world)),
    }
}

/// What isn't as it should be; `None` if everything is.
fn amiss(node: &Node) -> Option<String> {
    let rules = config().rules;
    node.with(|world| {
        let links: LinkTable = world.links.values().cloned().collect();
        // What an agent that knows nothing would still do.
        let ruleset: FakeRuleset = world.ruleset.clone();
        let commits = ruleset.commits.len();
        let mut fresh = Reconciler::new(ruleset, rules.policy(true, true), ForeignTable::Refuse);
        fresh.surrounded_by(nothing_of_others().surroundings(&rules.ignored));
        let report = fresh.reconcile(Trigger::Start, &links).expect("a report");
        let Report { standing: Standing::Right, commits: 0, .. } = report else {
            let ops = fresh.into_ruleset().commits.split_off(commits);
            return Some(format!("{report:?}: it would {ops:?}"));
        };
        let managed: BTreeSet<IfIndex> = links
            .iter()
            .filter(|link| rules.selection.reject(link).is_none())
            .map(|link| link.index)
            .collect();
        let watched = crate::core::link::watch::watched(links.iter(), &managed);
        if world.attached != watched {
            return Some(format!("programs on {:?}, not on {watched:?}", world.attached));
        }
        let devices = fresh.offloads().map(|(_, devices)| devices.collect()).unwrap_or_default();
        let accelerated = links.with_ports(&devices);
        let slow = world.connections().iter().filter(|connection| !connection.is_offloaded());
        let left: Vec<_> =
            slow.filter(|slow| slow.links().iter().all(|link| accelerated.contains(link))).collect();
        (!left.is_empty()).then(|| format!("not offloaded: {left:?}"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Also what isn't announced, and after whatever failed: two rounds of the safety net, and the longest wait between tries.
    #[test]
    fn the_node_ends_as_it_should_be(steps in vec(step(), 0..40)) {
        let node = Node::new((0..4).map(link));
        run(&node, async |orders| {
            for step in steps {
                happen(&node, &orders, step).await;
            }
            node.with(World::settle);
            sleep(Duration::from_secs(150)).await;
            assert_eq!(amiss(&node), None);
        });
    }

    /// What is announced is answered within a second, as long as nothing fails and nothing undoes the agent's work again and again.
    #[test]
    fn what_is_announced_is_answered_within_a_second(steps in vec(step(), 0..25)) {
        let unannounced =
            |step: &Step| matches!(step, Step::ProgramsDetached(_, false) | Step::Fails(_) | Step::OldConnection(..));
        let mut undone = 0;
        let steps = steps.into_iter().filter(|step| {
            undone += u32::from(step.undoes());
            let inner = if let Step::At(_, inner) = step { inner } else { step };
            !unannounced(inner) && (!step.undoes() || undone < 4)
        });
        let steps: Vec<Step> = steps.collect();
        let node = Node::new((0..4).map(link));
        run(&node, async |orders| {
            for step in steps {
                happen(&node, &orders, step).await;
            }
            node.with(World::settle);
            sleep(Duration::from_secs(1)).await;
            assert_eq!(amiss(&node), None);
        });
    }
}

/// A table that is deleted comes back within a second, whichever of the loop's first turns it falls into.
#[test]
fn a_table_that_is_deleted_at_any_moment_is_back() {
    for turn in 0..60 {
        let node = Node::new((0..20).map(link));
        run(&node, async |_| {
            for _ in 0..turn {
                tokio::task::yield_now().await;
            }
            node.with(|world| world.commit(|table| *table = None));
            sleep(Duration::from_secs(1)).await;
            assert_eq!(amiss(&node), None, "turn {turn}");
        });
    }
}

/// Also at each moment of a reconcile that comes of something else.
#[test]
fn a_table_that_is_deleted_in_the_midst_of_work_is_back() {
    for moment in [Moment::BeforeCommit, Moment::AfterCommit, Moment::Attaching] {
        let node = Node::new((0..4).map(link));
        run(&node, async |_| {
            sleep(Duration::from_millis(100)).await;
            node.with(|world| {
                world.at.push_back((moment, Box::new(|world| world.commit(|table| *table = None))));
                world.set_link(link(4));
            });
            sleep(Duration::from_secs(1)).await;
            assert!(node.with(|world| world.at.is_empty()), "{moment:?} didn't come");
            assert_eq!(amiss(&node), None, "{moment:?}");
        });
    }
}

/// What the kernel's netlink and bpf calls fail with, but for EPERM, which ends the agent: `nfnetlink_rcv_batch`, `nf_tables_newflowtable`,
/// `netlink_sendmsg`, `rtnetlink_rcv_msg`, `__sys_bpf`, `tcx_link_attach`, and sockets themselves.
#[rustfmt::skip]
const ERRNOS: [i32; 21] = [
    libc::EAGAIN, libc::EBADF, libc::EBUSY, libc::E2BIG, libc::ECONNREFUSED, libc::EEXIST, libc::EFBIG, libc::EINTR, libc::EINVAL, libc::EIO,
    libc::EMFILE, libc::EMSGSIZE, libc::ENFILE, libc::ENOBUFS, libc::ENODEV, libc::ENOENT, libc::ENOMEM, libc::ENOSPC, libc::EOPNOTSUPP,
    libc::ERESTART, libc::ESRCH,
];

/// Each call fails once, at each of its turns in a story that has a bit of everything: in each way if `FASTPATH_EVERY_ERRNO` is set, else
/// in one way each turn.
#[test]
fn whichever_call_fails_once_the_node_ends_as_it_should_be() {
    let ways = if std::env::var_os("FASTPATH_EVERY_ERRNO").is_some() { ERRNOS.len() } else { 1 };
    for (fault, way) in FAULTS.into_iter().flat_map(|fault| (0..ways).map(move |way| (fault, way))) {
        for calls in 0.. {
            let errno = ERRNOS[(way + calls) % ERRNOS.len()];
            let node = Node::new((0..4).map(link));
            run(&node, async |orders| {
                node.with(|world| {
                    world.fails_after = Some((fault, calls, errno));
                    world.connect(Connection::between(0, [IfIndex(2), IfIndex(3)]));
                });
                for happens in STORY {
                    node.with(happens);
                    sleep(Duration::from_millis(300)).await;
                }
                orders.send(Order::Reload).expect("the agent listens");
                node.with(World::settle);
                sleep(Duration::from_secs(130)).await;
                assert_eq!(amiss(&node), None, "{fault:?}, errno {errno}, after {calls} calls");
            });
            if node.with(|world| world.fails_after.is_some()) {
                assert!(calls > 0, "{fault:?} is never called");
                break;
            }
        }
    }
}

const STORY: [fn(&mut World); 11] = [
    |world| world.set_link(link(5)),
    |world| world.commit(|table| *table = None),
    World::lose_links,
    World::lose_ruleset,
    |world| world.commit(|_| {}),
    |world| world.make_room(0),
    |world| world.connect(Connection::between(1, [IfIndex(4), IfIndex(5)])),
    |world| world.announce(NodeEvent::Overrun),
    |world| world.announce(NodeEvent::RouteRules),
    |world| world.detach(IfIndex(2), true),
    |world| world.remove_link(IfIndex(7)),
];

/// A table of our name that another program made stays, and the agent says so.
#[test]
fn a_foreign_table_stays() {
    let node = Node::new((0..2).map(link));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (order, orders) = mpsc::unbounded_channel();
        let mut agent = agent(&node, config());
        let story = async {
            sleep(Duration::from_secs(1)).await;
            node.with(|world| {
                world.commit(|table| {
                    let table = table.as_mut().expect("the agent's table");
                    table.owner = Owner::Foreign;
                    table.flowtables.clear();
                    table.chains.clear();
                    table.sets.clear();
                })
            });
            sleep(Duration::from_secs(130)).await;
            let _ = order.send(Order::Stop("SIGTERM"));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = agent.serve(orders) => result.expect("the loop goes on"),
            () = story => unreachable!("it waits for the end"),
        }
        assert_eq!(agent.ready(), Err(NotReady::Foreign));
        let owner = node.with(|world| world.ruleset.table.as_ref().map(|table| table.owner.clone()));
        assert_eq!(owner, Some(Owner::Foreign));
    });
}

/// A connection without counters is offloaded with the agent's help, and again when the table was deleted: before it crossed, in the
/// moment when it is helped, with a link that comes as well, and after.
#[test]
fn an_old_connection_is_offloaded_again() {
    for (ms, with_link) in (380..480).step_by(5).chain([2000]).flat_map(|ms| [(ms, false), (ms, true)]) {
        let node = Node::new((0..4).map(link));
        node.with(|world| world.connect(Connection::between(0, [IfIndex(2), IfIndex(3)])));
        run(&node, async |_| {
            sleep(Duration::from_millis(ms)).await;
            node.with(|world| {
                world.commit(|table| *table = None);
                if with_link {
                    world.set_link(link(4));
                }
            });
            sleep(Duration::from_secs(4)).await;
            assert_eq!(amiss(&node), None, "{ms} ms, {with_link}");
        });
    }
}

/// It follows soon after the start, and then no more often than promised.
#[test]
fn a_threshold_that_the_agent_chooses_follows_the_lengths_of_flows() {
    let lengths = |of: &[(u64, u64)]| {
        let mut lengths = Lengths::default();
        of.iter().for_each(|(directions, packets)| (0..*directions).for_each(|_| lengths.add(*packets)));
        lengths
    };
    let node = Node::new((0..4).map(link));
    let standing = || node.with(|world| world.ruleset.table.as_ref().and_then(ObservedTable::threshold));
    node.with(|world| world.lengths = lengths(&[(4000, 60)]));
    run(&node, async |_| {
        sleep(Duration::from_secs(900)).await;
        assert_eq!(standing(), Some(20), "the operator has chosen it");
    });
    run_with(&node, config_with(&["--fastpath-threshold=auto"]), async |_| {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(standing(), Some(6));
        node.with(|world| world.lengths = lengths(&[(100_000, 6), (100, 1000)]));
        sleep(Duration::from_secs(590)).await;
        assert_eq!(standing(), Some(6), "changed twice in ten minutes");
        sleep(Duration::from_secs(120)).await;
        assert_eq!(standing(), Some(13));
        node.with(|world| world.lengths = Lengths::default());
        sleep(Duration::from_secs(1300)).await;
        assert_eq!(standing(), Some(13), "nothing is known any more");
    });
}

/// Off, the table goes and all else goes on; on, what is there is offloaded again, by help as well. A wrong word changes nothing.
#[test]
fn the_mode_is_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("mode");
    let node = Node::new((0..4).map(link));
    node.with(|world| world.connect(Connection::between(0, [IfIndex(2), IfIndex(3)])));
    let config = config_with(&[&format!("--mode-file={}", file.display())]);
    let has_table = || node.with(|world| world.ruleset.table.is_some());
    run_with(&node, config, async |orders| {
        for (word, order, offloads) in [
            ("accelerate", Order::Mode, true),
            ("watch", Order::Mode, false),
            ("acelerate", Order::Mode, false),
            ("100%", Order::Mode, true),
            ("0%", Order::Reload, false),
            ("accelerate\n", Order::Reload, true),
        ] {
            std::fs::write(&file, word).expect("a file");
            orders.send(order).expect("the agent listens");
            sleep(Duration::from_secs(4)).await;
            assert_eq!(has_table(), offloads, "{word}");
            assert_eq!(node.with(|world| world.attached.len()), 4, "programs go on counting");
            assert!(!offloads || amiss(&node).is_none(), "{word}: {:?}", amiss(&node));
        }
        std::fs::write(&file, "watch").expect("a file");
        orders.send(Order::Mode).expect("the agent listens");
        sleep(Duration::from_secs(130)).await;
        assert!(!has_table(), "the safety net leaves it off");
    });
}
