//! What the agent is woken by besides ruleset and links.

use std::time::Duration;

use fastpath_agent::kernel::{
    Neighbourhood,
    node_monitor::{NodeEvent, NodeMonitor},
};
use fastpath_tests::netns::Netns;

/// How long to wait for what isn't to come. An announcement is there before `ip` has ended.
const A_WHILE: Duration = Duration::from_millis(200);

/// A router may have hundreds of thousands in table main; the kernel itself judges flows by those. Routes of other tables matter, once
/// they come.
#[test]
fn ordinary_routes_cause_no_wake_up() {
    let node = Netns::new("node");
    let ip = |command: &str| drop(node.output("ip", &command.split(' ').collect::<Vec<_>>()));
    ip("link add c0 type veth peer name c1");
    ip("link set c1 up");
    ip("link set c0 up");
    node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut monitor = NodeMonitor::open().expect("a monitor");
            let mut heard = async |command: &str| {
                ip(command);
                tokio::time::timeout(A_WHILE, monitor.next()).await.ok().map(|events| events.expect("events"))
            };
            assert_eq!(heard("-6 route add fd77::/64 dev c0").await, None);
            assert_eq!(heard("-6 route add fd78::/64 dev c0 table 100").await, Some(vec![NodeEvent::Routes]));
            assert_eq!(heard("-6 route del fd78::/64 dev c0 table 100").await, None);
            assert_eq!(heard("-6 route del fd77::/64 dev c0").await, None);
        });
    });
}
