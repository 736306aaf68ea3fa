//! The clock, sysfs, sysctls, kernel modules and privileges are not as usual.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    faults::{Held, Random, rounds},
    netns::Netns,
    table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

use super::Traffic;

/// Sets the clock by so many seconds; monotonic clocks go on.
fn jump(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("a clock");
    let then = TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, then).expect("root");
}

#[test]
fn the_clock_jumps_by_hours() {
    let random = Random::seeded();
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    agent.wait_until_idle();
    let held = Held::by(&agent, node);
    let listing = table::listing(node);
    let traffic = Traffic::start(&topology);
    let mut away = 0;
    for round in 0..rounds(2, 100) {
        let hours = 1 + random.below(48) as i64;
        // Back and forth.
        let seconds = hours * 3600 * if round % 2 == 0 { 1 } else { -1 };
        jump(seconds);
        away += seconds;
        node.nft("delete table inet kindnet-fastpath");
        wait_until("the table back", Duration::from_secs(1), || table::listing(node) == listing);
        if round % 4 == 3 {
            // More repairs in succession take ever longer.
            thread::sleep(Duration::from_secs(11));
        }
    }
    jump(-away);
    traffic.stop_intact(&topology);
    let (cpu, woken) = (agent.cpu_time(), agent.wake_ups());
    thread::sleep(Duration::from_secs(3));
    assert!(
        agent.cpu_time() - cpu < Duration::from_millis(30),
        "it is busy: {} wake-ups",
        agent.wake_ups() - woken
    );
    Held::by(&agent, node).assert_no_more_than(&held);
    agent.stop();
}

fn read_only(path: &str) {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path), path, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Starts an agent where something is missing. It offloads, says at most so many lines of warning, and ends well.
#[track_caller]
fn assert_offloads(watches: bool, warnings: usize) {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    let log = agent.log().join("\n");
    assert_eq!(agent.count("flows are watched") > 0, watches, "{log}");
    assert!(agent.count(" WARN ") <= warnings && agent.count("ERROR") == 0, "{log}");
    let traffic = Traffic::start(&topology);
    node.ip("link add d0 type dummy\nlink set d0 up\n");
    table::wait_for_devices(node, &["c0", "d0", "s0"], Duration::from_secs(1));
    traffic.stop_intact(&topology);
    agent.stop();
}

#[test]
fn sysfs_is_read_only() {
    read_only("/sys");
    assert_offloads(true, 0);
}

/// Without it there is nowhere to pin maps.
#[test]
fn sysfs_is_missing() {
    umount2("/sys", MntFlags::MNT_DETACH).expect("sysfs");
    // The one below, which the test's own was mounted on.
    let _ = umount2("/sys", MntFlags::MNT_DETACH);
    assert!(!fs::exists("/sys/class").expect("a directory"));
    assert_offloads(false, 1);
}

#[test]
fn sysctls_are_read_only() {
    read_only("/proc/sys");
    // The topology sets some of its own.
    let topology = thread::spawn(|| {
        umount2("/proc/sys", MntFlags::MNT_DETACH).expect("mounted");
        let topology = Topology::routed();
        read_only("/proc/sys");
        topology
    });
    let topology = topology.join().expect("a topology");
    let agent = Agent::start_with(&topology.node, &[]);
    assert!(agent.count(" WARN ") <= 1, "{}", agent.log().join("\n"));
    Traffic::start(&topology).stop_intact(&topology);
    agent.stop();
}

/// Takes modules out of the kernel while it lives.
struct Without {
    modprobe: String,
}

const MODPROBE: &str = "/proc/sys/kernel/modprobe";

impl Without {
    /// `modules` in the order in which they can go.
    fn new(node: &Netns, modules: &[&str]) -> Self {
        let modprobe = fs::read_to_string(MODPROBE).expect("procfs");
        fs::write(MODPROBE, "/nonexistent").expect("root");
        // Namespaces of earlier tests may still be on their way out, and hold them.
        wait_until("the modules gone", Duration::from_secs(10), || {
            node.try_run("rmmod", modules, "");
            let loaded = fs::read_to_string("/proc/modules").expect("procfs");
            let is_loaded =
                |module: &&str| loaded.lines().any(|line| line.starts_with(&format!("{module} ")));
            !modules.iter().any(is_loaded)
        });
        Self { modprobe }
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        fs::write(MODPROBE, &self.modprobe).expect("root");
    }
}

/// A module and those that use it, in the order in which they can go.
fn with_users(module: &str) -> Vec<String> {
    let loaded = fs::read_to_string("/proc/modules").expect("procfs");
    // `name size references user,user, …`; `-` for none.
    let users = loaded.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next() == Some(module)).then(|| fields.nth(2).unwrap_or("-").to_owned())
    });
    let users = users.unwrap_or_else(|| panic!("{module} is no module that is loaded:\n{loaded}"));
    let users = users.split(',').filter(|user| !matches!(*user, "" | "-"));
    let mut modules: Vec<String> = Vec::new();
    for name in users.flat_map(with_users).chain([module.to_owned()]) {
        if !modules.contains(&name) {
            modules.push(name);
        }
    }
    modules
}

/// Without conntrack, and so without all that needs it, there is nothing to offload: the agent says so once, with a remedy, and watches.
#[test]
fn conntrack_is_missing() {
    // Loads all that uses it, and is gone when it is taken away.
    let topology = Topology::routed();
    Agent::start(&topology.node, &[]).stop();
    drop(topology);
    let node = Netns::new("node");
    node.ip("link add d0 type dummy\nlink set d0 up\n");
    let modules = with_users("nf_conntrack");
    let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    assert!(modules.contains(&"nf_flow_table") && modules.contains(&"nft_ct"), "{modules:?}");
    let missing = Without::new(&node, &modules);
    for flags in [&["--ebpf=off"][..], &[]] {
        let mut agent = Agent::spawn(&node, &mut agent::command(flags));
        agent.wait_for("nothing is offloaded", Duration::from_secs(10));
        // Until it would have tried again.
        thread::sleep(Duration::from_secs(5));
        let log = agent.log();
        let said: Vec<_> = log.iter().filter(|line| line.contains("nothing is offloaded")).collect();
        let has_remedy = said[0].contains("modprobe -a nft_ct");
        assert!(said.len() == 1 && has_remedy && log.len() < 8, "without {modules:?}: {log:#?}");
        assert!(agent.is_running());
        agent.stop();
    }
    let output = agent::run(&node, &["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.code() == Some(1) && text.contains("modprobe -a nft_ct"),
        "{}: {text}",
        output.status
    );

    drop(missing);
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7002));
}

/// Each of these and what depends on it; the remedy names one of them.
const MODULES: [&[&str]; 4] = [
    &["nft_flow_offload"],
    &["nft_flow_offload", "nf_flow_table_inet"],
    &["nft_flow_offload", "nf_flow_table_inet", "nf_flow_table"],
    &["nft_fib_inet"],
];

#[test]
fn a_module_is_missing() {
    for modules in MODULES {
        let topology = Topology::routed();
        let missing = Without::new(&topology.node, modules);
        let mut agent = Agent::spawn(&topology.node, &mut agent::command(&["--ebpf=off"]));
        agent.wait_for("nothing is offloaded", Duration::from_secs(10));
        let log = agent.log();
        let said: Vec<_> = log.iter().filter(|line| line.contains("nothing is offloaded")).collect();
        assert!(
            said.len() == 1 && modules.iter().any(|module| said[0].contains(module)),
            "without {modules:?} the remedy names a module: {log:#?}"
        );
        topology.assert_forwarded(&mut topology.open(Proto::Tcp, Family::V4, 7001));
        assert!(agent.is_running());
        assert_eq!(table::listing(&topology.node), None);
        let output = agent::run(&topology.node, &["--ebpf=off", "--once"]);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        agent.stop();

        drop(missing);
        let _agent = Agent::start(&topology.node, &[]);
        topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7002));
    }
}

/// Of the unit's three those that it can do without, and of those that root has besides, one at a time.
#[test]
fn a_capability_is_missing() {
    let capabilities = ["perfmon", "bpf", "net_raw", "sys_admin", "dac_override", "sys_resource"];
    for capability in &capabilities[..rounds(2, capabilities.len())] {
        let topology = Topology::routed();
        let mut command = Command::new("setpriv");
        let set = [format!("--bounding-set=-{capability}"), format!("--inh-caps=-{capability}")];
        command
            .args(set)
            .args([&agent::binary(), "run"])
            .env("FASTPATH_METRICS_BIND_ADDRESS", "")
            .stdin(Stdio::null());
        let mut agent = Agent::spawn(&topology.node, &mut command);
        agent.wait_for_ruleset();
        agent.wait_for_programs();
        let log = agent.log().join("\n");
        assert_eq!(agent.count("flows are watched"), 1, "without {capability}: {log}");
        assert_eq!(agent.count(" WARN "), 0, "without {capability}: {log}");
        topology.assert_becomes_accelerated(&mut topology.open(Proto::Udp, Family::V4, 7001));
        agent.stop();
        agent::output(&topology.node, &["cleanup"]);
    }
}
