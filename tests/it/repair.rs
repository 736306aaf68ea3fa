//! Another program flushes the ruleset, deletes our table or a part of it, reloads a firewall: it is put back within a
//! second and said once. A program that keeps doing so is answered ever more slowly.

use std::{
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::Agent,
    monitor::Monitor,
    netns::Netns,
    path, table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};

const PUT_BACK: &str = "putting it back";

/// The table's lines, sorted: what is made again is listed after what wasn't.
fn lines(node: &Netns) -> Option<Vec<String>> {
    let mut lines: Vec<String> = table::listing(node)?.lines().map(str::to_owned).collect();
    lines.sort();
    Some(lines)
}

/// Applies each change in turn; the table must be as before within a second each time, and a new flow accelerated.
#[track_caller]
fn puts_back(flags: &[&str], changes: &[&str]) {
    let topology = Topology::routed();
    let node = &topology.node;
    // The changes concern forwarding too, and the flow is to stay where it is once it is offloaded.
    let agent = Agent::start(node, &[&["--revalidate=off"], flags].concat());
    let before = lines(node);
    for (number, change) in changes.iter().enumerate() {
        node.nft(change);
        wait_until(&format!("the table back after {change:?}"), Duration::from_secs(1), || {
            lines(node) == before
        });
        if !table::ruleset(node).contains("path-probe") {
            path::install(node, "");
        }
        let mut flow = topology.open(Proto::Udp, Family::V4, 7001 + number as u16);
        topology.assert_becomes_accelerated(&mut flow);
        assert_eq!(agent.count(PUT_BACK), number + 1, "said once for each:\n{}", agent.log().join("\n"));
    }
}

#[test]
fn parts_of_the_table() {
    puts_back(
        &[],
        &[
            "flush chain inet kindnet-fastpath kindnet-fastpath-chain",
            "flush set inet kindnet-fastpath kindnet-set-devices",
            "flush chain inet kindnet-fastpath kindnet-fastpath-chain
         delete chain inet kindnet-fastpath kindnet-fastpath-chain",
            "flush chain inet kindnet-fastpath kindnet-original-chain
         flush chain inet kindnet-fastpath kindnet-reply-chain
         delete flowtable inet kindnet-fastpath kindnet-flowtables",
        ],
    );
}

#[test]
fn a_device_the_set_and_the_table() {
    // nft takes a device out of a flowtable of priority 0 only.
    let flags = ["--flowtable-priority=0"];
    puts_back(
        &flags,
        &[
            "delete flowtable inet kindnet-fastpath kindnet-flowtables {
            devices = { s0 }; }",
            "flush chain inet kindnet-fastpath kindnet-offload-chain
         delete set inet kindnet-fastpath kindnet-set-devices",
            "flush chain inet kindnet-fastpath kindnet-fastpath-chain
         flush chain inet kindnet-fastpath kindnet-offload-chain
         delete chain inet kindnet-fastpath kindnet-offload-chain
         delete set inet kindnet-fastpath kindnet-slow-path",
            "delete table inet kindnet-fastpath",
        ],
    );
}

#[test]
fn the_whole_ruleset_and_a_firewall_that_reloads() {
    puts_back(
        &[],
        &[
            "flush ruleset",
            "flush ruleset
         table inet firewall {
            chain forward { type filter hook forward priority filter; policy accept; ct state invalid drop; }
         }",
        ],
    );
}

#[test]
fn a_program_that_keeps_deleting_is_answered_ever_more_slowly() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    let before = table::listing(node);
    let mut monitor = Monitor::start(node);
    let commits_before = monitor.commits_of_agent();
    let cpu_before = agent.cpu_time();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        // Fails when there is none, which is what is wanted.
        node.try_run("nft", &["delete", "table", "inet", table::TABLE], "");
        thread::sleep(Duration::from_millis(20));
    }
    let cpu = agent.cpu_time() - cpu_before;
    let said = agent.count(PUT_BACK);
    let commits = monitor.commits_of_agent() - commits_before;
    assert!((5..=10).contains(&commits), "{commits} transactions in {:?}", start.elapsed());
    assert!(cpu < Duration::from_secs(1), "{cpu:?} of processor time in {:?}", start.elapsed());
    assert_eq!(agent.count("keeps changing table"), 1, "{}", agent.log().join("\n"));
    assert!(said <= commits, "{commits} transactions:\n{}", agent.log().join("\n"));
    wait_until("the table back once nothing deletes it", Duration::from_secs(10), || {
        table::listing(node) == before
    });
}

/// Another program's changes elsewhere in the ruleset are none of the agent's business.
#[test]
fn changes_elsewhere_are_not_answered() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let before = topology.forwarded(7001);
    let background = flow.in_background();
    let mut monitor = Monitor::start(node);
    let commits_before = monitor.commits_of_agent();
    for number in 0..5 {
        node.nft(&format!("table ip kube-proxy-{number} {{ chain services {{ counter; }}; }}"));
    }
    thread::sleep(Duration::from_millis(500));
    assert_eq!(monitor.commits_of_agent(), commits_before, "{:#?}", monitor.lines());
    let (flow, report) = background.stop_intact();
    assert_eq!(topology.forwarded(7001), before, "{flow:?}: {report:?}");
    assert_eq!(agent.count(PUT_BACK), 0);
}
