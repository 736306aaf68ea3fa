//! The image, run by a real OCI runtime as the DaemonSet wants it run: same arguments, capabilities, mounts, seccomp.

mod image;
mod pod;
mod runtime;
mod seccomp;

use std::{collections::BTreeSet, path::Path, time::Duration};

use fastpath_tests::{
    table,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
    wait_until,
};
use nix::mount::MsFlags;
use serde_json::Value;

use self::{
    image::{ARCHIVE, Image},
    runtime::{Bundle, Container, Unpacked},
};

/// Decompressing and the container's start, emulated.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From the kubelet's exchange of the ConfigMap on.
const SWITCH_LIMIT: Duration = Duration::from_secs(5);

/// A node between two pods, with loopback up, as the probes and the port for metrics need it.
fn node() -> Topology {
    let topology = Topology::routed();
    topology.node.ip("link set lo up\n");
    topology
}

fn started(bundle: &Bundle, topology: &Topology, name: &'static str) -> Container {
    let mut container = bundle.start(&topology.node, name);
    container.agent.wait_for("ruleset verified", START_LIMIT);
    container.agent.wait_for_programs();
    container
}

#[test]
fn the_image_is_the_agent_and_its_libraries() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = Image::checked(Path::new(ARCHIVE));
    let files = image.unpack(directory.path());
    let names: BTreeSet<_> =
        files.iter().map(|path| path.file_name().expect("a file").to_str().expect("plain text")).collect();
    assert_eq!(names.len(), files.len(), "{files:?}");
    assert_eq!(
        names,
        BTreeSet::from([
            "fastpath-agent",
            "ld-linux-x86-64.so.2",
            "libc.so.6",
            "libgcc_s.so.1",
            "libmnl.so.0",
            "libnftnl.so.11",
        ])
    );
    assert!(std::fs::metadata(ARCHIVE).expect("it is there").len() < 20 << 20);
    assert_eq!(image.config["config"]["Labels"]["org.opencontainers.image.title"], "fastpath-agent");
    let components = image.components();
    for name in ["fastpath-agent", "tokio", "aya", "aya-ebpf", "libc6", "libmnl0", "libnftnl11", "libgcc-s1"]
    {
        assert!(components.iter().any(|component| component == name), "no {name} in the bill of materials");
    }
}

#[test]
fn offloads_a_flow() {
    let topology = node();
    let image = Unpacked::new();
    let bundle = image.pod();
    let container = started(&bundle, &topology, "agent");
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    assert_eq!(container.warnings(), Vec::<String>::new());
    let log = container.agent.log().join("\n");
    assert!(log.contains("node=\"node-1\"") && log.contains("pin_path=/bpf/fastpath"), "{log}");
    for probe in [&bundle.pod.container().liveness_probe, &bundle.pod.container().readiness_probe] {
        assert_eq!(topology.node.run(|| probe.http_get.ask()), "200", "{}", probe.http_get.path);
    }
    // What operators run in the container; the maps are found by the variable that it has.
    let status: Value = serde_json::from_str(&container.output(&["status", "-o", "json"])).expect("JSON");
    assert_eq!(status["ebpf"]["attachments"].as_array().map(Vec::len), Some(2), "{status:#}");
    let flows: Value = serde_json::from_str(&container.output(&["flows", "-o", "json"])).expect("JSON");
    let listed = flows.as_array().expect("a list").iter().find(|f| f["original"]["destination_port"] == 7001);
    let listed = listed.unwrap_or_else(|| panic!("no such flow: {flows:#}"));
    assert_eq!(listed["state"], "offloaded", "{listed:#}");
    assert!(listed["ingress"][0]["packets"].as_u64() > Some(100), "{listed:#}");
    topology.assert_accelerated(&mut flow);
    // The node's bpf file system, under its own name.
    assert!(Path::new("/sys/fs/bpf/fastpath").is_dir());
    let told = container.output_while(&["flows", "--follow", "--limit=1", "-o", "json"], || {
        topology.assert_becomes_accelerated(&mut topology.open(Proto::Udp, Family::V6, 7002));
    });
    let told: Value = serde_json::from_str(&told).expect("one line of JSON");
    assert_eq!(told["original"]["destination_port"], 7002, "{told:#}");
}

#[test]
fn each_capability_is_needed() {
    let topology = node();
    let image = Unpacked::new();
    let added = image.pod().pod.container().security_context.capabilities.add.clone();
    assert_eq!(added.len(), 3);
    for (missing, name) in added.iter().zip(["first", "second", "third"]) {
        let bundle = image.changed(|pod| {
            pod.containers[0].security_context.capabilities.add.retain(|capability| capability != missing);
        });
        let mut container = bundle.start(&topology.node, name);
        let what = format!("without CAP_{missing}: ");
        container.agent.wait_for(&what, START_LIMIT);
        let told: Vec<_> = container.agent.log().into_iter().filter(|line| line.contains("CAP_")).collect();
        eprintln!("{missing}: {told:#?}");
        assert_eq!(told.len(), 1, "one line, and no other capability: {told:#?}");
        for other in added.iter().filter(|other| *other != missing) {
            assert!(!told[0].contains(&format!("CAP_{other}")), "{told:#?}");
        }
        if missing == "NET_ADMIN" {
            assert_eq!(container.wait_exit(Duration::from_secs(5)).code(), Some(1), "{told:#?}");
            continue;
        }
        // The rest works.
        container.agent.wait_for("ruleset verified", START_LIMIT);
        topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    }
}

/// As `deploy/overlays/forward-peer` has it.
#[test]
fn forwards_in_ebpf() {
    let topology = node();
    let image = Unpacked::new();
    let bundle = image.changed(|pod| {
        pod.containers[0].args.push("--forward=peer".to_owned());
        let added = &mut pod.containers[0].security_context.capabilities.add;
        added.extend(["SYS_ADMIN", "NET_BROADCAST"].map(str::to_owned));
    });
    let container = started(&bundle, &topology, "agent");
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    wait_until("packets forwarded", Duration::from_secs(10), || {
        assert_eq!(flow.rounds(500), 500);
        let flows: Value = serde_json::from_str(&container.output(&["flows", "-o", "json"])).expect("JSON");
        flows[0]["forwarded"].as_u64() > Some(1000)
    });
    assert_eq!(container.warnings(), Vec::<String>::new());
}

#[test]
fn a_seccomp_profile_that_forbids_bpf() {
    let topology = node();
    let image = Unpacked::new();
    let mut bundle = image.pod();
    let capabilities = &bundle.config["process"]["capabilities"]["effective"];
    let capabilities: Vec<_> = serde_json::from_value(capabilities.clone()).expect("strings");
    bundle.config["linux"]["seccomp"] = seccomp::as_shipped(&capabilities);
    let mut container = started(&bundle, &topology, "agent");
    container.agent.wait_for("a seccomp profile", START_LIMIT);
    assert_eq!(container.agent.count("not watched"), 1);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
}

#[test]
fn a_rolling_update_drops_no_offloaded_flow() {
    let topology = node();
    let image = Unpacked::new();
    let bundle = image.pod();
    let grace = Duration::from_secs(bundle.pod.termination_grace_period_seconds);
    let old = started(&bundle, &topology, "old");
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let before = topology.forwarded(7001);
    let background = flow.in_background();
    old.terminate(grace);
    // New connections are accelerated without an agent too.
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Udp, Family::V4, 7002));
    let new = started(&bundle, &topology, "new");
    assert_eq!(new.agent.count("takes_over=true"), 1, "{}", new.agent.log().join("\n"));
    let (mut flow, report) = background.stop_intact();
    assert_eq!(topology.forwarded(7001), before, "packets took the forward path, of {report:?}");
    topology.assert_accelerated(&mut flow);
    // It watches where the old one did.
    let status: Value = serde_json::from_str(&new.output(&["status", "-o", "json"])).expect("JSON");
    assert_eq!(status["ebpf"]["attachments"].as_array().map(Vec::len), Some(2), "{status:#}");
    assert_eq!(new.warnings(), Vec::<String>::new());
}

#[test]
fn the_last_step_leaves_nothing_behind() {
    let topology = node();
    let image = Unpacked::new();
    let bundle = image.changed(|pod| pod.containers[0].args.push("--cleanup-on-exit".to_owned()));
    let container = started(&bundle, &topology, "agent");
    assert!(table::listing(&topology.node).is_some());
    container.terminate(Duration::from_secs(bundle.pod.termination_grace_period_seconds));
    assert_eq!(table::listing(&topology.node), None);
    assert!(!Path::new("/sys/fs/bpf/fastpath").exists());
}

#[test]
fn the_kill_switch_loses_no_packet() {
    let topology = node();
    let image = Unpacked::new();
    let mut bundle = image.pod();
    let container = started(&bundle, &topology, "agent");
    // TCP would send again what is lost.
    let mut flows =
        [(Proto::Tcp, 7001), (Proto::Udp, 7002)].map(|(proto, port)| topology.open(proto, Family::V4, port));
    for (word, installed) in [("watch", false), ("accelerate", true), ("0%", false), ("100%", true)] {
        if !installed {
            flows.iter_mut().for_each(|flow| topology.assert_becomes_accelerated(flow));
        }
        let background = flows.map(Flow::in_background);
        bundle.mode.set(word);
        let took = wait_until(word, SWITCH_LIMIT, || table::listing(&topology.node).is_some() == installed);
        flows = background.map(|flow| flow.stop_intact().0);
        println!("{word} after {took:?}");
        if !installed {
            flows.iter_mut().for_each(|flow| topology.assert_forwarded(flow));
            // The pod stays ready, and counts on.
            let probe = &bundle.pod.container().readiness_probe;
            assert_eq!(topology.node.run(|| probe.http_get.ask()), "200");
        }
    }
    flows.iter_mut().for_each(|flow| topology.assert_becomes_accelerated(flow));
    assert_eq!(container.warnings(), Vec::<String>::new());
}

/// The default profile of containerd and docker, as far as it has to do with files and mounts (contrib/apparmor/template.go in
/// containerd).
const APPARMOR_PROFILE: &str = "
profile container-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  signal,
  deny @{PROC}/* w,
  deny @{PROC}/sys/[^k]** w,
  deny mount,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
}
";

/// A pod on a node with AppArmor, whose runtime confines it.
fn confined(mut bundle: Bundle) -> Bundle {
    bundle.config["process"]["apparmorProfile"] = "container-default".into();
    bundle
}

#[test]
fn the_default_apparmor_profile() {
    let topology = node();
    let security = "/sys/kernel/security";
    nix::mount::mount(Some("securityfs"), security, Some("securityfs"), MsFlags::empty(), None::<&str>)
        .expect("securityfs");
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").expect("securityfs");
    assert!(modules.contains("apparmor"), "{modules}");
    let profile = format!("@{{PROC}}=/proc/\n{APPARMOR_PROFILE}");
    topology.node.feed("apparmor_parser", &["--add", "--skip-cache"], &profile);

    // Why the DaemonSet has the node's bpf file system at another place: where it is on the node, nothing can be written.
    let image = Unpacked::new();
    let bundle = confined(image.changed(|pod| {
        let container = &mut pod.containers[0];
        container.env.retain(|variable| variable.name != "FASTPATH_PIN_PATH");
        let mount = container.volume_mounts.iter_mut().find(|mount| mount.name == "bpf").expect("a mount");
        mount.mount_path = "/sys/fs/bpf".to_owned();
    }));
    let mut container = started(&bundle, &topology, "as-on-the-node");
    container.agent.wait_for("AppArmor", START_LIMIT);
    assert_eq!(
        container.agent.count("flows are not watched: not permitted to create /sys/fs/bpf/fastpath"),
        1
    );
    drop(container);

    let bundle = confined(image.pod());
    let container = started(&bundle, &topology, "daemon-set");
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    assert_eq!(container.warnings(), Vec::<String>::new());
}
