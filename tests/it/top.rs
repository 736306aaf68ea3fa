//! `top` on a terminal: what is on its screen with flows that are really offloaded, and what keys do to it.

use std::time::Duration;

use fastpath_tests::{
    agent::{self, Agent},
    terminal::Terminal,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vt100::Color;

/// Readings are a second apart, and the guest's processor is emulated.
const SOON: Duration = Duration::from_secs(10);
const RED: Color = Color::Idx(1);
const GREEN: Color = Color::Idx(2);
const SHARE: &str = "% packets on the fast path: ";

/// Where a line that has all of these words is.
fn line_with(lines: &[String], words: &[&str]) -> Option<usize> {
    lines.iter().position(|line| words.iter().all(|word| line.contains(word)))
}

fn has(lines: &[String], words: &[&str]) -> bool {
    line_with(lines, words).is_some()
}

/// The share of packets in the left graph's title, in percent; `None` while there is none.
fn share(lines: &[String]) -> Option<u32> {
    let (_, text) = lines.iter().find_map(|line| line.split_once(SHARE))?;
    let digits: String =
        text.trim_start_matches(['<', '>']).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The upmost line of the left graph, with what is blank.
fn peaks(lines: &[String]) -> String {
    let title = line_with(lines, &[SHARE]).expect("the graph's title");
    format!("{:<80}", lines[title + 1]).chars().take(40).collect()
}

#[test]
fn offloaded_flows_are_watched_live() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let mut one_way = topology.open(Proto::Udp, Family::V4, 7002);
    for _ in 0..30 {
        assert!(one_way.request());
    }
    // The terminal's settings before and after, and how it ended, are left on the screen.
    let script = r#"stty -g | cksum; "$@"; echo "exit $?"; stty -g | cksum"#;
    let mut top = Terminal::run(node, &["sh", "-c", script, "sh", &agent::binary(), "top"], 24, 80);

    // All packets on the forward path.
    let lines = top.wait_for("no packet on the fast path", SOON, |lines| {
        assert!(one_way.request());
        share(lines) == Some(0) && has(lines, &["stalled: one-way", ":7002"])
    });
    assert!(lines[0].starts_with("fastpath ") && lines[0].contains("threshold 20 packets"), "{lines:#?}");
    assert!(lines[1].contains("fast 0 (0%)") && lines[1].contains("(1 stalled)"), "{lines:#?}");
    assert!(lines[23].ends_with("? help  q quit"), "{lines:#?}");
    assert_eq!(peaks(&lines).trim_matches([' ', '·']), "", "{lines:#?}");
    let stalled = line_with(&lines, &["stalled: one-way"]).expect("seen above");
    assert_eq!(top.colour(stalled, 0), RED);

    // All of them on the fast path.
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let background = flow.in_background();
    // The graph has a full column on the right then.
    let lines = top.wait_for("all packets on the fast path", SOON, |lines| {
        share(lines).is_some_and(|share| share >= 99) && peaks(lines).ends_with('█')
    });
    println!("{}", lines.join("\n"));
    assert!(peaks(&lines).trim_start_matches([' ', '·']).chars().count() < 20, "it rose: {lines:#?}");
    assert!(lines[1].contains("fast 1 "), "{lines:#?}");
    let offloaded = line_with(&lines, &["offloaded", "tcp 10.1.0.2:", "> 10.2.0.2:7001", "c0,s0"]);
    assert_eq!(offloaded.map(|line| top.colour(line, 0)), Some(GREEN), "{lines:#?}");

    keys(&top);

    top.press("g\r");
    let lines = top.wait_for("why the flow is fast, or isn't", SOON, |lines| has(lines, &["accelerated"]));
    assert!(has(&lines, &[" Why "]) && has(&lines, &["ok", "flow", ":700"]), "{lines:#?}");
    top.press("x");
    top.wait_for("the table", SOON, |lines| !has(lines, &[" Why "]));

    top.press("q");
    assert!(top.wait_exit(SOON).success());
    let lines = top.wait_for("the shell's last words", SOON, |lines| !lines[2].is_empty());
    assert_eq!([&lines[1], &lines[2]], ["exit 0", &lines[0]], "as it was: {lines:#?}");
    assert_eq!(top.taken(), (false, false));
    background.stop_intact();
}

/// Every kind of key, while a flow to port 7001 is offloaded and an older one to port 7002 is stalled.
fn keys(top: &Terminal) {
    let flow = |lines: &[String], port: &str| line_with(lines, &[" > 10.2.0.2:", port, "c0"]);
    let order = |lines: &[String]| Some((flow(lines, ":7001 ")?, flow(lines, ":7002 ")?));
    let offloaded_first = |lines: &[String]| order(lines).is_some_and(|(a, b)| a < b);
    let stalled_first = |lines: &[String]| order(lines).is_some_and(|(a, b)| a > b);
    top.press("s");
    top.wait_for("by state", SOON, |lines| has(lines, &["STATE▼"]) && offloaded_first(lines));
    top.press("r");
    top.wait_for("the other way round", SOON, |lines| has(lines, &["STATE▲"]) && stalled_first(lines));
    top.press("p");
    top.wait_for("by packets", SOON, |lines| has(lines, &["PKT/S▼"]) && offloaded_first(lines));
    top.press("a");
    top.wait_for("by age", SOON, stalled_first);

    top.press("/7001");
    top.wait_for("a search being typed", SOON, |lines| {
        lines[23] == "/7001" && flow(lines, ":7002 ").is_none()
    });
    top.press("\r");
    top.wait_for("a search", SOON, |lines| has(lines, &["\"7001\": 1"]) && flow(lines, ":7001 ").is_some());
    top.press("/\u{15}\r");
    top.wait_for("no search", SOON, |lines| flow(lines, ":7002 ").is_some());

    top.press("?");
    top.wait_for("help", SOON, |lines| has(lines, &["Ctrl-C", "quit"]));
    top.press("x\t");
    top.wait_for("interfaces", SOON, |lines| {
        has(lines, &["INTERFACE", "% PKT FAST"])
            && has(lines, &["c0 ", " yes "])
            && has(lines, &["s0 ", " yes "])
            && !has(lines, &["Ctrl-C"])
    });
    top.press("\t ");
    top.wait_for("paused", SOON, |lines| lines[0].ends_with("PAUSED"));
    top.press(" +");
    top.wait_for("every two seconds", SOON, |lines| lines[0].contains("every 2 s"));
    top.press("-");

    top.resize(40, 120);
    top.wait_for("a large screen", SOON, |lines| {
        has(lines, &["PACKETS", "AGE▼"]) && lines[39].ends_with("? help  q quit")
    });
    top.resize(10, 60);
    top.wait_for("a small screen", SOON, |lines| {
        lines[9].starts_with("p b t a s order") && !has(lines, &[SHARE]) && both_are_there(lines)
    });
    top.resize(24, 80);
    top.wait_for("the first size", SOON, |lines| lines[23].ends_with("? help  q quit"));
}

/// Ends of flows are cut short where there is little room.
fn both_are_there(lines: &[String]) -> bool {
    has(lines, &["offloaded", "7001 "]) && has(lines, &["stalled: one-way", "7002 "])
}

#[test]
fn the_terminal_is_given_back_when_it_is_told_to_end() {
    let topology = Topology::routed();
    let node = &topology.node;
    for signal in [Some(Signal::SIGTERM), Some(Signal::SIGHUP), None] {
        let mut top = Terminal::run(node, &[&agent::binary(), "top"], 24, 80);
        top.wait_for("a screen", SOON, |lines| lines[0].starts_with("fastpath "));
        assert_eq!(top.taken(), (true, true));
        match signal {
            Some(signal) => kill(Pid::from_raw(top.pid() as i32), signal).expect("it runs"),
            None => top.press("\u{3}"),
        }
        assert!(top.wait_exit(SOON).success());
        wait_until("the terminal given back", SOON, || top.taken() == (false, false));
    }
}
