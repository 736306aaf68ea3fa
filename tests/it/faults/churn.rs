//! Interfaces that come and go, 200 changes a second.

use std::{
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, Random, rounds},
    reference, table,
    topology::Topology,
};

use super::Traffic;

const CHANGES_A_SECOND: u64 = 200;
const CHANGES_AT_ONCE: u64 = 20;
/// Links that come and go.
const LINKS: u64 = 12;

/// Changes links for so many tenths of a second, and leaves none of them.
fn churn(topology: &Topology, random: &Random, tenths: u64) {
    let mut up = [false; LINKS as usize];
    let began = Instant::now();
    for turn in 1..=tenths * CHANGES_A_SECOND / CHANGES_AT_ONCE / 10 {
        let mut batch = String::new();
        for _ in 0..CHANGES_AT_ONCE / 2 {
            let number = random.below(LINKS) as usize;
            // A change each: it comes, and is switched on; or it goes, after it was switched off.
            batch += &match up[number] {
                false => format!("link add churn{number} type dummy\nlink set churn{number} up\n"),
                true => format!("link set churn{number} down\nlink del churn{number}\n"),
            };
            up[number] = !up[number];
        }
        topology.node.ip(&batch);
        let next = Duration::from_millis(turn * 1000 * CHANGES_AT_ONCE / CHANGES_A_SECOND);
        thread::sleep(next.saturating_sub(began.elapsed()));
    }
    let left = up.iter().enumerate().filter(|(_, up)| **up);
    topology.node.ip(&left.map(|(number, _)| format!("link del churn{number}\n")).collect::<String>());
    println!("{} changes in {:?}", tenths * CHANGES_A_SECOND / 10, began.elapsed());
}

/// The same churn over plain rules and over the agent's: as much arrives, and in the end all is as before.
#[test]
fn two_hundred_changes_a_second() {
    let tenths = rounds(5, 600) as u64;
    let plain = Topology::routed();
    plain.node.nft(&reference::kindnet(&["c0", "s0"]));
    let traffic = Traffic::start(&plain);
    churn(&plain, &Random::seeded(), tenths);
    let (_, _, lost_without) = traffic.stop();

    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let listing = table::listing(node);
    let held = Held::by(&agent, node);
    let traffic = Traffic::start(&topology);
    churn(&topology, &Random::seeded(), tenths);
    table::wait_for_devices(node, &["c0", "s0"], Duration::from_secs(1));
    agent::wait_for_programs(node, &["c0", "s0"]);
    let (flows, rounds, lost) = traffic.stop();
    assert!(lost <= lost_without, "{lost} of {rounds} rounds were lost, without the agent {lost_without}");
    for mut flow in flows {
        super::accelerated_soon(&topology, &mut flow);
    }
    assert_eq!(table::listing(node), listing);
    assert!(agent.is_running());
    Held::by(&agent, node).assert_no_more_than(&held);
    println!("{lost} of {rounds} rounds lost, {lost_without} without the agent");
    agent.stop();
}
