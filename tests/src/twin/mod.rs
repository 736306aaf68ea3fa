//! Two worlds alike, one with a fast path and one without: the same is done to both, the same flows run through both, and
//! what becomes of them is compared.
//!
//! A [`Case`] says what to build, and what to change under running flows. This says what came out; whether that is right is the
//! tests' matter.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

mod case;
mod findings;
pub mod random;

pub use case::{Case, Change, Ends, Fate, Flows, Path, Step, With};
pub use findings::Findings;

use case::{Next, Spec};
use findings::Tallies;

use crate::{
    agent::{self, Agent},
    duplex::Duplex,
    netns::Netns,
    path::{self, Forwarded},
    reference,
    table::TABLE,
    topology::{Family, Topology},
    traffic::{Direction, Flow},
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
impl Case {
    /// Builds both worlds and runs everything.
    #[track_caller]
    pub fn run(&self, with: With) -> Findings {
        let twin = Twin::build(self, with);
        let mut findings = Findings { case: self.name, with, flows: Vec::new(), outputs: Default::default() };
        if self.changes.is_empty() {
            twin.run(None, &mut findings);
        }
        for change in self.changes {
            twin.run(Some(change), &mut findings);
        }
        findings.outputs = twin.worlds.each_ref().map(|world| {
            if self.same_output.is_empty() {
                String::new()
            } else {
                world.node.output("bash", &["-euc", self.same_output])
            }
        });
        findings.print_summary();
        findings
    }
}

/// Runs all these cases, also when one fails, and shows what [`Findings::assert_same_fate`] does.
#[track_caller]
pub fn assert_same_fates(cases: &[Case], with: With) {
    let complaints: Vec<String> = cases.iter().filter_map(|case| case.run(with).complaint()).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Two worlds alike but for what the first one has.
struct Twin<'a> {
    case: &'a Case,
    worlds: [Topology; 2],
    with: With,
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
            With::Ignoring => Some(Agent::start(node, &["--enforce-within=off", "--ignore-rule=all"])),
            With::Programs => Some(Agent::start_with(node, &[])),
            With::Rendered => {
                load_rendered(node);
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
        Self { case, worlds, with, _agent: agent }
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
                let down = down && (spec.next != Next::ClientOnly || flow.down.sent == 0);
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
        if self.with == With::Rendered {
            // As an administrator without an agent does.
            load_rendered(&self.worlds[0].node);
        }
        let begun = Instant::now();
        for tick in 0.. {
            if begun.elapsed() >= LIMIT {
                break;
            }
            each(&mut flows, &|spec| match spec.next {
                Next::Both | Next::ClientOnly => [true; 2],
                _ if tick < SILENCE => [false; 2],
                Next::Client if tick < SILENCE + ALONE => [true, false],
                Next::Server if tick < SILENCE + ALONE => [false, true],
                _ => [true; 2],
            });
        }
        let (before, after, forwarded) = window(&mut flows);
        findings.add(&specs, Some(change), change.path, change.fate, [&before, &after], &forwarded);
        // Before the change is taken back, so that nothing of theirs is counted with the next flows.
        drop(flows);
        for world in &self.worlds {
            perform(world, change.undo);
        }
        // The agent answers changes once a second.
        thread::sleep(Duration::from_millis(1100));
    }
}

/// Loads what `render` prints, in place of what was loaded before.
#[track_caller]
fn load_rendered(node: &Netns) {
    let rendered = agent::output(node, &["render"]);
    node.nft(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{rendered}"));
}

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

impl Spec {
    #[track_caller]
    fn open(&self, world: &Topology, ends: Ends) -> Duplex {
        let [client, server] = [world.client(), world.server()];
        let (from, dial, listen) = addresses(world, self.family, ends);
        // Another one each time, since earlier connections to the same port may not be over for the kernel.
        let source = world.client().ns.run(free_port);
        let at = |address, port| SocketAddr::new(address, port);
        let (from, dial, listen) = (at(from, source), at(dial, self.port), at(listen, self.port));
        Flow::open_from(self.proto, &client.ns, from, &server.ns, dial, listen).into_duplex()
    }
}

/// Where a flow comes from, what the client dials, and where the server listens.
fn addresses(world: &Topology, family: Family, ends: Ends) -> (IpAddr, IpAddr, IpAddr) {
    let [client, server] = [world.client(), world.server()];
    match ends {
        Ends::Near => (client.address(family), server.address(family), server.address(family)),
        Ends::Distant => (client.distant(family), server.distant(family), server.distant(family)),
        Ends::Service(v4, v6) => {
            let dial = match family {
                Family::V4 => v4,
                Family::V6 => v6,
            };
            (client.distant(family), dial.parse().expect("an address"), server.address(family))
        }
    }
}

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
