//! Our table in a ruleset that was saved and is loaded again, by hand or at boot: it is what we made, whoever loads it.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    reference, table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use serde_json::Value;

const REFUSED: &str = "was made by another program";
const SOON: Duration = Duration::from_secs(10);

/// The remedy that `doctor` gives.
const SAVE: &str = "nft delete table inet kindnet-fastpath; nft list ruleset > ";

fn saved(node: &Netns) -> String {
    node.output("nft", &["list", "ruleset"])
}

/// Waits until the agent has decided what to do with the table, which must be to take it over.
#[track_caller]
fn assert_taken_over(agent: &Agent) {
    let refused = || agent.count(REFUSED) > 0;
    wait_until("the agent's decision", SOON, || refused() || agent.count("ruleset verified") > 0);
    assert!(!refused(), "the agent leaves its own table alone:\n{}", agent.log().join("\n"));
}

#[test]
fn loaded_while_no_agent_runs() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Udp, Family::V4, 7001));
    let saved = saved(node);
    agent.stop();
    node.nft("flush ruleset");
    node.nft(&saved);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7002));
    let agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
    assert_taken_over(&agent);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V6, 7003));
    agent.stop();
    // It is the agent's own from now on, which takes it away again.
    agent::output(node, &["cleanup"]);
    assert_eq!(table::listing(node), None);
}

#[test]
fn loaded_while_the_agent_runs() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    // As a firewall's file has it, in one transaction.
    node.nft(&format!("flush ruleset\n{}", saved(node)));
    thread::sleep(Duration::from_millis(1500));
    assert_taken_over(&agent);
    flow.rounds(25);
    topology.assert_accelerated(&mut flow);
    // It follows what changes.
    node.ip("link add d0 type dummy\nlink set d0 up\n");
    table::wait_for_devices(node, &["c0", "s0", "d0"], SOON);
}

#[test]
fn rendered_and_loaded_by_hand() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(&agent::output(node, &["render"]));
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
    assert_taken_over(&agent);
    flow.rounds(25);
    topology.assert_accelerated(&mut flow);
}

#[test]
fn another_programs_table_is_left_alone_however_it_was_loaded() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(&reference::kindnet(&["c0", "s0"]));
    let saved = saved(node);
    node.nft(&format!("flush ruleset\n{saved}"));
    let foreign = table::listing(node);
    let mut agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
    agent.wait_for(REFUSED, SOON);
    assert_eq!(table::listing(node), foreign);
    drop(agent);
    // Nor is a table that has the name and the chain, but other rules.
    node.nft(
        "delete table inet kindnet-fastpath
         table inet kindnet-fastpath {
             comment \"rules for kindnet fastpath\"
             flowtable kindnet-flowtables { hook ingress priority filter; devices = { c0, s0 }; counter; }
             chain kindnet-fastpath-chain { type filter hook forward priority 300; ct mark 7 accept; }
         }",
    );
    let foreign = table::listing(node);
    let mut agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
    agent.wait_for(REFUSED, SOON);
    assert_eq!(table::listing(node), foreign);
}

/// What doctor says of the files that are loaded at boot: level and remedy.
fn doctor_on_files(node: &Netns) -> (String, String) {
    let text = agent::run(node, &["doctor", "-o", "json", "--no-canary"]).stdout;
    let report: Value = serde_json::from_slice(&text).expect("JSON");
    let found = report["findings"].as_array().expect("a list");
    let found = found.iter().find(|finding| finding["check"] == "saved-ruleset").expect("that check");
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("level"), text("remedy"))
}

/// One that lacks an interface doesn't load a file with our table. `doctor` says so, and what it says helps.
#[test]
fn with_an_interface_that_is_missing_at_boot() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft("table inet edge {\nchain c {\ntype filter hook forward priority 0; udp dport 9 drop\n}\n}");
    node.ip("link add gone type dummy\nlink set gone up\n");
    let mut agent = Agent::start(node, &[]);
    agent.wait_until_idle();
    assert_eq!(doctor_on_files(node).0, "green");

    let file = Path::new("/etc/nftables.conf");
    let kept = tempfile::NamedTempFile::new().expect("temporary file");
    if !file.exists() {
        fs::write(file, "").expect("make it");
    }
    let mounted = Command::new("mount").arg("--bind").args([kept.path(), file]).status();
    assert!(mounted.expect("run mount").success());
    fs::write(file, node.output("nft", &["list", "ruleset"])).expect("write");
    let (level, remedy) = doctor_on_files(node);
    assert_eq!(level, "amber");
    assert!(remedy.contains(&format!("`{SAVE}FILE`")), "{remedy}");
    // A second one, as it says.
    let clean = tempfile::NamedTempFile::new().expect("temporary file");
    node.output("sh", &["-c", &format!("{SAVE}{}", clean.path().display())]);
    agent.wait_for("putting it back", Duration::from_secs(2));
    agent.kill();

    node.ip("link del gone\n");
    thread::sleep(Duration::from_millis(100));
    let boots_with_firewall = |file: &Path| {
        node.nft("flush ruleset");
        node.try_run("nft", &["-f", &file.display().to_string()], "");
        node.output("nft", &["list", "tables"]).contains("inet edge")
    };
    assert!(!boots_with_firewall(file), "why: nothing of the file was loaded");
    assert!(boots_with_firewall(clean.path()));
    fs::copy(clean.path(), file).expect("copy");
    assert_eq!(doctor_on_files(node).0, "green");
    let _agent = Agent::start(node, &[]);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
}
