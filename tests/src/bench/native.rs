//! The same kind of traffic on this machine's own processor and clock: two nodes beside each other, one with the agent and
//! one without, which take turns, so that what disturbs one disturbs the other as well.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::node::{Ends, Node, Rules};
use crate::{bench::node::Base, topology::Family};

const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(2);
const BLOCK: usize = 64 * 1024;
/// What a packet of 1,500 bytes carries.
const PER_PACKET: f64 = 1448.0;

/// A node with an open connection through it.
struct Side {
    node: Node,
    sender: TcpStream,
    receiver: TcpStream,
}

/// What came out of one turn.
struct Turn {
    bytes_per_second: f64,
    /// Processor seconds of the whole machine for each GB.
    cpu: f64,
    forwarded: u64,
}

/// Measures and gives medians of both, and of the ratio of neighbours.
///
/// Panics when the flow of the side with the agent isn't offloaded.
#[must_use]
pub fn measure() -> Value {
    let mut sides = [Rules::None, Rules::AgentEbpf].map(Side::open);
    let mut turns = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (side, turns) in sides.iter_mut().zip(&mut turns) {
            turns.push(side.transfer());
        }
    }
    // Acknowledgements under way when a flow is offloaded, and flows that the kernel sends round once.
    let forwarded: u64 = turns[1].iter().map(|turn| turn.forwarded).sum();
    assert!(forwarded < 1_000, "{forwarded} packets of the offloaded flow took the forward path");
    let of = |side: usize, what: fn(&Turn) -> f64| median(turns[side].iter().map(what).collect());
    let ratios = turns[0].iter().zip(&turns[1]).map(|(a, b)| b.bytes_per_second / a.bytes_per_second);
    let side = |number: usize| {
        json!({
            "gbit_per_second": of(number, |turn| turn.bytes_per_second * 8.0 / 1e9),
            "packets_per_second": of(number, |turn| turn.bytes_per_second / PER_PACKET),
            "cpu_seconds_per_gigabyte": of(number, |turn| turn.cpu),
        })
    };
    json!({ "without": side(0), "with": side(1), "ratio": median(ratios.collect()) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Side {
    fn open(rules: Rules) -> Self {
        let mut node = Node::build(Base::Nat, Ends::Answer);
        // Packets as they are on a wire: with segments of 64 KiB the two ends would be all that is measured.
        for pod in &node.topology.pods {
            pod.ns.output("ethtool", &["-K", "eth0", "tso", "off", "gso", "off", "gro", "off"]);
        }
        node.load(rules, 20, &[]);
        let (client, server) = (node.topology.client(), node.topology.server());
        let to = SocketAddr::new(server.address(Family::V4), 7001);
        let listener = server.ns.run(|| TcpListener::bind(to)).expect("listen");
        let sender = client.ns.run(|| TcpStream::connect(to)).expect("connect");
        let (receiver, _) = listener.accept().expect("accept");
        let mut side = Self { node, sender, receiver };
        side.transfer();
        side
    }

    fn transfer(&mut self) -> Turn {
        let (before, busy_before) = (self.node.counts(Family::V4), busy());
        let start = Instant::now();
        let (sender, receiver) = (&mut self.sender, &mut self.receiver);
        let bytes = thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let block = vec![0; BLOCK];
                let mut sent = 0;
                while start.elapsed() < TURN {
                    sender.write_all(&block).expect("send");
                    sent += BLOCK;
                }
                // The other end knows by this byte that it was all.
                sender.write_all(&[1]).expect("send");
                sent + 1
            });
            let mut block = vec![0; BLOCK];
            loop {
                let read = receiver.read(&mut block).expect("receive");
                assert!(read > 0, "the connection ended");
                if block[read - 1] == 1 {
                    return writer.join().expect("writer");
                }
            }
        });
        let took = start.elapsed().as_secs_f64();
        Turn {
            bytes_per_second: bytes as f64 / took,
            cpu: (busy() - busy_before) / (bytes as f64 / 1e9),
            forwarded: (self.node.counts(Family::V4) - before).forwarded,
        }
    }
}

/// Seconds that all processors of this machine were busy, in kernel and user space.
fn busy() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("procfs");
    let line = stat.lines().next().expect("proc(5)");
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).map(|tick| tick.parse().expect("proc(5)")).collect();
    // user, nice, system, then idle and iowait, which aren't, irq, softirq.
    [0, 1, 2, 5, 6].iter().map(|&place| ticks[place]).sum::<f64>() / 100.0
}
