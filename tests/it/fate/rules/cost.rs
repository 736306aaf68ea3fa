//! What it costs to have flows revalidated: printed, with a bound that only a blunder passes.

use std::time::{Duration, Instant};

use fastpath_tests::{
    agent::{self, Agent},
    path::PORTS,
    topology::{Family, Topology},
    traffic::Proto,
};

/// Rounds after which a flow that is still allowed is back in the flowtable.
const ROUNDS: usize = 4;
const REPETITIONS: u32 = 20;

#[test]
fn of_revalidating_a_flow() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start(node, &[]);
    let mut flows: Vec<_> = PORTS.map(|port| topology.open(Proto::Udp, Family::V4, port)).collect();
    for flow in &mut flows {
        assert_eq!(flow.rounds(30), 30);
    }
    // The guest's clock counts instructions, a nanosecond each.
    let mut spent = [Duration::ZERO; 2];
    for _ in 0..REPETITIONS {
        for (spent, command) in spent.iter_mut().zip(["status", "revalidate"]) {
            agent::output(node, &[command]);
            let begun = Instant::now();
            for flow in &mut flows {
                assert_eq!(flow.rounds(ROUNDS), ROUNDS);
            }
            *spent += begun.elapsed();
        }
    }
    let [fast, revalidated] = spent.map(|spent| spent / REPETITIONS / flows.len() as u32);
    let cost = revalidated.saturating_sub(fast);
    println!(
        "{ROUNDS} rounds of a flow take {fast:?}, {revalidated:?} after it is revalidated: {cost:?} more"
    );
    assert!(cost < Duration::from_micros(200), "{cost:?}");
}
