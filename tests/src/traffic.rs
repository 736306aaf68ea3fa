//! Traffic with known content between two namespaces: rounds of request and response, and bulk transfers over TCP.
//!
//! Both ends are in this process, so that a test knows how many packets it has sent and that each arrived unaltered.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

use crate::{
    kernel,
    netns::Netns,
    topology::{Family, Topology},
};

/// How long a datagram may take before it counts as lost.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(1);
/// How long a TCP connection may stall before it counts as broken.
const STREAM_LIMIT: Duration = Duration::from_secs(6);
/// Losses after which a series of rounds is given up.
const MOST_LOSSES: usize = 3;
/// Time between two rounds of a background flow: leaves the emulated processor to what the test is about.
const PAUSE: Duration = Duration::from_millis(1);

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say it")]
pub enum Proto {
    Tcp,
    Udp,
}

/// Direction of a bulk transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Client to server.
    Upload,
    /// Server to client.
    Download,
}

pub(crate) enum Ends {
    Udp { client: UdpSocket, server: UdpSocket },
    Tcp { client: TcpStream, server: TcpStream },
}

/// A connection (TCP) or a stream of datagrams (UDP) from client to server.
pub struct Flow {
    pub(crate) ends: Ends,
    dialled: SocketAddr,
    payload: usize,
    seed: u64,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match self.ends {
            Ends::Udp { .. } => "UDP",
            Ends::Tcp { .. } => "TCP",
        };
        write!(f, "{proto} to {}", self.dialled)
    }
}

impl Topology {
    /// A flow from client to server.
    #[track_caller]
    pub fn open(&self, proto: Proto, family: Family, port: u16) -> Flow {
        self.open_between(0, 1, proto, family, port)
    }

    /// A flow between two pods, by their place in [`Topology::pods`].
    #[track_caller]
    pub fn open_between(&self, from: usize, to: usize, proto: Proto, family: Family, port: u16) -> Flow {
        let address = SocketAddr::new(self.pods[to].address(family), port);
        Flow::open(proto, &self.pods[from].ns, &self.pods[to].ns, address, address)
    }

    /// A flow from client to server by the service address.
    #[track_caller]
    pub fn open_service(&self, proto: Proto, family: Family, port: u16) -> Flow {
        let (dial, listen) = (self.service_at(family, port), self.server_at(family, port));
        Flow::open(proto, &self.client().ns, &self.server().ns, dial, listen)
    }

    /// The same where the server listens at another port than the service's, `behind`.
    #[track_caller]
    pub fn open_service_to(&self, proto: Proto, family: Family, port: u16, behind: u16) -> Flow {
        let (dial, listen) = (self.service_at(family, port), self.server_at(family, behind));
        let transport = match proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        };
        let network = if dial.is_ipv4() { "ip" } else { "ip6" };
        self.node.nft(&format!(
            "table inet test-nat {{
                chain pre {{
                    type nat hook prerouting priority dstnat
                    {network} daddr {} {transport} dport {port} dnat {network} to {listen}
                }}
            }}\n",
            dial.ip()
        ));
        Flow::open(proto, &self.client().ns, &self.server().ns, dial, listen)
    }
}

impl Flow {
    /// Opens one: the server listens at `listen`, the client dials `dial`. UDP sends nothing yet.
    #[track_caller]
    pub fn open(proto: Proto, client: &Netns, server: &Netns, dial: SocketAddr, listen: SocketAddr) -> Self {
        let any = if dial.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        Self::open_from(proto, client, any.parse().expect("address"), server, dial, listen)
    }

    /// The same, from an address and port of the client's choice.
    #[track_caller]
    pub fn open_from(
        proto: Proto,
        client: &Netns,
        from: SocketAddr,
        server: &Netns,
        dial: SocketAddr,
        listen: SocketAddr,
    ) -> Self {
        let ends = match proto {
            Proto::Udp => {
                let server = server.run(|| UdpSocket::bind(listen)).expect("bind the server");
                let client = client.run(|| UdpSocket::bind(from)).expect("bind the client");
                client.connect(dial).expect("a route to the server");
                for socket in [&server, &client] {
                    socket.set_read_timeout(Some(DATAGRAM_LIMIT)).expect("time limit");
                }
                Ends::Udp { client, server }
            }
            Proto::Tcp => {
                let listener = server.run(|| TcpListener::bind(listen)).expect("bind the server");
                let client = client
                    .run(|| match from.port() {
                        0 => TcpStream::connect_timeout(&dial, STREAM_LIMIT),
                        _ => connect_from(from, dial),
                    })
                    .unwrap_or_else(|error| panic!("connect to {dial}: {error}"));
                let (server, _) = listener.accept().expect("accept");
                for socket in [&server, &client] {
                    socket.set_nodelay(true).expect("no delay");
                    socket.set_read_timeout(Some(STREAM_LIMIT)).expect("time limit");
                    socket.set_write_timeout(Some(STREAM_LIMIT)).expect("time limit");
                }
                Ends::Tcp { client, server }
            }
        };
        Self::from_ends(ends, dial)
    }

    /// One whose ends are open already.
    pub(crate) fn from_ends(ends: Ends, dialled: SocketAddr) -> Self {
        Self { ends, dialled, payload: 64, seed: u64::from(dialled.port()) << 32 }
    }

    /// The port that the client dialled.
    pub fn port(&self) -> u16 {
        self.dialled.port()
    }

    /// The client's address as the server sees it: with masquerade the node's. UDP: after the first request.
    #[track_caller]
    pub fn seen_by_server(&self) -> SocketAddr {
        match &self.ends {
            Ends::Udp { server, .. } => server.peer_addr(),
            Ends::Tcp { server, .. } => server.peer_addr(),
        }
        .expect("a client")
    }

    /// Words that name the flow where there is no NAT.
    #[track_caller]
    pub fn words(&self) -> [String; 3] {
        let (protocol, client) = match &self.ends {
            Ends::Udp { client, .. } => ("udp", client.local_addr()),
            Ends::Tcp { client, .. } => ("tcp", client.local_addr()),
        };
        [protocol.to_owned(), client.expect("a bound socket").to_string(), self.dialled.to_string()]
    }

    /// The client's socket of a UDP flow, for datagrams that need no answer.
    #[track_caller]
    pub fn client_datagrams(&self) -> &UdpSocket {
        let Ends::Udp { client, .. } = &self.ends else { panic!("only UDP has datagrams") };
        client
    }

    /// Gives every request of an IPv4 flow over UDP options (four that do nothing).
    #[track_caller]
    pub fn send_ip_options(&self) {
        const FOUR_NOOPS: [u8; 4] = [1; 4];
        kernel::set_ip_options(self.client_datagrams(), &FOUR_NOOPS)
            .unwrap_or_else(|error| panic!("IP_OPTIONS: {error}"));
    }

    /// Sets the size in bytes of every request and response.
    pub fn set_payload(&mut self, bytes: usize) {
        self.payload = bytes;
    }

    /// Sets how long a packet may take before it counts as lost.
    pub fn set_patience(&mut self, limit: Duration) {
        match &self.ends {
            Ends::Udp { client, server } => {
                for socket in [client, server] {
                    socket.set_read_timeout(Some(limit)).expect("time limit");
                }
            }
            Ends::Tcp { client, server } => {
                for socket in [client, server] {
                    socket.set_read_timeout(Some(limit)).expect("time limit");
                }
            }
        }
    }

    /// Sends `count` requests, each answered before the next; says how many were intact both ways.
    /// Ends early when three are lost, or the connection breaks.
    pub fn rounds(&mut self, count: usize) -> usize {
        let mut intact = 0;
        let mut lost = 0;
        for _ in 0..count {
            if self.request() && self.response() {
                intact += 1;
            } else {
                lost += 1;
                if lost == MOST_LOSSES || matches!(self.ends, Ends::Tcp { .. }) {
                    break;
                }
            }
        }
        intact
    }

    /// Sends one request (UDP: exactly one packet); says whether it arrived intact.
    pub fn request(&mut self) -> bool {
        self.one_way(Direction::Upload)
    }

    /// Sends one response to whoever sent the last request.
    pub fn response(&mut self) -> bool {
        self.one_way(Direction::Download)
    }

    fn one_way(&mut self, direction: Direction) -> bool {
        self.seed += 1;
        let mut sent = vec![0; self.payload];
        Content::new(self.seed).fill(&mut sent);
        match &mut self.ends {
            Ends::Udp { client, server } => match direction {
                Direction::Upload => client.send(&sent).is_ok() && receive(server, &sent, Some(client)),
                Direction::Download => server.send(&sent).is_ok() && receive(client, &sent, None),
            },
            Ends::Tcp { client, server } => {
                let (from, to) = match direction {
                    Direction::Upload => (client, server),
                    Direction::Download => (server, client),
                };
                let mut received = vec![0; sent.len()];
                from.write_all(&sent).is_ok() && to.read_exact(&mut received).is_ok() && received == sent
            }
        }
    }

    /// Sends `bytes` over a TCP connection in one direction and compares every byte. Says how long it took,
    /// or what went wrong after how many bytes.
    pub fn transfer(&mut self, direction: Direction, bytes: usize) -> Result<Duration, String> {
        self.seed += 1;
        let seed = self.seed;
        let Ends::Tcp { client, server } = &mut self.ends else { panic!("bulk transfers are for TCP") };
        let (from, to) = match direction {
            Direction::Upload => (client, server),
            Direction::Download => (server, client),
        };
        let start = Instant::now();
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut content = Content::new(seed);
                let mut block = [0; 16 * 1024];
                let mut left = bytes;
                while left > 0 {
                    let part = &mut block[..left.min(16 * 1024)];
                    content.fill(part);
                    from.write_all(part).map_err(|error| format!("sending, {left} bytes left: {error}"))?;
                    left -= part.len();
                }
                Ok::<(), String>(())
            });
            let mut content = Content::new(seed);
            let mut expected = [0; 16 * 1024];
            let mut block = [0; 16 * 1024];
            let mut left = bytes;
            let received = loop {
                if left == 0 {
                    break Ok(());
                }
                let part = &mut block[..left.min(16 * 1024)];
                if let Err(error) = to.read_exact(part) {
                    break Err(format!("receiving, {left} bytes left: {error}"));
                }
                content.fill(&mut expected[..part.len()]);
                if *part != expected[..part.len()] {
                    break Err(format!("altered in the {} bytes at {}", part.len(), bytes - left));
                }
                left -= part.len();
            };
            if received.is_err() {
                // Lets the writer go.
                let _ = to.shutdown(std::net::Shutdown::Both);
            }
            let sent = writer.join().expect("writer");
            received.and(sent)
        })
        .map(|()| start.elapsed())
    }

    /// Sends requests until one is answered, after the way was interrupted: stale neighbours, late datagrams.
    #[track_caller]
    pub fn settle(&mut self) {
        let start = Instant::now();
        while self.rounds(1) == 0 {
            assert!(start.elapsed() < STREAM_LIMIT, "{self:?} doesn't come back");
        }
    }

    /// Ends a TCP connection from the client's side with FIN, and waits for the server's.
    #[track_caller]
    pub fn close_gracefully(self) {
        let Ends::Tcp { mut client, mut server } = self.ends else { panic!("only TCP is closed") };
        client.shutdown(std::net::Shutdown::Write).expect("close");
        assert_eq!(server.read(&mut [0]).expect("the client's FIN"), 0);
        drop(server);
        assert_eq!(client.read(&mut [0]).expect("the server's FIN"), 0);
    }

    /// Keeps sending rounds on a thread of its own until told to stop.
    pub fn in_background(self) -> Background {
        self.in_background_every(PAUSE)
    }

    /// The same, with so much time between two rounds.
    pub fn in_background_every(mut self, pause: Duration) -> Background {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut report = Report::default();
            while !seen.load(Ordering::Relaxed) {
                let begun = Instant::now();
                report.rounds += 1;
                report.intact += self.rounds(1);
                report.longest = report.longest.max(begun.elapsed());
                if report.rounds > report.intact + MOST_LOSSES {
                    break;
                }
                thread::sleep(pause);
            }
            (self, report)
        });
        Background { stop, thread }
    }
}

/// Connects from an address and port of one's choice, which `std` has no way to ask for.
fn connect_from(from: SocketAddr, dial: SocketAddr) -> io::Result<TcpStream> {
    let family = if dial.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    let stream = TcpStream::from(socket);
    // It limits connecting too: socket(7).
    stream.set_write_timeout(Some(STREAM_LIMIT))?;
    socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(dial))?;
    Ok(stream)
}

/// Receives one datagram, passing over late ones of earlier rounds; `answer_to` connects the server to its client.
fn receive(socket: &UdpSocket, expected: &[u8], answer_to: Option<&UdpSocket>) -> bool {
    let mut buffer = vec![0; expected.len() + 1];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if buffer[..length] == *expected => {
                return answer_to.is_none() || socket.connect(from).is_ok();
            }
            Ok(_) => {}
            // A pending ICMP error of an earlier packet is reported once, here.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(_) => return false,
        }
    }
}

/// A flow that keeps going while the test does something else.
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Flow, Report)>,
}

/// What became of a background flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Rounds sent.
    pub rounds: usize,
    /// Rounds that were intact both ways.
    pub intact: usize,
    /// Longest time that a round took.
    pub longest: Duration,
}

impl Background {
    /// Ends it and gives the flow back.
    #[track_caller]
    pub fn stop(self) -> (Flow, Report) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("background flow")
    }

    /// Ends it; every round must have been intact.
    #[track_caller]
    pub fn stop_intact(self) -> (Flow, Report) {
        let (flow, report) = self.stop();
        assert!(report.rounds > 0 && report.intact == report.rounds, "{flow:?} lost packets: {report:?}");
        (flow, report)
    }
}

/// A stream of bytes that depends on its seed and doesn't repeat (splitmix64).
struct Content {
    state: u64,
}

impl Content {
    fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}
