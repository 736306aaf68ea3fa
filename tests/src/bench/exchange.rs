//! Instructions for each packet of a TCP connection: requests of 64 bytes and their responses in turn, both ends included.
//!
//! Both ends are sockets of one thread, so nothing waits for anything. The packets are counted by the node's devices.

use std::{
    io::{Read as _, Write as _},
    time::Instant,
};

use super::{
    Measure, Row, Samples,
    node::{Ends, Node, Rules},
    packets::STRAYS,
};
use crate::{bench::node::Base, topology::Family};

/// Rounds before the measurement: more packets than the threshold, and what else a new connection does differently.
const WARM_UP: usize = 200;
/// Rounds of one repetition.
const ROUNDS: usize = 1_000;
const REPETITIONS: usize = 5;
/// Bytes of a request and of a response.
const PAYLOAD: usize = 64;

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    family: Family,
    rules: Rules,
}

impl Setup {
    fn row(self) -> Row {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        let rules = self.rules.of_connection();
        Row { name: format!("tcp{family}-64/{rules}"), measure: Measure::Exchange(self) }
    }

    pub(super) fn measure(&self) -> Samples {
        let mut node = Node::build(Base::Nat, Ends::Answer);
        node.load(self.rules, 20, &[]);
        let (mut client, mut server) = node.connect(self.family);
        for socket in [&client, &server] {
            socket.set_nodelay(true).expect("a socket option");
        }
        let mut buffer = [0; PAYLOAD];
        let mut exchange = |rounds: usize| {
            for _ in 0..rounds {
                client.write_all(&buffer).expect("a request");
                server.read_exact(&mut buffer).expect("a request");
                server.write_all(&buffer).expect("a response");
                client.read_exact(&mut buffer).expect("a response");
            }
        };
        exchange(WARM_UP);
        node.settle();
        exchange(WARM_UP);
        let values = (0..REPETITIONS)
            .map(|_| {
                let (received, before) = (node.received(), node.counts(self.family));
                let start = Instant::now();
                exchange(ROUNDS);
                let took = start.elapsed();
                let packets = node.received() - received;
                let forwarded = (node.counts(self.family) - before).forwarded;
                assert_eq!(forwarded <= STRAYS, self.rules != Rules::None, "{self:?}: {forwarded} forwarded");
                took.as_nanos() as f64 / packets as f64
            })
            .collect();
        Samples { unit: "instructions/packet", values, packets: None }
    }
}

pub(super) fn rows() -> Vec<Row> {
    let rules = Rules::FOR_CONNECTIONS;
    let families = [Family::V4, Family::V6];
    families.into_iter().flat_map(|family| rules.map(|rules| Setup { family, rules }.row())).collect()
}
