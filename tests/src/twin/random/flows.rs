//! Flows of all kinds through both worlds, some of which grow old with the sequence: who sends when, and what became of them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage},
};

use super::{
    super::{case::Ends, free_port},
    told::{Sent, Told},
};
use crate::{
    duplex::{Duplex, Tally},
    netns::Netns,
    path::PORTS,
    topology::{Family, Topology},
    traffic::{self, Direction, Flow, Proto},
};

/// Within this time a connection is made where nothing hinders it, the first packet of which may get lost.
const OPENING: Duration = Duration::from_millis(1300);
/// Time between two messages of an end while its fate is judged, or it gets older.
const TICK: Duration = Duration::from_millis(10);
/// The same meanwhile.
const SLOW_TICK: Duration = Duration::from_millis(40);
/// Messages of each end that take a flow over the threshold, and those that don't.
const WARM_UP: usize = 25;
const YOUNG: usize = 4;
/// Messages of each end by which its fate is judged.
const WINDOW: usize = 20;
/// How long one end is silent after a change where the other one goes on first.
const SILENCE: Duration = Duration::from_millis(500);

/// Bytes of a message that is a packet whatever the MTU.
const SMALL: usize = 64;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Both ends, always.
    Steady,
    /// A fresh one for each operation, below the threshold when that comes.
    Young,
    /// None between an operation and the judgement.
    Idle,
    /// After an operation the client alone for a while, or the server.
    ClientNext,
    ServerNext,
    /// The server answers the first message only.
    OneWay,
}

/// Between which addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Near,
    Distant,
    /// To the service address, where there is one.
    Service,
}

#[derive(Clone, Copy)]
struct Spec {
    proto: Proto,
    family: Family,
    kind: Kind,
    way: Way,
}

impl Spec {
    /// Bytes of its messages. Some are too large for an interface whose MTU an operation makes smaller, and those of TCP are several
    /// segments.
    fn size(&self) -> usize {
        match (self.proto, self.family, self.kind, self.way) {
            (Tcp, V6, Steady, _) => 4000,
            (Udp, V6, Steady, _) | (Udp, V4, Steady, Distant) => 1400,
            _ => SMALL,
        }
    }
}

const fn spec(proto: Proto, family: Family, kind: Kind, way: Way) -> Spec {
    Spec { proto, family, kind, way }
}

use {Family::*, Kind::*, Proto::*, Way::*};

const SPECS: [Spec; 12] = [
    spec(Tcp, V4, Steady, Near),
    spec(Udp, V4, Steady, Service),
    spec(Tcp, V6, Steady, Distant),
    spec(Udp, V6, Steady, Near),
    spec(Udp, V4, Steady, Distant),
    spec(Tcp, V4, Young, Distant),
    spec(Udp, V6, Young, Near),
    spec(Tcp, V4, Idle, Near),
    spec(Udp, V6, Idle, Distant),
    spec(Tcp, V6, ClientNext, Service),
    spec(Udp, V4, ServerNext, Distant),
    spec(Udp, V4, OneWay, Near),
];

/// How many of them are offloaded where nothing is in their way. Programs have seen too little of those that are silent when
/// they are older than the rules, requests to IPVS don't pass the forward hook, and a tunnel may carry IPv4 only.
pub(super) fn eligible(sequence: &super::Sequence) -> usize {
    let excused = |spec: &Spec| {
        spec.kind == OneWay
            || sequence.programs && spec.kind == Idle
            || sequence.ipvs && spec.way == Service
            || !sequence.attach.recipe().ipv6 && spec.family == V6
    };
    SPECS.iter().filter(|spec| !excused(spec)).count()
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?} {:?}", self.proto, self.family, self.kind, self.way)
    }
}

/// A flow in both worlds, or none where it couldn't be opened.
struct Pair {
    flows: [Duplex; 2],
    /// The client's port.
    source: u16,
    /// Operations that it has seen.
    age: usize,
}

/// Connections by the client's port: conntrack's number of each, which another one of the same ports hasn't.
pub(super) type Numbered = BTreeMap<u16, u64>;

/// Those of a node.
pub(super) fn numbered(node: &Netns) -> Numbered {
    let mut all = Numbered::new();
    for family in ["ipv4", "ipv6"] {
        let listed = node.output("conntrack", &["-L", "-f", family, "-o", "id"]);
        all.extend(listed.lines().filter_map(|line| {
            let field = |name: &str| {
                let value = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
                value.parse::<u64>().ok()
            };
            Some((u16::try_from(field("sport=")?).ok()?, field("id=")?))
        }));
    }
    all
}

/// The flows.
pub(super) struct Flows {
    service: bool,
    /// Messages that an end sends at once.
    burst: usize,
    slots: [Option<Pair>; SPECS.len()],
}

impl Flows {
    pub(super) fn new(service: bool, burst: usize) -> Self {
        Self { service, burst, slots: [const { None }; SPECS.len()] }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Opens those that aren't there, and takes them over the threshold, or nearly so. Where a connection is made in one
    /// world only, that is a difference.
    pub(super) fn refill(&mut self, worlds: &[Topology; 2]) -> Result<(), String> {
        let mut fresh = [false; SPECS.len()];
        let mut under_way = Vec::new();
        for (at, spec) in SPECS.iter().enumerate() {
            if spec.kind == Young {
                self.slots[at] = None;
            }
            if self.slots[at].is_none() {
                let source = free_port();
                let begin = |world| Opening::begin(world, *spec, at, source, self.service);
                under_way.push((at, source, worlds.each_ref().map(begin)));
            }
        }
        let limit = Instant::now() + OPENING;
        for (at, source, opening) in under_way {
            match opening.map(|opening| opening.end(limit)) {
                [Some(with), Some(without)] => {
                    let flows =
                        [with, without].map(|flow| flow.into_duplex().impatient().sized(SPECS[at].size()));
                    self.slots[at] = Some(Pair { flows, source, age: 0 });
                    fresh[at] = true;
                }
                [None, None] => {}
                [with, _] => {
                    let (spec, here) = (SPECS[at], if with.is_some() { "with" } else { "without" });
                    return Err(format!(
                        "{spec}: a new connection is made only in the world {here} the agent"
                    ));
                }
            }
        }
        let young = YOUNG.div_ceil(self.burst);
        for round in 0..WARM_UP {
            self.each(|at, spec, _| match spec.kind {
                _ if !fresh[at] || spec.kind == Young && round >= young => [false; 2],
                _ => [true; 2],
            });
            thread::sleep(TICK);
        }
        Ok(())
    }

    /// Gives up flows that a node has forgotten since `before`. Which node does is chance, and so is what becomes of them: a client's next
    /// packet is translated as before, a server's is taken for the node's own and refused.
    pub(super) fn give_up_forgotten(&mut self, before: &[Numbered; 2], after: &[Numbered; 2]) {
        for slot in &mut self.slots {
            let Some(Pair { source, .. }) = slot else { continue };
            let forgotten = |world: usize| {
                before[world].contains_key(source) && before[world].get(source) != after[world].get(source)
            };
            if forgotten(0) || forgotten(1) {
                *slot = None;
            }
        }
    }

    fn each(&mut self, send: impl Fn(usize, &Spec, usize) -> [bool; 2]) {
        let burst = self.burst;
        for (at, (pair, spec)) in self.slots.iter_mut().zip(&SPECS).enumerate() {
            let Some(pair) = pair else { continue };
            let [up, down] = send(at, spec, pair.age);
            for flow in &mut pair.flows {
                let down = down && (spec.kind != OneWay || flow.down.sent == 0);
                for (wanted, direction) in [(up, Direction::Upload), (down, Direction::Download)] {
                    if wanted {
                        (0..burst).for_each(|_| flow.send(direction));
                        flow.receive();
                    }
                }
                flow.receive();
            }
        }
    }

    /// Goes on until `limit` after `begun`, each flow as its kind does.
    pub(super) fn run_until(&mut self, begun: Instant, limit: Duration) {
        while begun.elapsed() < limit {
            let alone = begun.elapsed() < SILENCE;
            self.each(|_, spec, _| match spec.kind {
                Idle => [false; 2],
                ClientNext if alone => [true, false],
                ServerNext if alone => [false, true],
                _ => [true; 2],
            });
            thread::sleep(SLOW_TICK);
        }
    }

    /// Judges each flow by a window of messages, and gives up those that no fair comparison can be made of any more.
    /// Says how many arrive.
    pub(super) fn judge(&mut self) -> Result<usize, String> {
        let mut judged = self.window();
        // A retransmission may be under way, which TCP puts off for twice as long each time.
        if judged.iter().flatten().any(Judged::may_be_late) {
            thread::sleep(Duration::from_millis(500));
            self.run_until(Instant::now(), Duration::from_secs(1));
            judged = self.window();
        }
        let wronged: Vec<String> = judged
            .iter()
            .zip(&SPECS)
            .zip(&self.slots)
            .filter_map(|((judged, spec), pair)| {
                let judged = judged.as_ref().filter(|judged| judged.is_wronged())?;
                let age = pair.as_ref().map_or(0, |pair| pair.age);
                Some(format!("{spec} (seen {age} operations): {judged}"))
            })
            .collect();
        if !wronged.is_empty() {
            return Err(wronged.join("\n"));
        }
        let mut arriving = 0;
        for (slot, judged) in self.slots.iter_mut().zip(judged) {
            let (Some(pair), Some(judged)) = (slot.as_mut(), judged) else { continue };
            pair.age += 1;
            arriving += usize::from(judged.arrives(0));
            // What comes of a stopped TCP connection depends on its timers; a server that doesn't know its client stays dumb.
            let stopped = !judged.arrives(0) || !judged.arrives(1);
            let dumb = pair.flows.iter().any(|flow| flow.down.sent == 0);
            if stopped && (judged.tcp || dumb || judged.one_way) {
                *slot = None;
            }
        }
        Ok(arriving)
    }

    /// Shows that what the agent says of flows is so, and says of how many it does, and how many are forwarded by programs. `counts` if
    /// programs are wherever they should be.
    pub(super) fn tools_are_true(&mut self, node: &Netns, counts: bool) -> Result<(usize, usize), String> {
        // Flows may be revalidated in the midst of it.
        self.told(node, counts).or_else(|_| self.told(node, counts))
    }

    fn told(&mut self, node: &Netns, counts: bool) -> Result<(usize, usize), String> {
        let Some(before) = Told::ask(node) else { return Ok((0, 0)) };
        let judged = self.window();
        let Some(after) = Told::ask(node) else { return Ok((0, 0)) };
        let mut forwarded = 0;
        let flows = judged.into_iter().zip(&self.slots).zip(&SPECS);
        let told = flows.filter_map(|((judged, pair), spec)| {
            let (pair, Judged { tcp, worlds: [tallies, _], .. }) = (pair.as_ref()?, judged?);
            let datagrams = !tcp && spec.size() == SMALL;
            let sent = Sent { from: pair.source, port: pair.flows[0].port(), datagrams, tallies };
            forwarded += usize::from(after.has_forwarded(&before, &sent));
            Some(after.is_so(&before, &sent, counts)?.map_err(|untrue| format!("{spec}: {untrue}")))
        });
        let told: Result<Vec<()>, String> = told.collect();
        told.map(|told| (told.len(), forwarded))
    }

    fn window(&mut self) -> [Option<Judged>; SPECS.len()] {
        let tallies = |slots: &[Option<Pair>; SPECS.len()]| {
            slots
                .each_ref()
                .map(|pair| pair.as_ref().map(|pair| pair.flows.each_ref().map(|flow| [flow.up, flow.down])))
        };
        let before = tallies(&self.slots);
        for _ in 0..WINDOW {
            self.each(|_, _, _| [true; 2]);
            thread::sleep(TICK);
        }
        self.each(|_, _, _| [false; 2]);
        let after = tallies(&self.slots);
        std::array::from_fn(|at| {
            let (before, after) = (before[at]?, after[at]?);
            let worlds = [0, 1].map(|world| [0, 1].map(|way| after[world][way] - before[world][way]));
            let Spec { proto, kind, .. } = SPECS[at];
            Some(Judged { tcp: proto == Tcp, one_way: kind == OneWay, worlds })
        })
    }
}

/// Messages of a flow in the window.
struct Judged {
    tcp: bool,
    one_way: bool,
    /// With and without; up and down.
    worlds: [[Tally; 2]; 2],
}

fn arrives(tally: Tally) -> bool {
    tally.arrived * 10 >= tally.sent * 9
}

impl Judged {
    fn arrives(&self, world: usize) -> bool {
        self.worlds[world].into_iter().all(arrives)
    }

    /// Another fate, as [`Findings`](super::super::Findings) has it. Of a direction in which one end doesn't know the other nothing is
    /// said.
    fn is_wronged(&self) -> bool {
        let [with, without] = self.worlds;
        self.arrives(0) != self.arrives(1)
            || !self.tcp
                && [0, 1].into_iter().any(|way| {
                    let known = with[way].sent > 0 && without[way].sent > 0;
                    known && arrives(with[way]) != arrives(without[way])
                })
    }

    fn may_be_late(&self) -> bool {
        self.tcp && !self.arrives(0) && self.arrives(1)
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [[up, down], [up_without, down_without]] = self.worlds;
        write!(
            f,
            "{} of {} requests and {} of {} answers arrive (without the agent: {} of {}, {} of {})",
            up.arrived,
            up.sent,
            down.arrived,
            down.sent,
            up_without.arrived,
            up_without.sent,
            down_without.arrived,
            down_without.sent,
        )
    }
}

/// A flow being opened.
enum Opening {
    Udp([UdpSocket; 2], SocketAddr),
    Tcp(TcpListener, TcpStream, SocketAddr),
    Failed,
}

impl Opening {
    fn begin(world: &Topology, spec: Spec, at: usize, source: u16, service: bool) -> Self {
        let port = PORTS.start() + at as u16;
        let ends = match spec.way {
            Near => Ends::Near,
            Service if service => Ends::Service("10.96.0.1", "fd00:96::1"),
            Distant | Service => Ends::Distant,
        };
        let (from, dial, listen) = super::super::addresses(world, spec.family, ends);
        let at = |address: IpAddr, port| SocketAddr::new(address, port);
        let (from, dial, listen) = (at(from, source), at(dial, port), at(listen, port));
        let (client, server) = (&world.client().ns, &world.server().ns);
        let begun = match spec.proto {
            Udp => server.run(|| UdpSocket::bind(listen)).and_then(|server| {
                let client = client.run(|| UdpSocket::bind(from))?;
                client.connect(dial)?;
                Ok(Self::Udp([client, server], dial))
            }),
            Tcp => server.run(|| TcpListener::bind(listen)).and_then(|listener| {
                let client = client.run(|| connect_from(from, dial))?;
                Ok(Self::Tcp(listener, client, dial))
            }),
        };
        begun.unwrap_or(Self::Failed)
    }

    fn end(self, limit: Instant) -> Option<Flow> {
        match self {
            Self::Failed => None,
            Self::Udp([client, server], dial) => {
                Some(Flow::from_ends(traffic::Ends::Udp { client, server }, dial))
            }
            Self::Tcp(listener, client, dial) => {
                let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                let left = limit.saturating_duration_since(Instant::now());
                if poll(&mut ready, PollTimeout::try_from(left).expect("a short time")).ok()? == 0 {
                    return None;
                }
                let (server, _) = listener.accept().ok()?;
                for socket in [&server, &client] {
                    socket.set_nodelay(true).ok()?;
                }
                Some(Flow::from_ends(traffic::Ends::Tcp { client, server }, dial))
            }
        }
    }
}

/// Begins to connect and doesn't wait.
fn connect_from(from: SocketAddr, dial: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if dial.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(family, SockType::Stream, flags, None)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(dial)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}
