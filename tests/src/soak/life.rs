//! What happens on the node.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::judge::{Sample, growth};
use crate::{
    agent::{self, Agent, OTHER_MAPS},
    faults::{Random, descriptors, memory_kib, objects},
    http::{self, SERVE, bring_loopback_up},
    netns::Netns,
    table,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Background, Direction, Flow, Proto},
    wait_until,
};

/// Between two turns.
const TURN: Duration = Duration::from_secs(1);
/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Pods that come and go, beside client and server, have these numbers.
const PODS: std::ops::Range<u16> = 3..7;
/// Within this time a flow that is denied stops.
const DENIED_WITHIN: Duration = Duration::from_millis(1500);
/// What agents are restarted with, besides the port for metrics. Not XDP: a veth pair that gets its first program there may lose
/// packets of its own accord.
const FLAGS: [&[&str]; 6] = [
    &[],
    &["--ebpf=off"],
    &["--fastpath-threshold=6"],
    &["--max-flows=8192"],
    &["--assist=off", "--v=5"],
    &["--flowtable-priority=0", "--revalidate-interval=500ms"],
];
/// Rounds by which every flow has crossed the threshold, and by which none has.
const CROSSED: usize = 20;
const SHORT: usize = 2;

/// What the log says, once, of maps of an earlier agent that don't fit.
const REPLACED: &str = "pinned maps of another size or version are replaced";
/// Ports whose packets on the forward path are counted.
const COUNTED_PORTS: std::ops::Range<u16> = 7004..7013;

/// A pod that comes and goes.
struct Visitor {
    number: u16,
    ns: Netns,
}

/// Sums of all that was done.
#[derive(Default)]
struct Done {
    connections: u64,
    rounds: u64,
    bytes: u64,
    pods: u64,
    denials: u64,
    restarts: u64,
    upgrades: u64,
    downgrades: u64,
    counted: u64,
    /// Since there is one agent.
    crossed: u64,
}

pub(super) struct Life<S> {
    topology: Topology,
    random: Random,
    say: S,
    began: Instant,
    agent: Option<Agent>,
    program: String,
    flags: &'static [&'static str],
    watches: bool,
    /// Programs, maps and pinned maps of one agent.
    objects: (usize, usize, usize),
    agents: usize,
    visitors: Vec<Visitor>,
    long: Vec<Background>,
    port: u16,
    samples: Vec<Sample>,
    done: Done,
    crossed_before: u64,
}

impl<S: FnMut(&str)> Life<S> {
    pub(super) fn begin(seed: u64, mut say: S) -> Self {
        let topology = Topology::build(Layout { nat: Nat::Service, ..Layout::default() });
        let node = &topology.node;
        bring_loopback_up(node);
        node.nft(
            "table inet soak-nat { chain post { type nat hook postrouting priority srcnat
                ip saddr { 10.3.0.0/24, 10.4.0.0/24 } masquerade
                ip6 saddr { fd00:3::/64, fd00:4::/64 } masquerade; }; }
             table inet soak-filter { chain forward { type filter hook forward priority 0; policy accept; }; }",
        );
        say(Sample::COLUMNS);
        let mut life = Self {
            topology,
            random: Random::of(seed),
            say,
            began: Instant::now(),
            agent: None,
            program: agent::binary(),
            flags: &[],
            watches: true,
            objects: (0, 0, 0),
            agents: 0,
            visitors: Vec::new(),
            long: Vec::new(),
            port: 10_000,
            samples: Vec::new(),
            done: Done::default(),
            crossed_before: 0,
        };
        life.start(&agent::binary(), &[]);
        life.objects = life.objects_now();
        life.long = [
            life.topology.open(Proto::Udp, Family::V4, 7001),
            life.topology.open(Proto::Tcp, Family::V6, 7002),
            life.topology.open_service(Proto::Tcp, Family::V4, 7003),
        ]
        .map(|flow| flow.in_background_every(Duration::from_millis(100)))
        .into();
        life
    }

    fn start(&mut self, program: &str, flags: &'static [&'static str]) {
        self.agents += 1;
        program.clone_into(&mut self.program);
        self.flags = flags;
        self.watches = !flags.contains(&"--ebpf=off");
        self.agent = Some(Agent::start_of(program, &self.topology.node, &[&[SERVE], flags].concat()));
        self.wait_for_links();
    }

    fn objects_now(&self) -> (usize, usize, usize) {
        let pins = fs::read_dir("/sys/fs/bpf/fastpath").into_iter().flatten().flatten();
        let maps = pins.filter(|pin| pin.file_type().is_ok_and(|kind| kind.is_file()));
        (objects(&self.topology.node, "prog"), objects(&self.topology.node, "map"), maps.count())
    }

    fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("there is always one")
    }

    /// From here on the agent stays.
    pub(super) fn settle_on_one_agent(&mut self) {
        self.restart(&agent::binary(), &[]);
        // What it takes once, it has by then.
        self.live(self.began.elapsed() + Duration::from_secs(4), false);
        self.samples.clear();
        self.crossed_before = self.crossed();
        self.done.crossed = 0;
    }

    fn restart(&mut self, program: &str, flags: &'static [&'static str]) {
        let size = |flags: &[&str]| flags.contains(&"--max-flows=8192");
        let other = (program, size(flags)) != (&self.program, size(self.flags));
        let had_maps = self.watches;
        let agent = self.agent.take().expect("there is always one");
        if self.random.below(2) == 0 {
            agent.kill();
        } else {
            agent.signal(Signal::SIGTERM);
            agent.stop();
        }
        self.start(program, flags);
        self.done.restarts += 1;
        let agent = self.agent();
        let log = agent.log().join("\n");
        let replaced = agent.count(REPLACED);
        assert_eq!(replaced, usize::from(self.watches && had_maps && other), "{program} {flags:?}:\n{log}");
        if self.watches {
            // What the earlier one had goes when the kernel has the time.
            wait_until("no more than one agent has", Duration::from_secs(2), || {
                self.objects_now() == self.objects
            });
        }
    }

    /// To the agent whose maps have another layout, or back, with the flags that there are: an offloaded flow stays offloaded, and
    /// counting starts again at 0.
    pub(super) fn upgrade_or_downgrade(&mut self) {
        if !self.watches {
            self.restart(&self.program.clone(), &[]);
        }
        let (usual, flags) = (agent::binary(), self.flags);
        let upgrades = self.program == usual;
        let program = if upgrades { OTHER_MAPS.to_owned() } else { usual };
        let port = COUNTED_PORTS.start + (self.agents % COUNTED_PORTS.len()) as u16;
        let mut flow = self.topology.open(Proto::Udp, Family::V4, port);
        assert_eq!(flow.rounds(CROSSED + 10), CROSSED + 10, "{flow:?}");
        self.assert_counted(&flow, CROSSED as u64 + 10);
        let forwarded = self.topology.forwarded(port);
        self.restart(&program, flags);
        assert_eq!(flow.rounds(SHORT), SHORT, "{flow:?}");
        assert_eq!(self.topology.forwarded(port), forwarded, "packets of {flow:?} took the forward path");
        self.assert_counted(&flow, SHORT as u64);
        *(if upgrades { &mut self.done.upgrades } else { &mut self.done.downgrades }) += 1;
    }

    /// Until so much time has passed since the beginning.
    pub(super) fn live(&mut self, until: Duration, restarts: bool) {
        let mut sampled = Instant::now();
        while self.began.elapsed() < until {
            let turn = Instant::now();
            match self.random.below(12) {
                0..3 => self.pod_comes_or_goes(),
                3 => self.policy_denies(),
                4 if restarts => {
                    let flags = FLAGS[self.random.below(FLAGS.len() as u64) as usize];
                    self.restart(&self.program.clone(), flags);
                }
                5 if restarts => self.upgrade_or_downgrade(),
                _ => {}
            }
            for _ in 0..1 + self.random.below(3) {
                self.connection();
            }
            assert!(self.agent().is_running(), "{}", self.agent().log().join("\n"));
            if sampled.elapsed() >= SAMPLE_EVERY || self.samples.is_empty() {
                self.sample();
                sampled = Instant::now();
            }
            thread::sleep(TURN.saturating_sub(turn.elapsed()));
        }
    }

    fn sample(&mut self) {
        let pid = self.agent().pid();
        let sample = Sample {
            second: self.began.elapsed().as_secs_f64(),
            agent: self.agents,
            memory_kib: memory_kib(pid),
            descriptors: descriptors(pid),
            connections: self.done.connections,
        };
        (self.say)(&sample.to_string());
        self.samples.push(sample);
    }

    fn wait_for_links(&mut self) {
        let names: Vec<String> = self.visitors.iter().map(|visitor| format!("p{}", visitor.number)).collect();
        let mut links = vec!["c0", "s0"];
        links.extend(names.iter().map(String::as_str));
        table::wait_for_devices(&self.topology.node, &links, Duration::from_secs(2));
        if self.watches {
            agent::wait_for_programs_of(&self.program, &self.topology.node, &links);
        }
    }

    fn pod_comes_or_goes(&mut self) {
        let number = PODS.start + self.random.below(u64::from(PODS.end - PODS.start)) as u16;
        if let Some(at) = self.visitors.iter().position(|visitor| visitor.number == number) {
            // The pair goes with the namespace.
            drop(self.visitors.swap_remove(at));
        } else {
            let (ns, n) = (Netns::new("pod"), number);
            self.topology.node.ip(&format!(
                "link add p{n} type veth peer name eth0 netns {}\nlink set p{n} up\n\
                 address add 10.{n}.0.1/24 dev p{n}\naddress add fd00:{n}::1/64 dev p{n} nodad\n",
                ns.path()
            ));
            ns.ip(&format!(
                "link set lo up\nlink set eth0 up\naddress add 10.{n}.0.2/24 dev eth0\n\
                 address add fd00:{n}::2/64 dev eth0 nodad\n\
                 route add default via 10.{n}.0.1\nroute add default via fd00:{n}::1\n"
            ));
            self.visitors.push(Visitor { number, ns });
            self.done.pods += 1;
        }
        self.wait_for_links();
    }

    /// A port that no connection had before.
    fn next_port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap_or(10_000);
        self.port
    }

    /// From the client or a pod, to the server by its address or the service's.
    fn open(&mut self, proto: Proto) -> Flow {
        let port = self.next_port();
        let family = [Family::V4, Family::V6][self.random.below(2) as usize];
        let from = self.random.below(self.visitors.len() as u64 + 1) as usize;
        let client = self.visitors.get(from).map_or(&self.topology.client().ns, |visitor| &visitor.ns);
        let listen = self.topology.server_at(family, port);
        let dial = match self.random.below(2) {
            0 => listen,
            _ => self.topology.service_at(family, port),
        };
        self.done.connections += 1;
        Flow::open(proto, client, &self.topology.server().ns, dial, listen)
    }

    fn connection(&mut self) {
        let proto = [Proto::Udp, Proto::Tcp][self.random.below(2) as usize];
        let mut flow = self.open(proto);
        let rounds = match self.random.below(3) {
            0 => SHORT,
            _ => CROSSED + self.random.below(31) as usize,
        };
        assert_eq!(flow.rounds(rounds), rounds, "{flow:?}");
        self.done.rounds += rounds as u64;
        self.done.crossed += u64::from(rounds >= CROSSED);
        if proto == Proto::Tcp && rounds > SHORT {
            let direction = [Direction::Upload, Direction::Download][self.random.below(2) as usize];
            let bytes = 1000 + self.random.below(100_000) as usize;
            flow.transfer(direction, bytes).unwrap_or_else(|error| panic!("{flow:?}: {error}"));
            self.done.bytes += bytes as u64;
        }
        if proto == Proto::Udp && self.watches && self.random.below(4) == 0 {
            self.assert_counted(&flow, rounds as u64);
        }
        if proto == Proto::Tcp && self.random.below(2) == 0 {
            flow.close_gracefully();
        }
    }

    /// What was counted of a flow of UDP is what was sent.
    fn assert_counted(&mut self, flow: &Flow, rounds: u64) {
        let port = format!("--port={}", flow.port());
        let said = agent::output_of(&self.program, &self.topology.node, &["flows", "-o", "json", &port]);
        let flows: Value = serde_json::from_str(&said).expect("the agent prints JSON");
        // An earlier one to the same port may be in conntrack still.
        let words = flow.words();
        let source = words[1].rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).expect("a port");
        let mut flows = flows.as_array().into_iter().flatten();
        let found = flows.find(|flow| flow["original"]["source_port"] == source);
        let packets = |direction: usize| found?["ingress"][direction]["packets"].as_u64();
        assert_eq!([packets(0), packets(1)], [Some(rounds); 2], "{flow:?}: {said}");
        self.done.counted += 2 * rounds;
    }

    /// A rule denies a flow that is offloaded, and goes again.
    fn policy_denies(&mut self) {
        let mut flow = self.open(Proto::Udp);
        let rounds = CROSSED + 10;
        assert_eq!(flow.rounds(rounds), rounds, "{flow:?}");
        self.done.crossed += 1;
        let node = self.topology.node.clone();
        node.nft(&format!("add rule inet soak-filter forward udp dport {} drop", flow.port()));
        thread::sleep(DENIED_WITHIN);
        flow.set_patience(Duration::from_millis(200));
        assert!(!flow.request(), "{flow:?} is denied and goes on");
        node.nft("flush chain inet soak-filter forward");
        flow.set_patience(Duration::from_secs(1));
        flow.settle();
        assert_eq!(flow.rounds(SHORT), SHORT, "{flow:?} is allowed again");
        self.done.denials += 1;
    }

    /// Flows that the agent has heard of. It is told of the last ones while this goes on.
    fn crossed(&self) -> u64 {
        thread::sleep(Duration::from_millis(200));
        self.metric("fastpath_flows_crossed_total")
    }

    fn metric(&self, name: &str) -> u64 {
        let answer = http::get(&self.topology.node, "/metrics");
        let value = |line: &str| line.strip_prefix(name)?.trim().parse::<f64>().ok();
        answer.body.lines().find_map(value).unwrap_or_else(|| panic!("no {name} in {}", answer.body)) as u64
    }

    pub(super) fn end(mut self) -> Result<(), String> {
        let seconds = self.began.elapsed().as_secs();
        let mut rounds = 0;
        for flow in std::mem::take(&mut self.long) {
            rounds += flow.stop_intact().1.rounds;
        }
        let crossed = self.crossed() - self.crossed_before;
        assert_eq!(self.metric("fastpath_unmeasured_packets_total"), 0);
        let expected = self.done.crossed;
        let (memory, more) = growth(&self.samples)?;
        if crossed != expected {
            return Err(format!("{expected} flows crossed the threshold, and the agent counted {crossed}"));
        }
        let Done { connections, rounds: short, bytes, pods, denials, restarts, counted, .. } = self.done;
        let (upgrades, downgrades) = (self.done.upgrades, self.done.downgrades);
        let summary = format!(
            "{seconds} s: {connections} connections, {} rounds and {bytes} bytes, all intact; {pods} pods came, {denials} denials, \
             {restarts} restarts, {upgrades} of them to an agent with other maps and {downgrades} back; {counted} packets counted as sent, {crossed} flows crossed; with the last agent memory grew \
             by {memory} KiB and descriptors by {more}",
            short + rounds as u64
        );
        (self.say)(&summary);
        self.agent.take().expect("there is always one").stop();
        Ok(())
    }
}
