//! Others flush the whole ruleset and restore their own part, ten times a second.

use std::{
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, rounds},
    path, table,
    topology::Topology,
    wait_until,
};

use super::Traffic;

#[test]
fn every_tenth_of_a_second() {
    let times = rounds(8, 600) as u32;
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let listing = table::listing(node);
    let held = Held::by(&agent, node);
    let traffic = Traffic::start(&topology);
    let (began, cpu) = (Instant::now(), agent.cpu_time());
    for _ in 0..times {
        node.nft("flush ruleset");
        path::install(node, "");
        thread::sleep(Duration::from_millis(100));
    }
    let cpu = agent.cpu_time() - cpu;
    let took = began.elapsed();
    assert!(cpu < took / 4, "{cpu:?} of processor time for {times} flushes in {took:?}");
    assert_eq!(agent.count("keeps changing table"), 1, "{}", agent.log().join("\n"));
    // It answers ever more slowly, but never in more than half a minute.
    let back = wait_until("the table back", Duration::from_secs(31), || table::listing(node) == listing);
    println!("{times} flushes in {took:?}, {cpu:?} of processor time; back after {back:?}");
    traffic.stop_intact(&topology);
    Held::by(&agent, node).assert_no_more_than(&held);
    agent.stop();
}
