//! More announcements than the agent's sockets hold (ENOBUFS): everything is read again, and counted.

use std::time::Duration;

use fastpath_tests::{
    agent::Agent,
    table,
    topology::{Family, Topology},
    traffic::Proto,
};
use nix::sys::signal::Signal;

const LOST: &str = "announcements came too fast";

/// The agent sleeps while `batch` changes links and `script` the ruleset; then it must be told that it missed some, and
/// the devices must be right.
fn overrun(topology: &Topology, agent: &mut Agent, changes: impl FnOnce(), devices: &[&str]) {
    agent.signal(Signal::SIGSTOP);
    changes();
    agent.signal(Signal::SIGCONT);
    agent.wait_for(LOST, Duration::from_secs(5));
    table::wait_for_devices(&topology.node, devices, Duration::from_secs(5));
    assert!(agent.log().iter().any(|line| line.contains(LOST) && line.contains("overruns=")), "counted");
}

#[test]
fn of_links() {
    let topology = Topology::routed();
    let node = &topology.node;
    // The agent can raise the limit of its receive buffer only as far as it asks; the storm has to be larger.
    let mut agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let mut batch = "link add d0 type dummy\nlink add d1 type dummy\n".to_owned();
    for _ in 0..2000 {
        batch += "link set d0 up\nlink set d0 down\n";
    }
    batch += "link set d1 up\n";
    overrun(&topology, &mut agent, || node.ip(&batch), &["c0", "s0", "d1"]);
    topology.assert_becomes_accelerated(&mut flow);
}

#[test]
fn of_the_ruleset() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start(node, &[]);
    let before = table::listing(node);
    let mut script = String::new();
    for number in 0..3000 {
        script += &format!("add table ip storm{number}\nadd chain ip storm{number} c\n");
    }
    let storm = || {
        for _ in 0..4 {
            node.nft(&script);
            node.nft("flush ruleset");
        }
    };
    overrun(&topology, &mut agent, storm, &["c0", "s0"]);
    assert_eq!(table::listing(node), before);
}
