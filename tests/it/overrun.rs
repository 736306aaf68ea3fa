//! More announcements than the agent's sockets hold (ENOBUFS): everything is read again, and counted.
//!
//! Only for links: of the ruleset the agent hears one small message for each transaction, and ten thousand
//! transactions take too long in the emulator.

use std::time::Duration;

use fastpath_tests::{
    agent::Agent,
    table,
    topology::{Family, Topology},
    traffic::Proto,
};
use nix::sys::signal::Signal;

const LOST: &str = "announcements came too fast";

#[test]
fn more_changes_of_links_than_the_socket_holds() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let mut batch = "link add d0 type dummy\nlink add d1 type dummy\n".to_owned();
    for _ in 0..2000 {
        batch += "link set d0 up\nlink set d0 down\n";
    }
    batch += "link set d1 up\n";
    agent.signal(Signal::SIGSTOP);
    node.ip(&batch);
    agent.signal(Signal::SIGCONT);
    agent.wait_for(LOST, Duration::from_secs(5));
    table::wait_for_devices(node, &["c0", "s0", "d1"], Duration::from_secs(5));
    assert!(agent.log().iter().any(|line| line.contains(LOST) && line.contains("overruns=1")), "counted");
    topology.assert_becomes_accelerated(&mut flow);
}

/// A router may have hundreds of thousands of routes, which come and go.
#[test]
fn ordinary_routes_wake_nobody() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    agent.wait_until_idle();
    let routes = |verb: &str, table: u32| {
        let before = agent.wake_ups();
        for number in 0..50 {
            node.ip(&format!("route {verb} fd00:9::{number:x}/128 dev s0 table {table}\n"));
        }
        agent.wake_ups() - before
    };
    let (came, went) = (routes("add", 254), routes("del", 254));
    assert!(came < 25 && went < 25, "{came} and {went} wake-ups");
    let heard = routes("add", 100);
    assert!(heard >= 50, "{heard} wake-ups: those of other tables are heard");
}
