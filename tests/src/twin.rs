//! Two worlds alike, one with a fast path and one without: the same is done to both, the same flows run through both, and
//! what becomes of them is compared.
//!
//! A [`Case`] says what to build, and what to change under running flows. This says what came out; whether that is right is the
//! tests' matter.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use crate::{
    agent::{self, Agent},
    duplex::{Duplex, Tally},
    path::{self, Forwarded, PORTS, STRAYS},
    reference,
    topology::{Family, Layout, Topology},
    traffic::{Direction, Flow, Proto},
};

/// Within this time a change must be felt.
pub const LIMIT: Duration = Duration::from_millis(1500);
/// Time between two messages of an end.
const TICK: Duration = Duration::from_millis(10);
/// Messages of each end that take a flow over the threshold.
const WARM_UP: usize = 30;
/// Messages of each end by which its fate is judged.
const WINDOW: usize = 30;
/// Ticks after a change in which those flows are silent of which one end sends first, and then those in which only it sends.
const SILENCE: usize = 30;
const ALONE: usize = 30;

/// What the one world has and the other hasn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// The agent, without its eBPF side.
    Agent,
    /// What `render` prints, and no agent.
    Rendered,
    /// kindnet's rules.
    Kindnet,
}

/// A script for `bash -eu` in one of the namespaces, which are named by it.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "they say it")]
pub enum Step {
    Node(&'static str),
    Client(&'static str),
    Server(&'static str),
}

/// Between which addresses flows run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Those of the links.
    Near,
    /// Those behind them, to which only routes lead.
    Distant,
    /// From the client's distant one to this one, of which the node makes the server's near one; IPv4, IPv6.
    Service(&'static str, &'static str),
}

/// Which flows run: TCP and UDP over each family, four of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// One of each.
    Four,
    /// In one of two the client's packet is the first past the threshold, in the other the server's (surely so with UDP).
    BothCross,
    /// After a change the client sends first, the server does, or both go on all the time.
    AllNext,
}

/// Which path packets take through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Past the forward hook.
    Fast,
    /// Through it, every one.
    Slow,
    /// Whatever is right.
    Any,
}

/// What becomes of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Both directions arrive.
    Arrive,
    /// At least one doesn't.
    Stop,
}

/// One change under running flows, of which each case gets fresh ones.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// In messages.
    pub name: &'static str,
    /// What is done.
    pub steps: &'static [Step],
    /// What takes it back.
    pub undo: &'static [Step],
    /// What becomes of the flows without a fast path.
    pub fate: Fate,
    /// Which path they take then, if they arrive.
    pub path: Path,
    /// Only flows of this family are concerned; the others must arrive.
    pub family: Option<Family>,
}

impl Change {
    /// Stops all flows.
    pub const STOP: Self =
        Self { name: "", steps: &[], undo: &[], fate: Fate::Stop, path: Path::Any, family: None };
    /// Stops none; they are fast again afterwards.
    pub const HARMLESS: Self = Self { fate: Fate::Arrive, path: Path::Fast, ..Self::STOP };
}

/// A kind of node, and what changes on it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// In messages.
    pub name: &'static str,
    /// What is built; second links are added to it.
    pub layout: Layout,
    /// What is set up besides, before the agent starts.
    pub set_up: &'static [Step],
    /// Between which addresses.
    pub ends: Ends,
    /// Only this family.
    pub family: Option<Family>,
    /// Which flows.
    pub flows: Flows,
    /// Which path they take once they are over the threshold. They must all arrive.
    pub path: Path,
    /// What is changed then.
    pub changes: &'static [Change],
}

impl Case {
    /// A router with nothing special, whose flows are fast.
    pub const PLAIN: Self = Self {
        name: "",
        layout: Layout { attach: crate::attach::Attach::Veth, pods: 2, nat: crate::topology::Nat::Plain },
        set_up: &[],
        ends: Ends::Near,
        family: None,
        flows: Flows::Four,
        path: Path::Fast,
        changes: &[],
    };

    /// Builds both worlds and runs everything.
    #[track_caller]
    pub fn run(&self, with: With) -> Findings {
        let twin = Twin::build(self, with);
        let mut findings = Findings { case: self.name, with, flows: Vec::new() };
        if self.changes.is_empty() {
            twin.run(None, &mut findings);
        }
        for change in self.changes {
            twin.run(Some(change), &mut findings);
        }
        findings.print_summary();
        findings
    }
}

/// Two worlds alike but for what the first one has.
struct Twin<'a> {
    case: &'a Case,
    worlds: [Topology; 2],
    _agent: Option<Agent>,
}

impl<'a> Twin<'a> {
    #[track_caller]
    fn build(case: &'a Case, with: With) -> Self {
        let worlds = [(); 2].map(|()| {
            let topology = Topology::build(case.layout);
            topology.add_second_links();
            perform(&topology, case.set_up);
            topology
        });
        let node = &worlds[0].node;
        let agent = match with {
            With::Agent => Some(Agent::start(node, &[])),
            With::Rendered => {
                node.nft(&agent::output(node, &["render"]));
                None
            }
            With::Kindnet => {
                let links = worlds[0].node_links();
                let devices: Vec<&str> =
                    links.iter().map(String::as_str).filter(|&link| link != "lo").collect();
                node.nft(&reference::kindnet(&devices));
                None
            }
        };
        Self { case, worlds, _agent: agent }
    }

    #[track_caller]
    fn run(&self, change: Option<&'static Change>, findings: &mut Findings) {
        let specs = self.case.specs();
        let mut flows = self
            .worlds
            .each_ref()
            .map(|world| specs.iter().map(|spec| spec.open(world, self.case.ends)).collect::<Vec<Duplex>>());
        let each = |flows: &mut [Vec<Duplex>; 2], send: &dyn Fn(&Spec) -> [bool; 2]| {
            for (flow, spec) in flows.iter_mut().flat_map(|flows| flows.iter_mut().zip(&specs)) {
                let [up, down] = send(spec);
                for (wanted, direction) in [(up, Direction::Upload), (down, Direction::Download)] {
                    if wanted {
                        flow.send(direction);
                        flow.receive();
                    }
                }
                flow.receive();
            }
            thread::sleep(TICK);
        };
        each(&mut flows, &|spec| [spec.answer_crosses, false]);
        for _ in 0..WARM_UP {
            each(&mut flows, &|_| [true; 2]);
        }
        let window = |flows: &mut [Vec<Duplex>; 2]| {
            let forwarded = path::all_forwarded(&self.worlds[0].node);
            let before = tallies(flows);
            for _ in 0..WINDOW {
                each(flows, &|_| [true; 2]);
            }
            (before, tallies(flows), since(&forwarded, &path::all_forwarded(&self.worlds[0].node)))
        };
        let (before, after, forwarded) = window(&mut flows);
        // Of all messages if nothing changes, since they all should arrive.
        let from = if change.is_none() { [vec![], vec![]] } else { before };
        findings.add(&specs, None, self.case.path, Fate::Arrive, [&from, &after], &forwarded);
        let Some(change) = change else { return };

        for world in &self.worlds {
            perform(world, change.steps);
        }
        let begun = Instant::now();
        for tick in 0.. {
            if begun.elapsed() >= LIMIT {
                break;
            }
            each(&mut flows, &|spec| match spec.next {
                Next::Both => [true; 2],
                _ if tick < SILENCE => [false; 2],
                Next::Client if tick < SILENCE + ALONE => [true, false],
                Next::Server if tick < SILENCE + ALONE => [false, true],
                _ => [true; 2],
            });
        }
        let (before, after, forwarded) = window(&mut flows);
        findings.add(&specs, Some(change), change.path, change.fate, [&before, &after], &forwarded);
        for world in &self.worlds {
            perform(world, change.undo);
        }
        // The agent answers changes once a second.
        thread::sleep(Duration::from_millis(1100));
    }
}

type Tallies = [Vec<[Tally; 2]>; 2];

fn tallies(flows: &[Vec<Duplex>; 2]) -> Tallies {
    flows.each_ref().map(|flows| flows.iter().map(|flow| [flow.up, flow.down]).collect())
}

fn since(earlier: &BTreeMap<u16, Forwarded>, now: &BTreeMap<u16, Forwarded>) -> BTreeMap<u16, Forwarded> {
    let difference = |(port, now): (&u16, &Forwarded)| {
        let earlier = earlier[port];
        let counts =
            Forwarded { original: now.original - earlier.original, reply: now.reply - earlier.reply };
        (*port, counts)
    };
    now.iter().map(difference).collect()
}

#[track_caller]
fn perform(world: &Topology, steps: &[Step]) {
    for step in steps {
        let (ns, script) = match step {
            Step::Node(script) => (&world.node, script),
            Step::Client(script) => (&world.client().ns, script),
            Step::Server(script) => (&world.server().ns, script),
        };
        ns.feed("bash", &["-euc", script], "");
    }
}

/// Who sends first after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Client,
    Server,
    /// Both go on as if nothing had happened.
    Both,
}

#[derive(Clone, Copy)]
struct Spec {
    proto: Proto,
    family: Family,
    port: u16,
    /// One request more in front, so that an answer is the first packet past the threshold.
    answer_crosses: bool,
    next: Next,
}

impl Case {
    fn specs(&self) -> Vec<Spec> {
        let kinds: &[(bool, Next)] = match self.flows {
            Flows::Four => &[(false, Next::Both)],
            Flows::BothCross => &[(false, Next::Both), (true, Next::Both)],
            Flows::AllNext => &[(false, Next::Client), (false, Next::Server), (false, Next::Both)],
        };
        let mut ports = PORTS;
        let mut specs = Vec::new();
        for &(answer_crosses, next) in kinds {
            for proto in [Proto::Tcp, Proto::Udp] {
                for family in [Family::V4, Family::V6] {
                    if self.family.is_none_or(|only| only == family) {
                        let port = ports.next().expect("enough ports");
                        specs.push(Spec { proto, family, port, answer_crosses, next });
                    }
                }
            }
        }
        specs
    }
}

impl Spec {
    #[track_caller]
    fn open(&self, world: &Topology, ends: Ends) -> Duplex {
        let [client, server] = [world.client(), world.server()];
        let near = |pod: &crate::topology::Pod| pod.address(self.family);
        let (from, dial, listen): (IpAddr, IpAddr, IpAddr) = match ends {
            Ends::Near => (near(client), near(server), near(server)),
            Ends::Distant => {
                (client.distant(self.family), server.distant(self.family), server.distant(self.family))
            }
            Ends::Service(v4, v6) => {
                let dial = match self.family {
                    Family::V4 => v4,
                    Family::V6 => v6,
                };
                (client.distant(self.family), dial.parse().expect("an address"), near(server))
            }
        };
        // Another one each time, since earlier connections to the same port may not be over for the kernel.
        let source = world.client().ns.run(free_port);
        let at = |address, port| SocketAddr::new(address, port);
        let (from, dial, listen) = (at(from, source), at(dial, self.port), at(listen, self.port));
        Flow::open_from(self.proto, &client.ns, from, &server.ns, dial, listen).into_duplex()
    }
}

fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.proto, self.family)?;
        if self.answer_crosses {
            f.write_str(", answer crosses")?;
        }
        match self.next {
            Next::Client => f.write_str(", client sends next"),
            Next::Server => f.write_str(", server sends next"),
            Next::Both => Ok(()),
        }
    }
}

/// What became of the flows of a case.
pub struct Findings {
    case: &'static str,
    with: With,
    flows: Vec<Finding>,
}

/// One flow in both worlds.
struct Finding {
    spec: Spec,
    /// None: before any.
    change: Option<&'static Change>,
    /// What must become of it, and its path.
    fate: Fate,
    path: Path,
    /// Messages in the window: with and without, up and down.
    worlds: [[Tally; 2]; 2],
    /// Of those with a fast path.
    forwarded: Forwarded,
}

impl Findings {
    fn add(
        &mut self,
        specs: &[Spec],
        change: Option<&'static Change>,
        path: Path,
        fate: Fate,
        [before, after]: [&Tallies; 2],
        forwarded: &BTreeMap<u16, Forwarded>,
    ) {
        for (at, spec) in specs.iter().enumerate() {
            let concerned = change.and_then(|change| change.family).is_none_or(|only| only == spec.family);
            let world = |world: usize| {
                let earlier = before[world].get(at).copied().unwrap_or_default();
                [0, 1].map(|direction| after[world][at][direction] - earlier[direction])
            };
            self.flows.push(Finding {
                spec: *spec,
                change,
                fate: if concerned { fate } else { Fate::Arrive },
                path,
                worlds: [world(0), world(1)],
                forwarded: forwarded[&spec.port],
            });
        }
    }

    /// A line for each change: how many flows have another fate, and the worst of them.
    fn print_summary(&self) {
        let mut rest = &self.flows[..];
        while let Some(first) = rest.first() {
            let name = |flow: &Finding| flow.change.map(|change| change.name);
            let (same, others) =
                rest.split_at(rest.iter().take_while(|flow| name(flow) == name(first)).count());
            let wronged: Vec<&Finding> = same.iter().filter(|flow| flow.is_wronged()).collect();
            let worst = wronged.first().map_or_else(String::new, |flow| format!(", as {flow}"));
            println!(
                "{:?}, {}, {}: {} of {} wronged{worst}",
                self.with,
                self.case,
                name(first).unwrap_or("before any change"),
                wronged.len(),
                same.len(),
            );
            rest = others;
        }
    }

    /// Shows that the set-up does what it should without a fast path.
    #[track_caller]
    fn assert_sound(&self) {
        for flow in &self.flows {
            assert_eq!(flow.fate_in(1), flow.fate, "without a fast path: {}: {flow}", self.case);
        }
    }

    /// How many flows have another fate than without the fast path.
    fn wronged(&self) -> usize {
        self.flows.iter().filter(|flow| flow.is_wronged()).count()
    }

    /// Shows that each flow has the fate that it has without the fast path, and takes the path that it should.
    #[track_caller]
    pub fn assert_same_fate(&self) {
        self.assert_sound();
        let wrong = |flow: &&Finding| flow.is_wronged() || !flow.is_on_its_path();
        let wrong: Vec<String> =
            self.flows.iter().filter(wrong).map(|flow| format!("{}: {flow}", self.case)).collect();
        assert!(
            wrong.is_empty(),
            "with {:?} {} of {} flows have another fate or path than they should:\n{}",
            self.with,
            wrong.len(),
            self.flows.len(),
            wrong.join("\n"),
        );
    }

    /// Shows that some flow has another fate: of those that fail a case.
    #[track_caller]
    pub fn assert_some_wronged(&self) {
        self.assert_sound();
        assert!(self.wronged() > 0, "with {:?} no flow of {} has another fate", self.with, self.case);
    }
}

fn arrives(tally: Tally) -> bool {
    tally.sent > 0 && tally.arrived * 10 >= tally.sent * 9
}

impl Finding {
    fn fate_in(&self, world: usize) -> Fate {
        if self.worlds[world].into_iter().all(arrives) { Fate::Arrive } else { Fate::Stop }
    }

    fn is_wronged(&self) -> bool {
        // What arrives of a TCP connection of which a direction is denied depends on its timers.
        let directions = || [0, 1].map(|world| self.worlds[world].map(arrives));
        let [with, without] = directions();
        self.fate_in(0) != self.fate_in(1) || self.spec.proto == Proto::Udp && with != without
    }

    fn is_on_its_path(&self) -> bool {
        let Forwarded { original, reply } = self.forwarded;
        match self.path {
            _ if self.fate == Fate::Stop => true,
            Path::Any => true,
            Path::Fast => original <= STRAYS && reply <= STRAYS,
            Path::Slow => original >= WINDOW as u64 && reply >= WINDOW as u64,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [[up, down], [up_without, down_without]] = self.worlds;
        let change = self.change.map_or("before any change", |change| change.name);
        write!(
            f,
            "{change}: {}: {} of {} requests and {} of {} answers arrive (without: {} of {}, {} of {}); \
             {} and {} of the last {WINDOW} on the forward path ({:?})",
            self.spec,
            up.arrived,
            up.sent,
            down.arrived,
            down.sent,
            up_without.arrived,
            up_without.sent,
            down_without.arrived,
            down_without.sent,
            self.forwarded.original,
            self.forwarded.reply,
            self.path,
        )
    }
}
