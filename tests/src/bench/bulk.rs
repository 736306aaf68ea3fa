//! Instructions for each KiB of a TCP transfer, both ends included: with segments as large as veth takes them (GSO), and
//! cut to the MTU as on a wire.
//!
//! Both ends are sockets of one thread: what is written is read before more is.

use std::{
    io::{Read as _, Write as _},
    time::Instant,
};

use super::{Measure, Row, Samples, node::Between};
use crate::topology::Family;

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
    between: Between,
}

impl Setup {
    fn row(self) -> Row {
        let traffic = if self.gso { "gso" } else { "1500" };
        Row { name: format!("tcp4-{traffic}/{}", self.between.name()), measure: Measure::Bulk(self) }
    }

    pub(super) fn measure(&self) -> Samples {
        let tune: &[&str] = if self.gso { &[] } else { &["tso", "off", "gso", "off", "gro", "off"] };
        let (node, mut sender, mut receiver) = self.between.build(Family::V4, tune);
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
                self.between.check((node.counts(Family::V4) - before).forwarded);
                took.as_nanos() as f64 / (BLOCKS * BLOCK / 1024) as f64
            })
            .collect();
        Samples { unit: "instructions/KiB", values, packets: None }
    }
}

pub(super) fn rows() -> Vec<Row> {
    let all = [true, false].into_iter();
    all.flat_map(|gso| Between::ALL.map(|between| Setup { gso, between }.row())).collect()
}
