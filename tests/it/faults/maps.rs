//! The agent's eBPF objects go, are full, or can't be made: flows are accelerated anyway, and nothing is left half-done.

use std::{fs, net::UdpSocket, os::unix::process::CommandExt as _, process::Command, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, rounds},
    http::{self, SERVE, bring_loopback_up},
    memory_limit::MemoryLimit,
    table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::Traffic;

const BPFFS: &str = "/sys/fs/bpf";
const PINS: &str = "/sys/fs/bpf/fastpath";

fn unmount() {
    umount2(BPFFS, MntFlags::MNT_DETACH).expect("a bpf file system");
}

fn mount_again() {
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).expect("mount a bpf file system");
}

fn remove_pins() {
    fs::remove_dir_all(PINS).expect("pins");
}

/// Does damage to a running agent and to one that starts afterwards; then there are as many programs as before.
#[track_caller]
fn assert_survives(damage: fn(), repair: fn()) {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let held = Held::by(&agent, node);
    let traffic = Traffic::start(&topology);
    for _ in 0..rounds(1, 20) {
        damage();
        node.ip("link add d0 type dummy\nlink set d0 up\n");
        table::wait_for_devices(node, &["c0", "d0", "s0"], Duration::from_secs(1));
        node.ip("link del d0\n");
        table::wait_for_devices(node, &["c0", "s0"], Duration::from_secs(1));
        repair();
        agent.kill();
        agent = Agent::start_with(node, &[]);
        agent::wait_for_programs(node, &["c0", "s0"]);
    }
    traffic.stop_intact(&topology);
    Held::by(&agent, node).assert_no_more_than(&held);
    agent.stop();
}

#[test]
fn their_file_system_is_unmounted() {
    assert_survives(unmount, mount_again);
}

#[test]
fn pins_are_removed() {
    assert_survives(remove_pins, || {});
}

/// Without pins before and after: the agent says so in one line and offloads.
#[test]
fn no_file_system_to_pin_on() {
    let topology = Topology::routed();
    let node = &topology.node;
    unmount();
    let agent = Agent::start_with(node, &[]);
    assert_eq!(agent.count("flows are not watched"), 1, "{}", agent.log().join("\n"));
    Traffic::start(&topology).stop_intact(&topology);
    mount_again();
    agent.kill();
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    agent.stop();
}

/// Four times as many flows as there is room for.
#[test]
fn more_flows_than_the_map_has_room_for() {
    const ROOM: u16 = 1024;
    let topology = Topology::routed();
    let node = &topology.node;
    bring_loopback_up(node);
    let agent = Agent::start_with(node, &[SERVE, &format!("--max-flows={ROOM}")]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let held = Held::by(&agent, node);
    let traffic = Traffic::start(&topology);
    let server = topology.server().ns.run(|| UdpSocket::bind("10.2.0.2:9")).expect("a socket");
    for _ in 0..rounds(1, 10) {
        topology.client().ns.run(|| {
            for port in 20_000..20_000 + 4 * ROOM {
                let client = UdpSocket::bind(("10.1.0.2", port)).expect("a socket");
                client.send_to(b"a flow", "10.2.0.2:9").expect("a route");
            }
        });
    }
    drop(server);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(http::get(node, path).status, 200, "{path}");
    }
    // A new one is offloaded as before.
    let mut flow = topology.open(Proto::Udp, Family::V4, 7003);
    topology.assert_becomes_accelerated(&mut flow);
    traffic.stop_intact(&topology);
    // The table of flows that the agent has read takes memory of its own.
    Held { resident: 0, ..Held::by(&agent, node) }.assert_no_more_than(&held);
    agent.stop();
}

/// Another process of the group has the memory that the limit has room for.
#[test]
fn no_memory_for_them() {
    let topology = Topology::routed();
    let node = &topology.node;
    let group = MemoryLimit::new(96 << 20);
    // `tail` keeps all of a line that doesn't end.
    let mut hoard = Command::new("sh");
    hoard.args(["-c", "(head -c 50M /dev/zero; sleep 1000) | tail -n 1"]);
    let mut hoard = node.spawn(group.confine(&hoard).process_group(0));
    wait_until("memory is short", Duration::from_secs(10), || group.peak() > 50 << 20);
    let mut agent = Agent::spawn(node, &mut group.confine(&agent::command(&["--max-flows=262144"])));
    agent.wait_for_ruleset();
    agent.wait_for_programs();
    assert_eq!(agent.count("flows are not watched"), 1, "{}", agent.log().join("\n"));
    Traffic::start(&topology).stop_intact(&topology);
    assert!(agent.is_running());
    let held = Held::by(&agent, node);
    assert_eq!((held.pins, held.filters), (0, 0), "{held:?}");
    agent.stop();
    killpg(Pid::from_raw(hoard.id() as i32), Signal::SIGKILL).expect("it runs");
    hoard.wait().expect("it ends");
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    agent.stop();
}
