//! Instructions for each packet of a TCP connection: requests of 64 bytes and their responses in turn, both ends included.
//!
//! Both ends are sockets of one thread, so nothing waits for anything. The packets are counted by the node's devices.

use std::{
    io::{Read as _, Write as _},
    time::Instant,
};

use super::{Measure, Row, Samples, node::Between};
use crate::topology::Family;

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
    between: Between,
}

impl Setup {
    fn row(self) -> Row {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        Row { name: format!("tcp{family}-64/{}", self.between.name()), measure: Measure::Exchange(self) }
    }

    pub(super) fn measure(&self) -> Samples {
        let (node, mut client, mut server) = self.between.build(self.family, &[]);
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
                let (received, before) = (self.between.received(&node), node.counts(self.family));
                let start = Instant::now();
                exchange(ROUNDS);
                let took = start.elapsed();
                let packets = self.between.received(&node) - received;
                self.between.check((node.counts(self.family) - before).forwarded);
                took.as_nanos() as f64 / packets as f64
            })
            .collect();
        Samples { unit: "instructions/packet", values, packets: None }
    }
}

pub(super) fn rows() -> Vec<Row> {
    let families = [Family::V4, Family::V6].into_iter();
    families.flat_map(|family| Between::ALL.map(|between| Setup { family, between }.row())).collect()
}
