//! docs/quickstart.md, its parts about a router and a Docker host, word by word: the commands are read out of the document.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use super::{Node, Order, Trial, container};
use crate::{
    agent::Agent,
    document::{self, Documented},
    netns::Netns,
    service::{self, run, sh},
    table,
    terminal::Terminal,
    traffic::{Flow, Proto::Tcp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "quickstart",
    packages: &["docker.io"],
    orders: &[Order::AgentFirst],
    run: trial,
    ..Trial::PLAIN
};

const PAGE: &str = include_str!("../../../docs/quickstart.md");
/// Where the commands are run, as if it were the repository.
const REPOSITORY: &str = "/run/quickstart";

/// The commands of a section.
fn commands(heading: &str) -> Vec<Documented> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(&format!("{heading}\n")));
    let found = document::commands(section.unwrap_or_else(|| panic!("no section {heading}")), &[]);
    assert!(!found.is_empty(), "no commands in section {heading}");
    found
}

/// Runs a command as a reader does, and gives what it prints.
#[track_caller]
fn follow(text: &str) -> String {
    println!("  $ {text}");
    let output =
        Command::new("bash").args(["-c", text]).current_dir(REPOSITORY).stdin(Stdio::null()).output();
    let output = output.expect("bash");
    let said =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(output.status.success(), "$ {text}: {}\n{said}", output.status);
    said
}

/// Looks at `top` until the flow is there.
#[track_caller]
fn watch(text: &str, port: u16) {
    println!("  $ {text}");
    let words: Vec<_> = text.split_whitespace().collect();
    let mut terminal = Terminal::run(&Netns::of_process_1(), &words, 24, 100);
    let flow = format!(":{port}");
    terminal.wait_for("the flow on the screen", Duration::from_secs(20), |lines| {
        lines.iter().any(|line| line.contains(&flow))
    });
    terminal.press("q");
    assert!(terminal.wait_exit(Duration::from_secs(20)).success());
}

/// Follows a section beside a flow to `port` that is offloaded; gives the commands' names and what they print.
#[track_caller]
fn follow_all(commands: &[Documented], port: u16) -> Vec<(String, String)> {
    let mut said = Vec::new();
    for command in commands {
        let words: Vec<_> = command.text.split_whitespace().collect();
        if words[1] == "top" {
            watch(&command.text, port);
        } else {
            said.push((words[1].to_owned(), follow(&command.text)));
        }
    }
    said
}

fn trial(node: &mut Node) {
    router(node);
    docker_host(node);
}

/// The package is removed first, and the document's commands put it back.
fn router(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    run("dpkg", &["--purge", "fastpath-agent"]);
    sh(&format!(
        "mkdir -p {REPOSITORY}/target/package; cp /job/fastpath-agent.deb {REPOSITORY}/target/package/fastpath-agent-1.deb"
    ));
    let mut commands = commands("A plain router");
    // It made the package that this guest was given.
    let made = commands.remove(0);
    assert_eq!(made.text, "cargo xtask package");
    let installed = commands.remove(0);
    let by_hand = commands.pop().expect("a command");
    follow(&installed.text);
    assert_eq!(service::property(service::AGENT, "ActiveState"), "active", "{}", installed.text);
    let mut tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    node.fast("TCP", &mut tcp);
    let from = tcp.words()[1].clone();
    let background = tcp.in_background_every(Duration::from_millis(20));
    let said = follow_all(&commands, 7001);
    assert_eq!(said.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["doctor", "status", "flows"]);
    assert!(said[0].1.contains(" 0 red"), "{}", said[0].1);
    assert!(said[1].1.contains("c0") && said[1].1.contains("s0"), "{}", said[1].1);
    assert!(said[2].1.contains(&from), "no flow of {from} in {}", said[2].1);
    let (mut tcp, _) = background.stop_intact();
    run("systemctl", &["stop", service::AGENT]);
    run("fastpath-agent", &["cleanup"]);
    without_a_package(node, &by_hand.text, &mut tcp);
    run("fastpath-agent", &["cleanup"]);
}

/// The program by itself, and the ruleset that stays.
fn without_a_package(node: &mut Node, text: &str, flow: &mut Flow) {
    println!("  $ {text}");
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec {text}")]);
    let mut agent = Agent::spawn(&node.topology.node, &mut command);
    agent.wait_for("ruleset verified", Duration::from_secs(30));
    node.fast("TCP by the program without its service", flow);
    agent.stop();
    assert!(table::listing(&node.topology.node).is_some(), "the ruleset went with the program");
    node.fast("TCP after its end", flow);
}

fn docker_host(node: &mut Node) {
    let server = node.server();
    service::start(service::AGENT);
    service::start("docker");
    sh(&format!("docker images --quiet tiny | grep -q . || docker import {} tiny", container::archive()));
    sh("docker run --detach --name web tiny /usr/bin/sleep infinity >/dev/null");
    let pid = run("docker", &["inspect", "--format", "{{.State.Pid}}", "web"]);
    let web = Netns::of_process("web", pid.trim().parse().expect("a process"));
    let mut tcp = node.open(Tcp, &web, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    node.fast("TCP of a container", &mut tcp);
    let from = tcp.words()[1].clone();
    let background = tcp.in_background_every(Duration::from_millis(20));
    let said = follow_all(&commands("A Docker host"), 7002);
    assert_eq!(said.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["status", "flows"]);
    assert!(said[0].1.contains("docker0"), "{}", said[0].1);
    assert!(said[1].1.contains(&from), "no flow of {from} in {}", said[1].1);
    background.stop_intact();
    sh("docker rm --force web >/dev/null; systemctl stop docker.socket docker containerd");
    run("systemctl", &["stop", service::AGENT]);
    run("fastpath-agent", &["cleanup"]);
    sh("nft flush ruleset; ip link delete docker0");
    node.count_again();
}
