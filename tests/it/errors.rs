//! What the kernel or the devices can't do: one line each with the remedy, and the rest works.

use std::{fs, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};

#[test]
fn hardware_offload_on_devices_without_it() {
    let topology = Topology::routed();
    let agent = Agent::start(&topology.node, &["--hw-offload=auto"]);
    assert_eq!(agent.count("no hardware offload"), 1, "{}", agent.log().join("\n"));
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    // Still so when another device comes.
    topology.node.ip("link add d0 type dummy\nlink set d0 up\n");
    table::wait_for_devices(&topology.node, &["c0", "s0", "d0"], Duration::from_secs(3));
    assert_eq!(agent.count("no hardware offload"), 1, "{}", agent.log().join("\n"));
}

/// Takes the flowtable's modules out of the kernel while it lives.
struct NoFlowtable {
    modprobe: String,
}

const MODPROBE: &str = "/proc/sys/kernel/modprobe";

impl NoFlowtable {
    fn new(topology: &Topology) -> Self {
        let modprobe = fs::read_to_string(MODPROBE).expect("procfs");
        fs::write(MODPROBE, "/nonexistent").expect("root");
        // Namespaces of earlier tests may still be on their way out, and hold them.
        wait_until("no flowtable in the kernel", Duration::from_secs(10), || {
            topology.node.try_run("rmmod", &["nft_flow_offload", "nf_flow_table_inet", "nf_flow_table"], "");
            !fs::read_to_string("/proc/modules").expect("procfs").contains("flow_table")
        });
        Self { modprobe }
    }
}

impl Drop for NoFlowtable {
    fn drop(&mut self) {
        fs::write(MODPROBE, &self.modprobe).expect("root");
    }
}

#[test]
fn no_flowtable_module() {
    let topology = Topology::routed();
    let missing = NoFlowtable::new(&topology);
    let mut agent = Agent::spawn(&topology.node, &mut agent::command(&["--ebpf=off"]));
    agent.wait_for("nothing is offloaded", Duration::from_secs(10));
    let said: Vec<_> = agent.log().into_iter().filter(|line| line.contains("nothing is offloaded")).collect();
    assert!(
        said.len() == 1 && said[0].contains("nft_flow_offload"),
        "the remedy names the module: {said:#?}"
    );
    topology.assert_forwarded(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    assert!(agent.is_running());
    let output = agent::run(&topology.node, &["--ebpf=off", "--once"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    agent.stop();

    drop(missing);
    let _agent = Agent::start(&topology.node, &[]);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7002));
}
