//! Instructions a connection: TCP connections of a few packets, one after the other, both ends included.
//!
//! Both ends are sockets of one thread, so nothing waits for anything. The packets are counted by the node's devices.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::{
    Measure, Row, Samples,
    node::{Ends, Node, Rules},
};
use crate::{bench::node::Base, topology::Family};

/// Packets of one repetition, about.
const PACKETS: usize = 12_000;
/// With more, the shortest connections would get ports that earlier ones had, and be taken for those.
const REPETITIONS: usize = 5;
/// Packets of an offloaded connection on the normal path: that with which it is offloaded, FIN from both ends, and
/// what follows.
const AT_THE_END: f64 = 6.0;
/// Bytes of a request and of a response.
const PAYLOAD: usize = 64;

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Requests, each answered by a response: a packet each, beside those that begin and end the connection.
    rounds: usize,
    rules: Rules,
    threshold: u32,
}

impl Setup {
    fn row(self) -> Row {
        let rules = match self.rules {
            Rules::None => "no-fastpath".to_owned(),
            rules => format!("{}-threshold-{}", rules.name(), self.threshold),
        };
        Row { name: format!("tcp4-{}-rounds/{rules}", self.rounds), measure: Measure::Connection(self) }
    }

    pub(super) fn measure(&self) -> Samples {
        let mut node = Node::build(Base::Nat, Ends::Answer);
        node.load(self.rules, self.threshold, &[]);
        let to = SocketAddr::new(node.topology.server().address(Family::V4), 7001);
        let listener = node.topology.server().ns.run(|| TcpListener::bind(to)).expect("listen");
        let count = (PACKETS / (2 * self.rounds + 7)).max(1);
        let run = |count: usize| {
            for _ in 0..count {
                self.connect(&listener, to);
            }
        };
        // Sockets are made in the client's namespace.
        node.topology.client().ns.run(|| run(count.div_ceil(4)));
        node.settle();
        let mut packets = 0;
        let values = (0..REPETITIONS)
            .map(|_| {
                let (before, counts) = (node.received(), node.counts(Family::V4));
                let took = node.topology.client().ns.run(|| {
                    let start = Instant::now();
                    run(count);
                    start.elapsed()
                });
                packets = node.received() - before;
                let forwarded = (node.counts(Family::V4) - counts).forwarded;
                self.check_path(packets as f64 / count as f64, forwarded as f64 / count as f64);
                took.as_nanos() as f64 / count as f64
            })
            .collect();
        Samples { unit: "instructions/connection", values, packets: Some(packets as f64 / count as f64) }
    }

    /// Panics unless of a connection's packets those were forwarded that should be: all of them without a fast path, and if it
    /// is too short for one, else those up to the threshold and at its end.
    fn check_path(&self, packets: f64, forwarded: f64) {
        let slow = f64::from(self.threshold) + AT_THE_END;
        let fine = match self.rules {
            Rules::None => forwarded >= packets,
            _ if packets <= slow => forwarded >= packets - AT_THE_END,
            _ => forwarded <= slow,
        };
        assert!(fine, "{self:?}: of {packets} packets of a connection {forwarded} were forwarded");
    }

    /// Never ends; for profiles.
    pub(super) fn connect_forever(&self, modules_only: bool) -> ! {
        let mut node = Node::build(Base::Nat, Ends::Answer);
        node.load(self.rules, self.threshold, &[]);
        let to = SocketAddr::new(node.topology.server().address(Family::V4), 7001);
        let listener = node.topology.server().ns.run(|| TcpListener::bind(to)).expect("listen");
        super::print_symbols(modules_only);
        println!("@@PROFILE inet_csk_accept");
        thread::sleep(Duration::from_secs(1));
        node.topology.client().ns.run(|| {
            loop {
                self.connect(&listener, to);
            }
        })
    }

    fn connect(&self, listener: &TcpListener, to: SocketAddr) {
        let mut client = TcpStream::connect(to).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        let mut buffer = [0; PAYLOAD];
        for _ in 0..self.rounds {
            client.write_all(&buffer).expect("a request");
            server.read_exact(&mut buffer).expect("a request");
            server.write_all(&buffer).expect("a response");
            client.read_exact(&mut buffer).expect("a response");
        }
        client.shutdown(std::net::Shutdown::Write).expect("the client's end");
        assert_eq!(server.read(&mut buffer).expect("the client's end"), 0);
        drop(server);
        assert_eq!(client.read(&mut buffer).expect("the server's end"), 0);
    }
}

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let compared = [(Rules::None, 0), (Rules::Kindnet, 20), (Rules::Alone, 20), (Rules::AgentEbpf, 20)];
    let lower = [(Rules::AgentEbpf, 6), (Rules::AgentEbpf, 1)];
    for rounds in [0, 3, 7, 22, 100, 500] {
        // Those two are for the length from which on a connection gains.
        let lower = if matches!(rounds, 3 | 100) { &[][..] } else { &lower };
        let variants = compared.iter().chain(lower);
        rows.extend(variants.map(|&(rules, threshold)| Setup { rounds, rules, threshold }.row()));
    }
    rows
}
