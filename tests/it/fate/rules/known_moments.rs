//! Rules whose moments are known: flows are revalidated then, and not in the meantime. The tests set the guest's clock.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fastpath_tests::{
    agent::{self, Agent},
    http::{self, SERVE, bring_loopback_up},
    netns::Netns,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
};
use serde_json::Value;

/// What the agent promises.
const WITHIN: Duration = Duration::from_millis(1500);
/// Well over a period.
const MEANTIME: Duration = Duration::from_secs(4);

/// How often flows were revalidated because of a rule that changes by itself, whatever came of it.
#[track_caller]
fn revalidations(node: &Netns) -> u64 {
    let page = http::get(node, "/metrics").body;
    let series = "fastpath_revalidations_total{trigger=\"changing-rule\"";
    let values = page.lines().filter(|line| line.starts_with(series));
    values
        .map(|line| line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number") as u64)
        .sum()
}

fn start(topology: &Topology) -> Agent {
    bring_loopback_up(&topology.node);
    Agent::start(&topology.node, &[SERVE])
}

/// Sends for so long, and says how often flows were revalidated meanwhile. All must arrive, past the forward path.
#[track_caller]
fn judged_in_the_meantime(topology: &Topology, flow: &mut Flow) -> u64 {
    // What belongs to the start, and to what was changed last.
    thread::sleep(Duration::from_millis(2500));
    topology.assert_becomes_accelerated(flow);
    let (before, begun) = (revalidations(&topology.node), Instant::now());
    while begun.elapsed() < MEANTIME {
        topology.assert_accelerated(flow);
        thread::sleep(Duration::from_millis(500));
    }
    revalidations(&topology.node) - before
}

/// Sends until nothing arrives any more; how long that took.
#[track_caller]
fn stops(flow: &mut Flow) -> Duration {
    flow.set_patience(Duration::from_millis(100));
    let begun = Instant::now();
    while flow.rounds(1) == 1 {
        assert!(begun.elapsed() < 4 * WITHIN, "{flow:?} goes on");
        thread::sleep(Duration::from_millis(10));
    }
    begun.elapsed()
}

fn judged(node: &Netns) -> Vec<String> {
    let output = agent::run(node, &["status", "-o", "json"]);
    let status: Value = serde_json::from_slice(&output.stdout).expect("the agent prints JSON");
    let rules = status["rules"].as_array().expect("rules").iter();
    rules.map(|rule| rule["judged"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Flows of the next port.
fn open(topology: &Topology, port: u16) -> Flow {
    topology.open(Proto::Udp, Family::V4, port)
}

#[test]
fn elements_run_out() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(
        "table inet fw {
            set portal { type ipv4_addr; flags timeout; elements = { 10.1.0.2 timeout 1h, 10.9.0.1 timeout 2h }; }
            set open { type ipv4_addr; flags interval,timeout; elements = { 10.9.0.0/16 timeout 1h }; }
            map verdicts { type inet_service : verdict; flags timeout; elements = { 9 timeout 1h : drop }; }
            chain forward { type filter hook forward priority 0;
                udp dport vmap @verdicts
                ip saddr @portal accept
                ip saddr @open accept
                ip saddr 10.1.0.2 drop
            }
         }",
    );
    assert_eq!(judged(node), ["at-known-moments"; 3]);
    let agent = start(&topology);
    assert!(agent.log().join("\n").contains("revalidated at known moments"), "{:?}", agent.log());
    let mut flow = open(&topology, 7001);
    assert_eq!(judged_in_the_meantime(&topology, &mut flow), 0);
    let mut port = 7001;
    for (set, element, data) in
        [("portal", "10.1.0.2", ""), ("open", "10.1.0.0/24", ""), ("verdicts", "7004", ": accept")]
    {
        // What is in it already stays as it is.
        if set == "portal" {
            node.nft("delete element inet fw portal { 10.1.0.2 }");
        }
        node.nft(&format!("add element inet fw {set} {{ {element} timeout 8s {data} }}"));
        let begun = Instant::now();
        port += 1;
        let mut flow = open(&topology, port);
        thread::sleep(Duration::from_millis(2500));
        topology.assert_becomes_accelerated(&mut flow);
        let before = revalidations(node);
        while begun.elapsed() < Duration::from_millis(7500) {
            topology.assert_accelerated(&mut flow);
            thread::sleep(Duration::from_millis(400));
        }
        assert_eq!(revalidations(node), before, "{set}");
        stops(&mut flow);
        let took = begun.elapsed();
        println!("{set}: stopped {took:?} after it was added");
        assert!(took < Duration::from_secs(8) + WITHIN, "{set}: {took:?}");
    }
    // Short ones, of which each may be gone before it is read.
    for timeout in [30, 100, 200, 300, 500] {
        node.nft(&format!("add element inet fw portal {{ 10.1.0.2 timeout {timeout}ms }}"));
        port += 1;
        let mut flow = open(&topology, port);
        flow.rounds(25);
        let took = stops(&mut flow);
        assert!(took < WITHIN, "{timeout} ms: {took:?}");
    }
    agent.stop();
}

const DAY: u64 = 86_400;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

/// A bash script, with times in UTC.
fn script(node: &Netns, text: &str) -> String {
    node.feed("bash", &["-euc", &format!("export TZ=UTC\n{text}")], "")
}

/// Sets the clock to so many seconds before the next midnight, which it says in s since 1970.
fn set_before_midnight(node: &Netns, seconds: u64) -> u64 {
    let midnight = (now_s() / DAY + 1) * DAY;
    script(node, &format!("date -s @{}", midnight - seconds));
    midnight
}

#[test]
fn an_hour_strikes() {
    assert_strikes(&[
        ("an hour begins", "meta hour \"00:00\"-\"00:00:30\""),
        ("hours in a set", "meta hour { \"00:00\"-\"00:00:30\", \"12:00\"-\"13:00\" }"),
        ("an hour ends", "meta hour != \"23:00\"-\"23:59:59\""),
    ]);
}

#[test]
fn a_day_begins() {
    assert_strikes(&[
        ("a time", "meta time >= \"TIME\""),
        ("a day begins", "meta day TODAY"),
        ("one of two days", "meta day { TODAY, THEN }"),
    ]);
}

/// Flows stop at midnight by each of these rules, and aren't revalidated before.
#[track_caller]
fn assert_strikes(rules: &[(&str, &str)]) {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft("table inet fw { chain forward { type filter hook forward priority 0; }; }");
    let agent = start(&topology);
    for (port, (name, rule)) in (7001..).zip(rules) {
        let midnight = set_before_midnight(node, 10);
        let time = script(node, &format!("date -d @{midnight} '+%F %T'"));
        // The first of January 1970 was a Thursday.
        let day = |days: u64| ((4 + midnight / DAY + days) % 7).to_string();
        let rule = rule.replace("TIME", time.trim()).replace("TODAY", &day(0)).replace("THEN", &day(1));
        let text =
            format!("flush chain inet fw forward; add rule inet fw forward ip saddr 10.1.0.2 {rule} drop");
        script(node, &format!("nft '{text}'"));
        let mut flow = open(&topology, port);
        assert_eq!(judged_in_the_meantime(&topology, &mut flow), 0, "{name}");
        let midnight = UNIX_EPOCH + Duration::from_secs(midnight);
        let left = midnight.duration_since(SystemTime::now()).expect("it is before midnight");
        thread::sleep(left.saturating_sub(Duration::from_millis(300)));
        topology.assert_accelerated(&mut flow);
        let before = revalidations(node);
        stops(&mut flow);
        let took = SystemTime::now().duration_since(midnight).expect("it is past midnight");
        println!("{name}: stopped {took:?} after midnight");
        assert!(took < WITHIN, "{name}: {took:?}");
        assert!((1..=2).contains(&(revalidations(node) - before)), "{name}");
    }
    agent.stop();
}

#[test]
fn the_clock_is_set() {
    let topology = Topology::routed();
    let node = &topology.node;
    let then = script(node, &format!("date -d @{} '+%F %T'", now_s() + 3600));
    let rule = format!("ip saddr 10.1.0.2 meta time >= \"{}\" drop", then.trim());
    let table =
        format!("table inet fw {{ chain forward {{ type filter hook forward priority 0; {rule}; }}; }}");
    script(node, &format!("nft '{table}'"));
    let agent = start(&topology);
    let mut flow = open(&topology, 7001);
    assert_eq!(judged_in_the_meantime(&topology, &mut flow), 0);
    script(node, &format!("date -s @{}", now_s() + 3601));
    let took = stops(&mut flow);
    assert!(took < WITHIN, "{took:?}");
    // And back: who is let in again is fast again.
    script(node, &format!("date -s @{}", now_s() - 3601));
    topology.assert_becomes_accelerated(&mut flow);
    agent.stop();
}

/// What can't be followed is revalidated every second, as ever.
#[test]
fn moments_that_are_not_known() {
    let many: Vec<String> = (0..5000).map(|n| format!("10.{}.{}.9", 100 + n / 250, n % 250)).collect();
    for (name, rules) in [
        (
            "many elements",
            format!(
                "set s {{ type ipv4_addr; flags timeout; timeout 1h; elements = {{ {} }}; }}
             chain f {{ type filter hook forward priority 0; ip saddr @s drop; }}",
                many.join(", ")
            ),
        ),
        (
            "filled by packets elsewhere",
            "set s { type ipv4_addr; flags timeout; timeout 1h; }
             chain i { type filter hook input priority 0; }
             chain f { type filter hook forward priority 0; ip saddr @s drop; }
             LATER add rule inet fw i udp dport 9 add @s { ip saddr }"
                .to_owned(),
        ),
        (
            "a named set of hours",
            "set s { typeof meta hour; elements = { \"03:00\" }; }
             chain f { type filter hook forward priority 0; meta hour @s drop; }"
                .to_owned(),
        ),
        (
            "a key of several",
            "chain f { type filter hook forward priority 0; meta day . ip saddr { 6 . 10.9.0.1 } drop; }"
                .to_owned(),
        ),
        (
            "a mark besides",
            "chain f { type filter hook forward priority 0; meta hour \"03:00\"-\"03:01\" ct mark 9 drop; }"
                .to_owned(),
        ),
    ] {
        let topology = Topology::routed();
        let node = &topology.node;
        // A set doesn't get the flag that says so, if the rule comes later.
        let (rules, later) = rules.split_once("LATER").unwrap_or((&rules, ""));
        node.nft(&format!("table inet fw {{\n{rules}\n}}"));
        node.nft(later);
        assert_eq!(judged(node), ["every-second"], "{name}");
        let agent = start(&topology);
        let mut flow = open(&topology, 7001);
        thread::sleep(Duration::from_secs(2));
        let before = revalidations(node);
        for _ in 0..30 {
            assert_eq!(flow.rounds(10), 10);
            thread::sleep(Duration::from_millis(100));
        }
        let more = revalidations(node) - before;
        assert!((2..=4).contains(&more), "{name}: {more}");
        agent.stop();
    }
}
