//! Instructions for each KiB of a TCP transfer, both ends included: with segments as large as veth takes them (GSO), and
//! cut to the MTU as on a wire.
//!
//! Both ends are sockets of one thread: what is written is read before more is.

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

/// What is written before it is read: less than fits into the receiver's buffer.
const BLOCK: usize = 32 * 1024;
/// Blocks before the measurement: the connection gets up to speed.
const WARM_UP: usize = 100;
/// Blocks of one repetition.
const BLOCKS: usize = 100;
const REPETITIONS: usize = 15;

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Segments go through the node uncut.
    gso: bool,
    rules: Rules,
}

impl Setup {
    fn row(self) -> Row {
        let traffic = if self.gso { "gso" } else { "1500" };
        let rules = self.rules.of_connection();
        Row { name: format!("tcp4-{traffic}/{rules}"), measure: Measure::Bulk(self) }
    }

    pub(super) fn measure(&self) -> Samples {
        let mut node = Node::build(Base::Nat, Ends::Answer);
        if !self.gso {
            for pod in &node.topology.pods {
                pod.ns.output("ethtool", &["-K", "eth0", "tso", "off", "gso", "off", "gro", "off"]);
            }
        }
        node.load(self.rules, 20, &[]);
        let (mut sender, mut receiver) = node.connect(Family::V4);
        let mut block = vec![0; BLOCK];
        let mut transfer = |blocks: usize| {
            for _ in 0..blocks {
                sender.write_all(&block).expect("send");
                receiver.read_exact(&mut block).expect("receive");
            }
        };
        transfer(WARM_UP);
        node.settle();
        let values = (0..REPETITIONS)
            .map(|_| {
                let before = node.counts(Family::V4);
                let start = Instant::now();
                transfer(BLOCKS);
                let took = start.elapsed();
                let forwarded = (node.counts(Family::V4) - before).forwarded;
                assert_eq!(forwarded <= STRAYS, self.rules != Rules::None, "{self:?}: {forwarded} forwarded");
                took.as_nanos() as f64 / (BLOCKS * BLOCK / 1024) as f64
            })
            .collect();
        Samples { unit: "instructions/KiB", values, packets: None }
    }
}

pub(super) fn rows() -> Vec<Row> {
    let rules = Rules::FOR_CONNECTIONS;
    [true, false].into_iter().flat_map(|gso| rules.map(|rules| Setup { gso, rules }.row())).collect()
}
