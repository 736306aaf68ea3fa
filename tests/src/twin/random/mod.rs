//! Sequences of operations that a generator draws, done to two nodes of which one has the agent: after each of them the same flows
//! have the same fate, our table is there, nothing of other programs was changed, and the log is short.
//!
//! A seed gives the same sequence again. A sequence that fails is made shorter, as long as it fails. Without an agent on
//! either node no sequence may fail, or it says nothing.

use std::{
    fmt::{self, Write},
    panic::{self, AssertUnwindSafe},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use proptest::{
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

mod check;
mod flows;
mod operation;
mod told;

pub use operation::firewall::{Chain, Hook, Match, TableFamily, Target, Verdict, Xtables, XtablesChain};
pub use operation::network::{Bridging, Ipvs, Tunnel};
pub use operation::pods::{AtPod, Pair};
pub use operation::{
    AgentOperation, Denial, Device, Element, End, Ip, Master, Operation, Place, RuleAction, Selector, Sysctl,
    TcHook, TcMatch, Via,
};

use crate::{
    agent::{self, Agent},
    attach::Attach,
    netns::Netns,
    program::{self, Pin},
    topology::{Layout, Nat, Topology},
};

/// Within this time a change must be felt.
const LIMIT: Duration = super::LIMIT;
/// Before the agent starts nothing need be felt.
const SHORT: Duration = Duration::from_millis(200);
/// Bonds and bridges forward nothing at first, and IPv6 needs its link-local addresses.
const LINKS: Duration = Duration::from_secs(2);
/// Neighbours stay known. Else it is a matter of chance when a pod notices that its router has lost its address. And no router
/// tells them of a shorter way.
const POD_SETTINGS: &str =
    "for f in /proc/sys/net/ipv[46]/neigh/*/base_reachable_time_ms; do echo 3600000 > $f; done
     echo 0 | tee /proc/sys/net/ipv[46]/conf/*/accept_redirects >/dev/null";
/// What the kernel has for some operation is there from the first sequence of a guest on, not from the first one that uses it.
const MODULES: &str = "modprobe -a br_netfilter ip_vs ip_vs_rr ipip ip_gre ip6_tunnel vxlan
    grep -q ' /sys/fs/bpf ' /proc/mounts || mount -t bpf bpf /sys/fs/bpf";
/// Bridged packets pass no rules at first. Loopback takes addresses that become the node's.
const NODE_SETTINGS: &str =
    "ip link set lo up; echo 0 | tee /proc/sys/net/bridge/bridge-nf-call-{ip,ip6,arp}tables >/dev/null";
/// How long a second agent may take to see that it isn't the first.
const SECOND_AGENT: Duration = Duration::from_secs(5);
/// Flags of an agent that takes over from one with others.
const OTHER_FLAGS: &[&str] = &["--fastpath-threshold=10", "--max-flows=4096"];
/// Operations of a sequence.
const LENGTH: std::ops::Range<usize> = 5..11;
/// Sequences that are tried to make one shorter.
const MOST_TRIES: usize = 24;
/// Repairs that the agent makes at once. It makes further ones ever later.
const MOST_HARMS: usize = 3;

/// A kind of node, and what is done to it.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// How the server hangs on the node.
    pub attach: Attach,
    /// What the node does to addresses.
    pub nat: Nat,
    /// The service addresses are IPVS's.
    pub ipvs: bool,
    /// The agent has its eBPF side.
    pub programs: bool,
    /// How many operations are done before it starts.
    pub start_after: usize,
    /// All operations.
    pub operations: Vec<Operation>,
}

/// What came out of a sequence that didn't fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Operations done with the agent there.
    pub operations: usize,
    /// Flows judged.
    pub flows: usize,
    /// Of those, how many arrived.
    pub arrived: usize,
    /// How many connections were offloaded when they were.
    pub offloaded: usize,
    /// How many flows were seen to be forwarded by programs when a tool was asked.
    pub forwarded: usize,
    /// How often a tool said something of a flow that could be compared.
    pub told: usize,
    /// How many operations the node or a pod refused, in whole or in part.
    pub refused: usize,
}

/// A sequence that failed, and with what.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Number of the operation, if it was one.
    at: Option<usize>,
    finding: String,
}

fn sequences() -> impl Strategy<Value = Sequence> {
    let attach = prop_oneof![
        8 => Just(Attach::Veth), 2 => Just(Attach::Bridge), 2 => Just(Attach::Vlan), 2 => Just(Attach::Bond),
        1 => Just(Attach::Vxlan), 1 => Just(Attach::Gre), 1 => Just(Attach::Ipip)
    ];
    let nat = prop_oneof![3 => Just(Nat::Plain), 1 => Just(Nat::Masquerade), 1 => Just(Nat::Service)];
    let ipvs = prop_oneof![5 => Just(false), 1 => Just(true)];
    let start_after = prop_oneof![2 => Just(0), 1 => 1..4_usize];
    // Nearly every second one takes back what another one did.
    let step = (operation::any(), proptest::option::weighted(0.45, any::<Index>()));
    let programs = select(&[false, false, true][..]);
    (attach, nat, ipvs, programs, start_after, proptest::collection::vec(step, LENGTH)).prop_map(
        |(attach, nat, ipvs, programs, start_after, steps)| {
            let mut operations: Vec<Operation> = Vec::new();
            let mut harms = 0;
            for (operation, undone) in steps {
                let done: Vec<&Operation> = operations
                    .iter()
                    .filter(|done| !matches!(done, Operation::Undo(_) | Operation::Agent(_)))
                    .collect();
                let next = match undone {
                    Some(index) if !done.is_empty() => Operation::Undo(Box::new((*index.get(&done)).clone())),
                    _ => operation,
                };
                if let Operation::Agent(operation) = next {
                    harms += usize::from(operation.harms_the_table());
                    if operation.harms_the_table() && harms > MOST_HARMS || operations.len() < start_after {
                        continue;
                    }
                }
                operations.push(next);
            }
            let start_after = start_after.min(operations.len());
            Sequence { attach, nat, ipvs, programs, start_after, operations }
        },
    )
}

/// What one of the nodes has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// No agent: then nothing may differ.
    NoAgent,
    /// The agent, with eBPF programs or without.
    Agent,
    /// The agent, whose programs forward packets between pods.
    Forwarding,
}

impl Sequence {
    /// That of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        sequences().new_tree(&mut runner).expect("no sequence is refused").current()
    }

    /// Does all of it, on fresh nodes. What fails in the harness counts as a failure of the sequence.
    pub fn run(&self, with: With) -> Result<Summary, Failure> {
        let mut at = None;
        let result = panic::catch_unwind(AssertUnwindSafe(|| self.try_run(with, &mut at)));
        let finding = match result {
            Ok(Ok(summary)) => return Ok(summary),
            Ok(Err(finding)) => finding,
            Err(payload) => {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panic").to_owned()
            }
        };
        Err(Failure { at, finding })
    }

    fn try_run(&self, with: With, at: &mut Option<usize>) -> Result<Summary, String> {
        let mut run = Run::build(self, with);
        thread::sleep(LINKS);
        run.flows.refill(&run.worlds)?;
        if self.start_after == 0 {
            run.start_agent()?;
        }
        for (number, operation) in self.operations.iter().enumerate() {
            *at = Some(number);
            run.flows.refill(&run.worlds)?;
            // With the address that a connection is translated to the kernel forgets the connection, or not.
            let translates = self.nat == Nat::Masquerade && !matches!(operation, Operation::Agent(_));
            let numbered = || run.worlds.each_ref().map(|world| flows::numbered(&world.node));
            let before = translates.then(numbered);
            run.perform(operation)?;
            if let Some(before) = before {
                run.flows.give_up_forgotten(
                    &before,
                    &run.worlds.each_ref().map(|world| flows::numbered(&world.node)),
                );
            }
            if number + 1 == self.start_after {
                run.start_agent()?;
            } else if number + 1 > self.start_after {
                run.judge()?;
            } else {
                run.flows.run_until(Instant::now(), SHORT);
            }
        }
        Ok(run.summary)
    }

    /// The shortest sequence found that fails too, with its failure, and how many were tried.
    #[must_use]
    pub fn shrink(&self, failure: Failure, with: With) -> (Self, Failure, usize) {
        let (mut best, mut failure, mut tries) = (self.clone(), failure, 0);
        if let Some(at) = failure.at {
            best.operations.truncate(at + 1);
        }
        let mut attempt = |candidate: Self, best: &mut Self, failure: &mut Failure| {
            if tries == MOST_TRIES {
                return false;
            }
            tries += 1;
            let Err(found) = candidate.run(with) else { return false };
            *best = candidate;
            if let Some(at) = found.at {
                best.operations.truncate(at + 1);
            }
            best.start_after = best.start_after.min(best.operations.len());
            *failure = found;
            true
        };
        let mut size = best.operations.len() / 2;
        while size > 0 {
            // From the front, since the last one is the one that fails.
            let mut from = 0;
            while from < best.operations.len() {
                let to = (from + size).min(best.operations.len());
                if !attempt(best.without(from, to), &mut best, &mut failure) {
                    from = to;
                }
            }
            size /= 2;
        }
        let simpler: [fn(&mut Self); 5] = [
            |s| s.attach = Attach::Veth,
            |s| s.nat = Nat::Plain,
            |s| s.ipvs = false,
            |s| s.programs = false,
            |s| s.start_after = 0,
        ];
        for simplify in simpler {
            let mut candidate = best.clone();
            simplify(&mut candidate);
            if candidate.set_up() != best.set_up() {
                attempt(candidate, &mut best, &mut failure);
            }
        }
        (best, failure, tries)
    }

    fn set_up(&self) -> (Attach, Nat, bool, bool, usize) {
        (self.attach, self.nat, self.ipvs, self.programs, self.start_after)
    }

    fn without(&self, from: usize, to: usize) -> Self {
        let mut operations = self.operations.clone();
        operations.drain(from..to);
        let before = self.start_after.clamp(from, to) - from;
        Self { operations, start_after: self.start_after - before, ..self.clone() }
    }

    /// Shows that it doesn't fail.
    #[track_caller]
    pub fn assert_same_fate(&self) -> Summary {
        self.assert_same_fate_with(With::Agent)
    }

    /// The same of one kind of agent.
    #[track_caller]
    pub fn assert_same_fate_with(&self, with: With) -> Summary {
        match self.run(with) {
            Ok(summary) => {
                println!("{summary}");
                summary
            }
            Err(failure) => panic!("{failure}\n{self}"),
        }
    }

    /// The same of one all of whose operations can be done.
    #[track_caller]
    pub fn assert_done_with_same_fate(&self) {
        assert_eq!(self.assert_same_fate().refused, 0, "an operation is refused\n{self}");
    }
}

/// A sequence under way.
struct Run<'a> {
    sequence: &'a Sequence,
    worlds: [Topology; 2],
    flows: flows::Flows,
    with: With,
    xdp: Pin,
    agent: Option<Agent>,
    /// The next agent has other flags than the first one.
    upgraded: bool,
    /// Something of the agent's was damaged, which it may find out late.
    damaged: bool,
    /// Lines of agents that have ended.
    log: Vec<String>,
    summary: Summary,
}

impl<'a> Run<'a> {
    fn build(sequence: &'a Sequence, with: With) -> Self {
        Netns::of_process_1().feed("bash", &["-euc", MODULES], "");
        let worlds = [(); 2].map(|()| {
            let layout = Layout { attach: sequence.attach, pods: 2, nat: sequence.nat };
            let topology = Topology::build(layout);
            topology.add_second_links();
            if !sequence.programs {
                // Without its eBPF side the agent can't help connections whose packets weren't counted.
                topology.node.sysctl("net/netfilter/nf_conntrack_acct", "1");
            }
            topology.node.feed("bash", &["-euc", NODE_SETTINGS], "");
            if sequence.ipvs {
                topology.node.feed("bash", &["-euc", &operation::network::ipvs_set_up()], "");
            }
            for pod in &topology.pods {
                pod.ns.feed("bash", &["-euc", POD_SETTINGS], "");
            }
            // For policy rules: everything by a second link.
            topology.node.ip(
                "route add default via 10.11.0.2 table 101\nroute add default via fd00:11::2 table 101\n\
                 route add default via 10.12.0.2 table 102\nroute add default via fd00:12::2 table 102\n",
            );
            topology
        });
        // Programs forward a flow that has several packets in a tick of the kernel.
        let burst = if with == With::Forwarding { 3 } else { 1 };
        let flows = flows::Flows::new(sequence.nat == Nat::Service || sequence.ipvs, burst);
        let xdp = program::pin(program::Kind::Xdp, &program::RETURN_1);
        let (log, summary) = (Vec::new(), Summary::default());
        Self {
            sequence,
            worlds,
            flows,
            with,
            xdp,
            agent: None,
            upgraded: false,
            damaged: false,
            log,
            summary,
        }
    }

    fn launch(&self) -> Option<Agent> {
        let node = &self.worlds[0].node;
        let flags = if self.upgraded { OTHER_FLAGS } else { &[] };
        match (self.with, self.sequence.programs) {
            (With::NoAgent, _) => None,
            (With::Agent, true) => Some(Agent::start_with(node, flags)),
            (With::Agent, false) => Some(Agent::start(node, flags)),
            (With::Forwarding, _) => Some(Agent::start_with(node, &[&["--forward=peer"], flags].concat())),
        }
    }

    fn start_agent(&mut self) -> Result<(), String> {
        self.agent = self.launch();
        self.judge()
    }

    /// Does it to both nodes; it must end alike.
    fn perform(&mut self, operation: &Operation) -> Result<(), String> {
        if let Operation::Agent(operation) = operation {
            return if self.with != With::NoAgent { self.perform_on_agent(*operation) } else { Ok(()) };
        }
        let top = self.sequence.attach.recipe().uppers.last().copied().unwrap_or("s0");
        let places = self.worlds.each_ref().map(|world| {
            let paths = [&world.node, &world.client().ns, &world.server().ns].map(Netns::path);
            let [node, client, server] = paths;
            format!("top={top}; node={node}; client={client}; server={server}; xdp={}", self.xdp.path())
        });
        let ends = [0, 1].map(|world| {
            let script = format!("{}; {}", places[world], operation.script());
            self.worlds[world].node.try_run("bash", &["-euc", &script], "")
        });
        let [with, without] = ends.each_ref().map(|end| String::from_utf8_lossy(&end.stderr));
        if ends[0].status != ends[1].status {
            return Err(format!(
                "it ends with {}: {with}\nand without the agent with {}: {without}",
                ends[0].status, ends[1].status
            ));
        }
        let mut refused = !ends[0].status.success();
        let dev = self.sequence.attach.recipe().server_dev;
        for ((number, script), dev) in
            operation::network::of_the_pods(operation).iter().enumerate().zip(["eth0", dev])
        {
            let Some(script) = script else { continue };
            for (world, places) in self.worlds.iter().zip(&places) {
                let script = format!("{places}; dev={dev}; {script}");
                // On pods that are alike it ends alike, whatever was done to the node.
                refused |= !world.pods[number].ns.try_run("bash", &["-euc", &script], "").status.success();
            }
        }
        self.summary.refused += usize::from(refused);
        Ok(())
    }

    fn perform_on_agent(&mut self, operation: AgentOperation) -> Result<(), String> {
        let node = &self.worlds[0].node;
        self.damaged |= operation.damages();
        match operation {
            AgentOperation::Killed | AgentOperation::Stopped | AgentOperation::Upgraded => {
                self.upgraded ^= operation == AgentOperation::Upgraded;
                let Some(agent) = self.agent.take() else { return Ok(()) };
                self.log.extend(agent.log());
                if operation == AgentOperation::Killed {
                    agent.kill();
                } else {
                    agent.stop();
                }
                self.agent = self.launch();
            }
            AgentOperation::Reloaded => {
                if let Some(agent) = &self.agent {
                    agent.signal(Signal::SIGHUP);
                }
            }
            AgentOperation::Second => {
                let args: &[&str] = if self.sequence.programs { &[] } else { &["--ebpf=off"] };
                let mut second = Agent::spawn(node, &mut agent::command(args));
                if second.wait_exit(SECOND_AGENT).success() {
                    return Err(format!("a second agent ends well: {}", second.log().join("\n")));
                }
            }
            // Other programs' filters go with it.
            AgentOperation::ClsactDeleted => {
                for world in &self.worlds {
                    drop(world.node.try_run("bash", &["-euc", operation.text()], ""));
                }
            }
            // Whether there was anything to damage is no matter.
            _ => drop(node.try_run("bash", &["-euc", operation.text()], "")),
        }
        Ok(())
    }

    /// Waits until a change must have been felt, and looks at everything.
    fn judge(&mut self) -> Result<(), String> {
        self.flows.run_until(Instant::now(), LIMIT);
        let arrived = self.flows.judge()?;
        self.summary.operations += 1;
        self.summary.flows += self.flows.count();
        self.summary.arrived += arrived;
        check::others_are_untouched(&self.worlds)?;
        let Some(agent) = &mut self.agent else { return Ok(()) };
        if !agent.is_running() {
            return Err(format!("the agent has ended:\n{}", agent.log().join("\n")));
        }
        let offloaded = check::offloaded(&self.worlds[0].node);
        let eligible = flows::eligible(self.sequence);
        let is_first = self.summary.operations == 1 && self.sequence.start_after == 0;
        if is_first && offloaded < eligible {
            return Err(format!("with nothing in the way only {offloaded} connections are offloaded"));
        }
        self.summary.offloaded += offloaded;
        check::table_is_right(&self.worlds[0].node)?;
        if self.sequence.programs {
            let (told, forwarded) = self.flows.tools_are_true(&self.worlds[0].node, !self.damaged)?;
            self.summary.told += told;
            self.summary.forwarded += forwarded;
            let all = self.sequence.attach == Attach::Veth && self.with == With::Forwarding && is_first;
            if all && forwarded < eligible {
                return Err(format!("with nothing in the way only {forwarded} flows are forwarded"));
            }
        }
        let log: Vec<String> = self.log.iter().cloned().chain(agent.log()).collect();
        check::log_is_short(&log, self.summary.operations)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, flows, arrived, offloaded, forwarded, told, refused } = self;
        write!(
            f,
            "{operations} times judged, {arrived} of {flows} flows arrived, {offloaded} connections offloaded, {forwarded} flows forwarded, {told} told of, {refused} operations refused"
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "after operation {}: {}", at + 1, self.finding),
            None => f.write_str(&self.finding),
        }
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attach, nat, ipvs, programs, .. } = self;
        let top = attach.recipe().uppers.last().copied().unwrap_or("s0");
        writeln!(f, "# server by {attach:?} (top={top}), NAT {nat:?}, IPVS {ipvs}, eBPF {programs}")?;
        let mut text = String::new();
        for (number, operation) in self.operations.iter().enumerate() {
            if number == self.start_after {
                text += "# the agent starts\n";
            }
            writeln!(text, "{operation}")?;
        }
        if self.start_after == self.operations.len() {
            text += "# the agent starts\n";
        }
        f.write_str(&text)?;
        // To keep it as a case of its own.
        write!(f, "{self:?}")
    }
}
