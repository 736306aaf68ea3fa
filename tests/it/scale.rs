//! Many interfaces: all in the flowtable, and each new one soon.

use std::{fmt::Write as _, time::Duration};

use fastpath_tests::{
    agent::Agent,
    link_up::{add_dummies, latencies},
    monitor::Monitor,
    table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};

#[test]
fn six_hundred_interfaces() {
    let topology = Topology::routed();
    let node = &topology.node;
    add_dummies(node, 600, true);
    let agent = Agent::start(node, &[]);
    assert_eq!(table::devices(node).len(), 602);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);

    let mut batch = String::new();
    for number in (0..600).step_by(2) {
        writeln!(batch, "link set d{number} down").expect("string");
    }
    node.ip(&batch);
    wait_until("half of them out again", Duration::from_secs(5), || table::devices(node).len() == 302);
    topology.assert_accelerated(&mut flow);
    agent.stop();
    // All that is right is left alone, however much it is.
    let mut monitor = Monitor::start(node);
    let _agent = Agent::start(node, &[]);
    assert_eq!(monitor.commits_of_agent(), 0);
}

#[track_caller]
fn assert_soon(interfaces: usize, samples: usize) {
    let sorted = latencies(interfaces, samples);
    let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
    eprintln!(
        "from link-up to flowtable with {interfaces} interfaces: median {:?}, 99 % {:?}, most {:?}",
        at(50),
        at(99),
        at(100),
    );
    // A few may fall into a moment in which the guest's processor doesn't get one of this machine's.
    assert!(at(95) < Duration::from_millis(100), "{sorted:?}");
}

#[test]
fn a_new_link_is_in_soon_with_10_interfaces() {
    assert_soon(10, 120);
}

#[test]
fn a_new_link_is_in_soon_with_1000_interfaces() {
    assert_soon(1000, 120);
}
