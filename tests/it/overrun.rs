//! Events without a wake-up. `faults::overrun` has more of them than the agent's sockets hold.

use fastpath_tests::{agent::Agent, topology::Topology};

/// A router may have hundreds of thousands of routes, which come and go.
#[test]
fn ordinary_routes_cause_no_wake_up() {
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
    // One wake-up may be for two of them.
    assert!(heard > 25, "{heard} wake-ups: those of other tables are heard");
}
