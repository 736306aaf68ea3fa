//! What goes wrong around the agent, and the agent itself killed: offloaded flows go on, and what it holds doesn't grow. Some rounds
//! of each here; `cargo xtask test --tier=faults` runs as many as are worth it.

mod churn;
mod conntrack;
mod flush;
mod kills;
mod log_reader;
mod maps;
mod memory;
mod metrics_clients;
mod namespaces;
mod overrun;
mod surroundings;

use std::time::Duration;

use fastpath_tests::{
    topology::{Family, Topology},
    traffic::{Background, Flow, Proto, Report},
    wait_until,
};

const PORTS: [u16; 2] = [7001, 7002];

/// An offloaded flow of either protocol and family, at work while something goes wrong.
struct Traffic(Vec<Background>);

impl Traffic {
    /// Opens them; a node with rules that offload is needed.
    #[track_caller]
    fn start(topology: &Topology) -> Self {
        let kinds = [(Proto::Udp, Family::V4), (Proto::Tcp, Family::V6)];
        let begin = |((proto, family), port)| {
            let mut flow = topology.open(proto, family, port);
            topology.assert_becomes_accelerated(&mut flow);
            flow
        };
        let flows: Vec<Flow> = kinds.into_iter().zip(PORTS).map(begin).collect();
        Self(flows.into_iter().map(Flow::in_background).collect())
    }

    /// Packets of theirs that took the forward path so far.
    fn forwarded(topology: &Topology) -> u64 {
        PORTS.map(|port| topology.forwarded(port).total()).iter().sum()
    }

    /// Ends them; how many rounds there were and how many were lost.
    #[track_caller]
    fn stop(self) -> (Vec<Flow>, usize, usize) {
        let ends: Vec<(Flow, Report)> = self.0.into_iter().map(Background::stop).collect();
        let rounds = ends.iter().map(|(_, report)| report.rounds).sum();
        let lost = ends.iter().map(|(_, report)| report.rounds - report.intact).sum();
        (ends.into_iter().map(|(flow, _)| flow).collect(), rounds, lost)
    }

    /// Ends them; none may have lost anything, and all are accelerated within a second if they aren't still.
    #[track_caller]
    fn stop_intact(self, topology: &Topology) -> usize {
        let (flows, rounds, lost) = self.stop();
        assert!(rounds > 0 && lost == 0, "{lost} of {rounds} rounds were lost");
        for mut flow in flows {
            accelerated_soon(topology, &mut flow);
        }
        rounds
    }
}

/// Waits until the flow is offloaded, at most a second, and shows that it is accelerated.
#[track_caller]
fn accelerated_soon(topology: &Topology, flow: &mut Flow) {
    wait_until("the flow offloaded again", Duration::from_secs(1), || {
        assert_eq!(flow.rounds(5), 5, "{flow:?}");
        topology.marked_offloaded(flow.port())
    });
    topology.assert_accelerated(flow);
}
