//! Instructions for each offloaded flow when the flowtable is emptied: to throw the flow out, and to take it up again.
//!
//! The table is deleted and made anew by `nft`, in one transaction, as kindnet does it. What that costs without a flow, and
//! what the packets cost when nothing is emptied, is taken off. The kernel throws flows out some time later, so all that the
//! processor does meanwhile is counted.

use std::{
    fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::unistd::gettid;

use super::{
    Measure, Row, Samples,
    node::{Ends, Node, Rules, rendered},
    packets::{self, Base, STRAYS},
};
use crate::{netns::Netns, reference, topology::Family};

/// Flows: the product.
const PORTS: (u16, u16) = (625, 16);
/// With the third packet a flow is offloaded.
const THRESHOLD: u32 = 2;
/// In that time the kernel has thrown all flows out.
const THROWN_OUT: Duration = Duration::from_millis(50);
const REPETITIONS: usize = 3;

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
        let spinner = Spinner::start();
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
        let without_flows = (0..3).map(|_| spinner.busy(replace).0).min().expect("some");
        setup.converse(&node, &forth, 2);
        let flows = setup.flows();
        let expected = if self.rules == Rules::Kindnet { flows } else { 2 * flows };
        let values = (0..REPETITIONS)
            .map(|_| {
                // So long that there are no traces left, which `nft` would read, but that no flow is forgotten.
                thread::sleep(Duration::from_secs(5));
                let (packets, forwarded) = spinner.busy(pass);
                assert!(forwarded <= STRAYS, "{forwarded} of {flows} flows aren't offloaded");
                let (took, forwarded) = spinner.busy(|| {
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

/// A thread that takes what the processor has left, and so says how much it had not. While nothing is measured, it sleeps.
struct Spinner {
    id: i32,
    thread: thread::Thread,
    wanted: Arc<AtomicBool>,
}

impl Spinner {
    fn start() -> Self {
        let wanted = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let spins = Arc::clone(&wanted);
        let running = thread::spawn(move || {
            tell.send(gettid().as_raw()).expect("somebody listens");
            loop {
                while spins.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                thread::park();
            }
        });
        let id = told.recv().expect("it runs");
        let mut command = Command::new("chrt");
        command.args(["--idle", "--pid", "0", &id.to_string()]);
        let ended_well = Netns::of_process_1().spawn(&mut command).wait().expect("wait for chrt").success();
        assert!(ended_well, "the thread has the least priority");
        Self { id, thread: running.thread().clone(), wanted }
    }

    /// Does it, and says how long the processor was busy meanwhile.
    fn busy<T>(&self, work: impl FnOnce() -> T) -> (Duration, T) {
        self.wanted.store(true, Ordering::Relaxed);
        self.thread.unpark();
        let (start, left) = (Instant::now(), self.ran());
        let result = work();
        let left = self.ran().saturating_sub(left);
        let busy = start.elapsed().saturating_sub(left);
        self.wanted.store(false, Ordering::Relaxed);
        (busy, result)
    }

    fn ran(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.id)).expect("procfs");
        let ran = stat.split_whitespace().next().and_then(|text| text.parse().ok());
        Duration::from_nanos(ran.expect("nanoseconds"))
    }
}

pub(super) fn rows() -> Vec<Row> {
    [Rules::Kindnet, Rules::Alone].map(|rules| Setup { rules }.row()).to_vec()
}
