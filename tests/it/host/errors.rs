//! Wrong values, missing privileges, missing kernel features: one line each with the remedy, and nothing touched.

use std::process::Command;

use fastpath_tests::{
    agent::{self, Agent},
    table,
    topology::{Family, Topology},
    traffic::Proto,
};

/// Whether this kernel can have a flowtable, as `nft` sees it.
fn kernel_has_flowtable(topology: &Topology) -> bool {
    let script = "table inet probe { flowtable f { hook ingress priority 0; devices = { c0 }; }; }";
    topology.node.try_run("nft", &["-c", "-f", "-"], script).status.success()
}

#[test]
fn wrong_values_exit_64_and_touch_nothing() {
    let topology = Topology::routed();
    let before = table::ruleset(&topology.node);
    for (flag, value, allowed) in [
        ("--fastpath-threshold", "-1", "0 to switch"),
        ("--fastpath-threshold", "many", "number of packets"),
        ("--chain-priority", "late", "2147483647"),
        ("--interfaces", "eth[", "glob"),
        ("--exclude-interfaces", "{", "glob"),
        ("--hw-offload", "always", "auto"),
        ("--exclude", "10.1.0.0/33", "10.1.0.0/16"),
        ("--exclude", "tcp/99999", "65535"),
        ("--exclude-file", "/no/such/file", "No such file"),
        ("--ebpf", "xdp2", "tc"),
        ("--pin-path", "here", "absolute"),
        ("--metrics-bind-address", "19080", "127.0.0.1:19080"),
        ("--log-format", "xml", "journald"),
        ("--v", "loud", "number"),
    ] {
        let output = agent::run(&topology.node, &[&format!("{flag}={value}")]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flag}={value}: {said}");
        for word in [flag, value, allowed] {
            assert!(said.contains(word), "{flag}={value}: no {word:?} in:\n{said}");
        }
    }
    for args in [&["--no-such-flag"][..], &["no-such-command"], &["render", "--fastpath-threshold=x"]] {
        let output = agent::run(&topology.node, args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(table::ruleset(&topology.node), before);
}

#[test]
fn wrong_values_in_the_environment_are_named_too() {
    let topology = Topology::routed();
    let mut command = agent::command(&["--ebpf=off"]);
    command.env("FASTPATH_THRESHOLD", "lots");
    let output = topology.node.run(|| command.output()).expect("run the agent");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("fastpath-threshold") && said.contains("lots"), "{said}");
}

/// Runs the agent without CAP_NET_ADMIN, still as root.
fn without_net_admin(topology: &Topology, args: &[&str]) -> std::process::Output {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]).arg(agent::binary()).args(args);
    command.env("FASTPATH_METRICS_BIND_ADDRESS", "");
    topology.node.run(|| command.output()).expect("run setpriv")
}

#[test]
fn without_cap_net_admin() {
    let topology = Topology::routed();
    let output = without_net_admin(&topology, &["run", "--ebpf=off"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("CAP_NET_ADMIN"), "{said}");
    assert_eq!(table::listing(&topology.node), None);
    // Rendering needs no privilege.
    let output = without_net_admin(&topology, &["render"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whichever this kernel is: with a flowtable the ruleset is installed; without one that is said in one line, and the
/// agent goes on. `faults::surroundings::a_module_is_missing` takes the flowtable away from a kernel that has it.
#[test]
fn a_flowtable_is_used_or_missed_as_nft_has_it() {
    let topology = Topology::routed();
    let has = kernel_has_flowtable(&topology);
    let mut agent = Agent::spawn(&topology.node, &mut agent::command(&["--ebpf=off"]));
    if has {
        agent.wait_for_ruleset();
        topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    } else {
        agent.wait_for("nothing is offloaded", std::time::Duration::from_secs(5));
        let said: Vec<_> =
            agent.log().into_iter().filter(|line| line.contains("nothing is offloaded")).collect();
        assert!(said.len() == 1 && said[0].to_lowercase().contains("flow_table"), "no remedy: {said:#?}");
        topology.assert_forwarded(&mut topology.open(Proto::Tcp, Family::V4, 7001));
        assert!(agent.is_running());
        assert_eq!(table::listing(&topology.node), None);
    }
    agent.stop();
}

#[test]
fn help_names_every_environment_variable() {
    let topology = Topology::routed();
    let help = agent::output(&topology.node, &["--help"]);
    for variable in [
        "NODE_NAME",
        "FASTPATH_THRESHOLD",
        "FASTPATH_INTERFACES",
        "FASTPATH_EXCLUDE_INTERFACES",
        "FASTPATH_EXCLUDE",
        "FASTPATH_EXCLUDE_FILE",
        "FASTPATH_CHAIN_PRIORITY",
        "FASTPATH_HW_OFFLOAD",
        "FASTPATH_IGNORE_KNOWN_BUGS",
        "FASTPATH_EBPF",
        "FASTPATH_PIN_PATH",
        "FASTPATH_RUN_DIR",
        "FASTPATH_ASSIST",
        "FASTPATH_METRICS_BIND_ADDRESS",
        "FASTPATH_LOG_FORMAT",
        "FASTPATH_TAKEOVER",
        "FASTPATH_ONCE",
        "FASTPATH_CLEANUP_ON_EXIT",
    ] {
        assert!(help.contains(&format!("[env: {variable}=")), "no {variable} in:\n{help}");
    }
}
