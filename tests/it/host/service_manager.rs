//! What the agent tells systemd, on kernels without flowtables too.

use std::time::Duration;

use fastpath_tests::{
    agent::{self, Agent},
    service_manager::ServiceManager,
    topology::Topology,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn is_told_that_the_agent_is_ready_reloads_lives_and_stops() {
    let topology = Topology::routed();
    let mut manager = ServiceManager::new();
    let mut command = agent::command(&["--fastpath-threshold=0"]);
    command.env("NOTIFY_SOCKET", manager.address()).env("WATCHDOG_USEC", "400000");
    let mut agent = Agent::spawn(&topology.node, &mut command);
    manager.wait_for("READY=1", LIMIT);
    assert_eq!(manager.wait_for("STATUS=", LIMIT), "STATUS=watching flows, offloading none");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1", Duration::from_secs(2));
    }
    agent.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1", LIMIT);
    manager.wait_for("MONOTONIC_USEC=", LIMIT);
    manager.wait_for("READY=1", LIMIT);
    manager.wait_for("STATUS=watching", LIMIT);
    // A hanging agent gives no sign of life.
    agent.signal(Signal::SIGSTOP);
    manager.listen(Duration::from_millis(300));
    manager.said.clear();
    manager.listen(Duration::from_secs(1));
    assert!(manager.said.is_empty(), "{:?}", manager.said);
    agent.signal(Signal::SIGCONT);
    manager.wait_for("WATCHDOG=1", LIMIT);
    agent.signal(Signal::SIGTERM);
    manager.wait_for("STOPPING=1", LIMIT);
    agent.wait_exit(LIMIT);
}
