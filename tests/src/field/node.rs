//! The node of a trial: starts software and agent in the order that is tried, and looks at flows. What it sees is noted, and every
//! order must see the same.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Order, Trial, surroundings::Surroundings};
use crate::{
    agent,
    netns::Netns,
    path::{self, Measured},
    service, table,
    topology::Topology,
    traffic::{Flow, Proto},
    wait_until, why,
};

/// What the agent promises of changes that are announced, and of all others: 1.5 s, and the time that the emulator takes.
pub(super) const WITHIN: Duration = Duration::from_secs(2);
/// Where the agent listens by default.
const PAGE: &str = "http://127.0.0.1:19080";
/// What an element's timeout may be off by, and a clock that is set to a whole second.
const EARLY: Duration = Duration::from_secs(1);
/// How long a flow is watched after a change.
const WATCHED: Duration = Duration::from_secs(5);
/// How long nothing must arrive of a flow that has stopped.
const SILENCE: Duration = Duration::from_secs(2);
/// How many messages must be lost meanwhile, one after the other.
const LOST: usize = 6;
/// How long a message may take that must arrive.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long it may take until a flow is fast: it may just be revalidated.
const FAST_WITHIN: Duration = Duration::from_secs(15);
/// Rounds of a measurement.
const ROUNDS: usize = 100;

/// Waits until the ruleset stays as it is: some software goes on with it after its command has ended.
#[track_caller]
fn wait_until_settled() {
    let listing = || service::said("nft", &["--stateless", "list", "ruleset"]);
    let mut last = String::new();
    wait_until("the ruleset stays as it is", service::LIMIT, || {
        thread::sleep(Duration::from_secs(1));
        std::mem::replace(&mut last, listing()) == last
    });
}

/// The node, its client and its server.
pub struct Node {
    /// The node is the system itself; client and server hang on `c0` and `s0`.
    pub topology: Topology,
    trial: &'static Trial,
    order: Order,
    seen: Vec<(String, String)>,
}

impl Node {
    pub(super) fn new(topology: Topology, trial: &'static Trial) -> Self {
        Self { topology, trial, order: Order::Without, seen: Vec::new() }
    }

    /// Forgets what was seen.
    pub(super) fn reset(&mut self, order: Order) {
        self.order = order;
        self.seen.clear();
        let _ = self.topology.node.try_run("conntrack", &["-F"], "");
    }

    pub(super) fn seen(&self) -> Vec<(String, String)> {
        self.seen.clone()
    }

    /// Whether the agent is a part of this.
    pub fn with_agent(&self) -> bool {
        self.order != Order::Without
    }

    /// The client's namespace.
    pub fn client(&self) -> Netns {
        self.topology.client().ns.clone()
    }

    /// The server's.
    pub fn server(&self) -> Netns {
        self.topology.server().ns.clone()
    }

    /// Notes what must be the same with the agent and without.
    pub fn note(&mut self, what: &str, seen: impl Into<String>) {
        let seen = seen.into();
        println!("  {:?}: {what}: {seen}", self.order);
        self.seen.push((what.to_owned(), seen));
    }

    /// Starts the software, behind the agent where that comes first.
    #[track_caller]
    pub fn software(&mut self, start: impl FnOnce()) {
        if self.order == Order::AgentFirst {
            service::start(service::AGENT);
        }
        let began = Instant::now();
        start();
        println!("  {:?}: the software runs after {:.1} s", self.order, began.elapsed().as_secs_f64());
    }

    /// Starts the agent where the software comes first. The flow goes on meanwhile; nothing of other programs may change.
    #[track_caller]
    pub fn agent(&mut self, flow: Flow) -> Flow {
        if self.order != Order::SoftwareFirst {
            return flow;
        }
        let before = Surroundings::read();
        let background = flow.in_background_every(Duration::from_millis(20));
        service::start(service::AGENT);
        let (flow, report) = background.stop_intact();
        println!("  {:?}: the agent came beside {report:?}", self.order);
        let changed = Surroundings::read().differences(&before);
        assert!(changed.is_empty(), "the agent changed what isn't its own:\n{changed}");
        flow
    }

    /// Has the software start again or read its configuration again, in each of its ways. The flow goes on, and is fast after it.
    #[track_caller]
    fn again(&mut self, mut flow: Flow) -> Flow {
        for command in self.trial.again {
            let background = flow.in_background_every(Duration::from_millis(20));
            service::sh(command);
            wait_until_settled();
            flow = background.stop_intact().0;
            self.count_again();
            self.fast(&format!("TCP after {command}"), &mut flow);
        }
        flow
    }

    /// Has `why` say that a flow is accelerated, while packets of it come.
    #[track_caller]
    fn accelerated(&self, flow: Flow) -> Flow {
        let words = flow.words();
        let background = flow.in_background_every(Duration::from_millis(20));
        let answer = why::ask(&self.topology.node, &words);
        assert_eq!(answer["verdict"]["accelerated"], "yes", "{answer:#}");
        background.stop_intact().0
    }

    /// What the agent's commands say beside the software: what must be said is, and `doctor` finds nothing broken.
    #[track_caller]
    fn examine(&self) {
        for (command, words) in self.trial.told {
            let output = match command.strip_prefix("page ") {
                Some(search) => {
                    service::run("curl", &["--silent", &format!("{PAGE}/api/flows?search={search}")])
                }
                None => agent::output(&self.topology.node, &command.split(' ').collect::<Vec<_>>()),
            };
            assert!(output.contains(words), "no {words:?} in what {command} says:\n{output}");
        }
        let output = agent::run(&self.topology.node, &["doctor", "--no-canary", "-o", "json"]);
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        let findings = report["findings"].as_array().expect("a list");
        for (number, finding) in findings.iter().enumerate() {
            assert!(!findings[..number].contains(finding), "doctor says it twice: {finding:#}");
            let [level, check, found] =
                ["level", "check", "found"].map(|name| finding[name].as_str().unwrap_or("?"));
            if level != "green" {
                println!("  {:?}: doctor: {level} {check}: {found}", self.order);
            }
            assert_ne!(level, "red", "{finding:#}");
        }
    }

    /// Has the software start again, then stops the agent and cleans up after it. The flow goes on meanwhile, and takes the forward path then; nothing of other programs may change.
    #[track_caller]
    pub fn agent_goes(&mut self, flow: Flow) {
        let mut flow = self.again(flow);
        self.fast("TCP in the end", &mut flow);
        if self.with_agent() {
            flow = self.accelerated(flow);
            self.examine();
            let before = Surroundings::read();
            let background = flow.in_background_every(Duration::from_millis(20));
            service::run("systemctl", &["stop", service::AGENT]);
            service::run("fastpath-agent", &["cleanup"]);
            flow = background.stop_intact().0;
            let changed = Surroundings::read().differences(&before);
            assert!(changed.is_empty(), "cleaning up changed what isn't the agent's:\n{changed}");
            self.assert_agent_gone();
        }
        self.topology.assert_forwarded(&mut flow);
    }

    pub(super) fn assert_agent_gone(&self) {
        assert_eq!(service::property(service::AGENT, "ActiveState"), "inactive", "the trial left the agent");
        assert_eq!(table::listing(&self.topology.node), None, "the agent's table is still there");
        assert!(!std::path::Path::new("/sys/fs/bpf/fastpath").exists(), "there are still pins");
        let programs = self.topology.node.output("bpftool", &["net", "show"]);
        assert!(!programs.contains("fastpath"), "{programs}");
    }

    /// Opens a flow. `dial` and `listen` are addresses with ports of [`path::PORTS`].
    #[track_caller]
    pub fn open(&self, proto: Proto, from: &Netns, to: &Netns, dial: &str, listen: &str) -> Flow {
        let address = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut flow = Flow::open(proto, from, to, address(dial), address(listen));
        flow.set_patience(PATIENCE);
        flow
    }

    /// Shows that a flow is delivered, and that it bypasses the forward path as soon as there is an agent.
    #[track_caller]
    pub fn fast(&mut self, what: &str, flow: &mut Flow) {
        if self.with_agent() {
            let measured =
                self.measure_until(flow, |measured| measured.original_fast() && measured.reply_fast());
            assert!(
                measured.original_fast() && measured.reply_fast(),
                "{what}: {flow:?} takes the forward path: {measured:?}\n{}",
                self.why(flow)
            );
            assert!(self.topology.marked_offloaded(flow.port()), "{what}: {flow:?} isn't [OFFLOAD]");
        } else {
            self.topology.assert_forwarded(flow);
        }
        self.note(what, "arrives");
    }

    /// Shows that a flow is delivered on the forward path, with the agent for this reason, which `why` says in words that have `named`
    /// in them.
    #[track_caller]
    pub fn slow(&mut self, what: &str, flow: &mut Flow, reason: &str, named: &str) {
        assert_eq!(flow.rounds(50), 50, "{what}: {flow:?} loses packets");
        self.topology.assert_forwarded(flow);
        if self.with_agent() {
            let answer = self.assert_reason(&flow.words(), reason);
            assert!(answer.to_string().contains(named), "{what}: no {named:?} in {answer:#}");
        }
        self.note(what, "arrives");
    }

    /// Shows that a flow is delivered, by whatever path.
    #[track_caller]
    pub fn delivered(&mut self, what: &str, flow: &mut Flow) {
        assert_eq!(flow.rounds(ROUNDS), ROUNDS, "{what}: {flow:?} loses packets");
        self.note(what, "arrives");
    }

    /// Shows that the agent, if it is there, leaves a flow on the normal path for this reason, which is seen while packets come.
    #[track_caller]
    pub fn reason(&self, what: &str, flow: Flow, reason: &str) -> Flow {
        if !self.with_agent() {
            return flow;
        }
        let words = flow.words();
        let background = flow.in_background_every(Duration::from_millis(20));
        self.assert_reason(&words, reason);
        println!("  {:?}: {what}: on the normal path, since: {reason}", self.order);
        background.stop_intact().0
    }

    /// Has `why` say, if the agent is there, that a flow which has stopped is slow for this reason.
    #[track_caller]
    pub fn told(&self, what: &str, flow: &Flow, reason: &str) {
        if self.with_agent() {
            self.assert_reason(&flow.words(), reason);
            println!("  {:?}: {what}: why says: {reason}", self.order);
        }
    }

    /// Asks why, by the flow's own ends: an earlier flow to its port may still be known.
    #[track_caller]
    fn assert_reason(&self, words: &[String; 3], reason: &str) -> Value {
        let answer = why::ask(&self.topology.node, words);
        assert_eq!(answer["verdict"]["accelerated"], "no", "{answer:#}");
        assert_eq!(answer["verdict"]["reason"], reason, "{answer:#}");
        answer
    }

    /// Sends until a measurement is as wanted, or it takes too long; gives the last one.
    #[track_caller]
    fn measure_until(&self, flow: &mut Flow, wanted: impl Fn(&Measured) -> bool) -> Measured {
        let began = Instant::now();
        loop {
            let measured = self.topology.measure(flow, ROUNDS);
            assert!(measured.delivered(), "{flow:?} loses packets: {measured:?}\n{}", self.why(flow));
            if wanted(&measured) || began.elapsed() > FAST_WITHIN {
                return measured;
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// What conntrack and the agent say of a flow, for messages.
    fn why(&self, flow: &Flow) -> String {
        let lines = self.topology.conntrack(flow.port());
        let listing = table::listing(&self.topology.node).unwrap_or_default();
        let [protocol, from, to] = flow.words();
        let why = service::said("fastpath-agent", &["why", &protocol, &from, &to]);
        format!("{}\n{why}\n{}\n{listing}", lines.join("\n"), service::said("fastpath-agent", &["status"]))
    }

    /// Does something under a UDP flow and notes whether the flow goes on. If it stops, it does so in time.
    #[track_caller]
    pub fn change(&mut self, what: &str, flow: &mut Flow, action: impl FnOnce()) {
        self.change_due(what, flow, Duration::ZERO, action);
    }

    /// The same of what takes effect only so much later, and not before.
    #[track_caller]
    pub fn change_due(&mut self, what: &str, flow: &mut Flow, after: Duration, action: impl FnOnce()) {
        flow.set_patience(Duration::from_millis(200));
        action();
        let due = Instant::now() + after;
        let (mut last, mut lost) = (None, 0);
        let silent = |last: Option<Instant>, lost| {
            // Time alone doesn't tell: the guest may have stood still.
            last.unwrap_or(due).max(due).elapsed() >= SILENCE && lost >= LOST
        };
        while !silent(last, lost) && (lost > 0 || Instant::now() < due + WATCHED) {
            if flow.rounds(1) == 1 {
                (last, lost) = (Some(Instant::now()), 0);
            } else {
                lost += 1;
            }
            thread::sleep(Duration::from_millis(10));
        }
        if !after.is_zero() {
            let early = due - EARLY;
            assert!(
                last.is_some_and(|last| last > early),
                "{what}: {flow:?} stopped before {after:?} were over"
            );
        }
        if !silent(last, lost) {
            flow.set_patience(PATIENCE);
            self.note(what, "the flow goes on");
            return;
        }
        flow.set_patience(PATIENCE);
        let took = last.map(|last| last.saturating_duration_since(due)).unwrap_or_default();
        println!("  {:?}: {what}: nothing arrived any more after {:.2} s", self.order, took.as_secs_f64());
        assert!(took < WITHIN, "{what}: {flow:?} stopped only after {took:?}\n{}", self.why(flow));
        self.note(what, "the flow stops");
    }

    /// Notes whether a request and its answer arrive.
    #[track_caller]
    pub fn arrives(&mut self, what: &str, flow: &mut Flow) {
        flow.set_patience(Duration::from_millis(500));
        let arrived = (0..3).any(|_| flow.rounds(1) == 1);
        self.note(what, if arrived { "arrives" } else { "doesn't arrive" });
    }

    /// Waits until a UDP flow arrives again, after an interruption.
    #[track_caller]
    pub fn comes_back(&self, flow: &mut Flow) {
        flow.set_patience(Duration::from_millis(200));
        wait_until(&format!("{flow:?} comes back"), FAST_WITHIN, || flow.rounds(1) == 1);
        flow.set_patience(PATIENCE);
    }

    /// Puts the counters in again, when the software took them away.
    pub fn count_again(&self) {
        if !self.topology.node.output("nft", &["list", "tables"]).contains(path::TABLE) {
            path::install(&self.topology.node, "");
        }
    }
}
