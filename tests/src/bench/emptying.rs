//! Instructions for each offloaded flow when the flowtable is emptied: to throw the flow out, and to take it up again.
//!
//! The table is deleted and made again by `nft`, in one transaction, as kindnet does it. What that costs without a flow, and
//! what the packets cost when nothing is emptied, is taken off. The kernel throws flows out some time later, so all that the
//! processor does meanwhile is counted.

use std::{fs, thread, time::Duration};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

use super::{
    Measure, Row, Samples,
    node::{Ends, Node, Rules, STRAYS, rendered},
    packets,
};
use crate::{bench::node::Base, reference, topology::Family};

/// Flows: the product.
const PORTS: (u16, u16) = (625, 16);
/// With the third packet a flow is offloaded.
const THRESHOLD: u32 = 2;
/// In that time the kernel has thrown all flows out.
const THROWN_OUT: Duration = Duration::from_millis(50);
const REPETITIONS: usize = 5;

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    rules: Rules,
}

impl Setup {
    fn row(self) -> Row {
        let flows = u32::from(PORTS.0) * u32::from(PORTS.1);
        Row { name: format!("emptied-{flows}-flows/{}", self.rules.name()), measure: Measure::Emptying(self) }
    }

    pub(super) fn measure(&self) -> Samples {
        let setup = packets::Setup { ports: PORTS, ..packets::Setup::PLAIN };
        packets::allow_connections(4 * setup.flows());
        let mut node = Node::build(Base::Nat, Ends::Drop);
        let forth = setup.forth(&node);
        let table = match self.rules {
            Rules::Kindnet => reference::kindnet_above(THRESHOLD, &["c0", "s0"]),
            _ => format!("delete table inet kindnet-fastpath\n{}", rendered(&node.topology.node, THRESHOLD)),
        };
        node.load(self.rules, THRESHOLD, &[]);
        let replace = || {
            node.topology.node.nft(&table);
            thread::sleep(THROWN_OUT);
        };
        // A packet of each flow, there and back. Says how many took the forward path.
        let pass = || {
            let before = node.counts(Family::V4);
            setup.rounds(&node, &forth, 1);
            (node.counts(Family::V4) - before).forwarded
        };
        let without_flows = (0..3).map(|_| busy(replace).0).min().expect("some");
        setup.converse(&node, &forth, 2);
        let flows = setup.flows();
        let expected = if self.rules == Rules::Kindnet { flows } else { 2 * flows };
        let values = (0..REPETITIONS)
            .map(|_| {
                // So long that there are no traces left, which `nft` would read, but that no flow is forgotten.
                thread::sleep(Duration::from_secs(5));
                let (packets, forwarded) = busy(pass);
                assert!(forwarded <= STRAYS, "{forwarded} of {flows} flows aren't offloaded");
                let (took, forwarded) = busy(|| {
                    replace();
                    pass()
                });
                assert_eq!(
                    forwarded, expected,
                    "each flow is taken up again with the evidence that it takes"
                );
                (took.as_nanos() as f64 - (packets + without_flows).as_nanos() as f64) / flows as f64
            })
            .collect();
        Samples { unit: "instructions/flow", values, packets: None }
    }
}

/// What the processor has done for the kernel's threads, this process and those that it waited for.
fn processor_time() -> Duration {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let of_process = |process: fs::DirEntry| {
        // Some have ended meanwhile, and some entries are no processes.
        let threads = fs::read_dir(process.path().join("task")).into_iter().flatten().flatten();
        threads.filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        })
    };
    let running = processes.flat_map(of_process).sum();
    let ended = getrusage(UsageWho::RUSAGE_CHILDREN).expect("what children used");
    let ended = (ended.user_time() + ended.system_time()).num_microseconds();
    Duration::from_nanos(running) + Duration::from_micros(ended.unsigned_abs())
}

/// Does it, and says how long the processor was busy meanwhile.
fn busy<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let before = processor_time();
    let result = work();
    (processor_time().saturating_sub(before), result)
}

pub(super) fn rows() -> Vec<Row> {
    [Rules::Kindnet, Rules::Alone].map(|rules| Setup { rules }.row()).to_vec()
}
