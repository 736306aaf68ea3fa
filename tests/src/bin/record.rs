//! The guest's side of `cargo xtask dashboard`: two nodes with an agent each, four minutes in which as much happens as a dashboard can
//! show, and every page of metrics meanwhile. It prints what was on the pages and what was done when; it judges nothing.
//!
//! Lines that begin with `@@RECORD` are JSON: `event` (as it happens), and at the end `times` (of a node's pages) and `series` (the
//! values of one series by the number of the page, only where they changed; null where it was gone).

use std::{
    collections::BTreeMap,
    panic, process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::Agent,
    http::{self, SERVE, bring_loopback_up},
    netns::Netns,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Background, Direction, Flow, Proto},
};
use serde_json::{Value, json};

/// From page to page.
const INTERVAL: Duration = Duration::from_secs(1);
/// The whole recording.
const LENGTH: u64 = 240;

/// What a thread goes on with until it is told to stop.
type Stop = AtomicBool;

fn main() {
    // The other threads would go on.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        process::exit(101);
    }));
    let nodes =
        [Node::new("node-a", &["--exclude-interfaces=p3"]), Node::new("node-b", &["--max-flows=1024"])];
    let [a, b] = &nodes;
    // There from the start, since it is a change of the ruleset.
    a.topology.node.nft(
        "table inet helpers {
            ct helper reader { type \"ftp\" protocol tcp; l3proto inet; }
            chain pre { type filter hook prerouting priority 0; tcp dport 7021 ct helper set \"reader\"; }
        }
        table inet edge {
            chain forward { type filter hook forward priority 0; udp dport 7025-7027 limit rate over 1000/second drop; }
        }",
    );
    let (agent_a, agent_b) = (a.start(), b.start());
    let (stop, downloads_end) = (Stop::new(false), Stop::new(false));
    let clock = Clock(Instant::now());
    thread::scope(|scope| {
        let pages = nodes.each_ref().map(|node| scope.spawn(|| node.record(&clock, &stop)));
        for node in &nodes {
            scope.spawn(|| node.short_connections(&stop));
        }
        let _steady = b.exchange(Proto::Udp, Family::V4, 7011, 20);

        clock.say(15, "node-a: three downloads over TCP and an exchange over UDP begin");
        for port in 7001..=7003 {
            let downloads_end = &downloads_end;
            scope.spawn(move || a.download(port, downloads_end));
        }
        let exchange = a.exchange(Proto::Udp, Family::V6, 7012, 20);

        clock.say(40, "node-a: connections that can't be offloaded begin: over an interface that is excluded, without answers, with a helper, under a rule that limits their rate");
        let excluded = background(a.topology.open_between(0, 2, Proto::Udp, Family::V4, 7022), 100);
        let helped = a.exchange(Proto::Tcp, Family::V4, 7021, 100);
        scope.spawn(|| a.without_answers(7023, &downloads_end));
        let limited = [7025, 7026, 7027].map(|port| a.exchange(Proto::Udp, Family::V4, port, 100));

        clock.say(60, "node-a: an exchange whose packets have IP options begins: offloaded, and handed back to the forward path");
        let slow = a.topology.open(Proto::Udp, Family::V4, 7024);
        slow.send_ip_options();
        let slow = background(slow, 50);

        clock.say(80, "node-a: three interfaces are added");
        let pods = a.add_interfaces();

        clock.say(95, "node-a: a firewall changes its rules six times in 9 s");
        for change in 0..6 {
            a.topology.node.nft(&format!(
                "table inet firewall {{
                    chain forward {{
                        type filter hook forward priority 0; policy accept;
                        tcp dport {} drop
                    }}
                }}",
                9000 + change
            ));
            thread::sleep(Duration::from_millis(1800));
        }

        clock.say(120, "node-a: the agent is stopped");
        agent_a.stop();
        clock.say(135, "node-a: the agent is started again");
        let agent_a = a.start();

        clock.say(150, "node-b: 800 connections within seconds, and a map that has room for 512");
        for number in 0..800 {
            b.one_round(10_000 + number);
        }

        clock.say(170, "node-b: another program puts a table of the agent's name in place of its own");
        b.topology.node.nft(
            "delete table inet kindnet-fastpath
             add table inet kindnet-fastpath",
        );
        clock.say(190, "node-b: that table is deleted");
        b.topology.node.nft("delete table inet kindnet-fastpath");

        clock.say(205, "node-a: the connections end, and the three interfaces are removed");
        downloads_end.store(true, Ordering::Relaxed);
        for flow in [exchange, excluded, helped, slow].into_iter().chain(limited) {
            flow.stop();
        }
        drop(pods);
        a.remove_interfaces();

        clock.wait(LENGTH);
        stop.store(true, Ordering::Relaxed);
        for (node, pages) in nodes.iter().zip(pages) {
            print(node.name, &pages.join().expect("pages"));
        }
        agent_a.stop();
        agent_b.stop();
    });
}

fn record(line: &Value) {
    println!("@@RECORD {line}");
}

/// Time since the recording began.
struct Clock(Instant);

impl Clock {
    fn seconds(&self) -> f64 {
        (self.0.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }

    fn wait(&self, second: u64) {
        thread::sleep(Duration::from_secs(second).saturating_sub(self.0.elapsed()));
    }

    /// Waits for that second, and says what happens then.
    fn say(&self, second: u64, what: &str) {
        self.wait(second);
        record(&json!({ "event": { "at": self.seconds(), "what": what } }));
    }
}

/// A page as it came: when, and the lines that are samples.
struct Page {
    at: f64,
    samples: BTreeMap<String, Value>,
}

/// Client, node and server; the node has an agent.
struct Node {
    name: &'static str,
    topology: Topology,
    flags: Vec<String>,
}

impl Node {
    fn new(name: &'static str, flags: &[&str]) -> Self {
        let topology = Topology::build(Layout { pods: 3, nat: Nat::Service, ..Layout::default() });
        bring_loopback_up(&topology.node);
        // Packets as they are on a wire, not of 64 KiB.
        for pod in &topology.pods {
            pod.ns.output("ethtool", &["-K", "eth0", "tso", "off", "gso", "off", "gro", "off"]);
        }
        let mut flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        flags.push(SERVE.to_owned());
        flags.push(format!("--hostname-override={name}"));
        // Two agents in one system.
        flags.push(format!("--pin-path=/sys/fs/bpf/{name}"));
        flags.push(format!("--run-dir=/run/{name}"));
        Self { name, topology, flags }
    }

    fn start(&self) -> Agent {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        Agent::start_with(&self.topology.node, &flags)
    }

    /// Reads the page of metrics once in an interval; while no agent answers there is none.
    fn record(&self, clock: &Clock, stop: &Stop) -> Vec<Page> {
        let mut pages = Vec::new();
        for number in 0.. {
            thread::sleep((INTERVAL * number).saturating_sub(clock.0.elapsed()));
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let at = clock.seconds();
            let headers = "Accept: application/openmetrics-text; version=1.0.0\r\n";
            if let Ok(answer) = http::try_get(&self.topology.node, "/metrics", headers)
                && answer.status == 200
            {
                pages.push(Page { at, samples: samples(&answer.body) });
            }
        }
        pages
    }

    /// What browsers and probes do: never above the threshold.
    fn short_connections(&self, stop: &Stop) {
        while !stop.load(Ordering::Relaxed) {
            let mut flow = self.topology.open(Proto::Tcp, Family::V4, 8000);
            flow.set_payload(600);
            assert_eq!(flow.rounds(3), 3, "{}: {flow:?}", self.name);
            flow.close_gracefully();
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Some hundred kilobytes a second.
    fn download(&self, port: u16, stop: &Stop) {
        let mut flow = self.topology.open_service(Proto::Tcp, Family::V4, port);
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = flow.transfer(Direction::Download, 48 * 1024) {
                panic!("{}: {flow:?}: {error}", self.name);
            }
            thread::sleep(Duration::from_millis(150));
        }
    }

    /// Requests with answers.
    fn exchange(&self, proto: Proto, family: Family, port: u16, pause: u64) -> Background {
        let mut flow = self.topology.open(proto, family, port);
        flow.set_payload(1000);
        background(flow, pause)
    }

    /// Requests without answers.
    fn without_answers(&self, port: u16, stop: &Stop) {
        let mut flow = self.topology.open(Proto::Udp, Family::V4, port);
        while !stop.load(Ordering::Relaxed) {
            flow.request();
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// A connection of two packets.
    fn one_round(&self, port: u16) {
        self.topology.open(Proto::Udp, Family::V4, port).rounds(1);
    }

    fn add_interfaces(&self) -> Vec<Netns> {
        let add = |number| {
            let pod = Netns::new("pod");
            self.topology.node.ip(&format!(
                "link add w{number} type veth peer name eth0 netns {}\nlink set w{number} up\n",
                pod.path()
            ));
            pod.ip("link set eth0 up\n");
            thread::sleep(Duration::from_secs(2));
            pod
        };
        (0..3).map(add).collect()
    }

    fn remove_interfaces(&self) {
        // They may have gone with the namespaces at their other ends.
        for number in 0..3 {
            self.topology.node.try_run("ip", &["link", "delete", &format!("w{number}")], "");
        }
    }
}

fn background(flow: Flow, pause: u64) -> Background {
    flow.in_background_every(Duration::from_millis(pause))
}

/// The samples of a page by name and labels.
fn samples(page: &str) -> BTreeMap<String, Value> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), serde_json::from_str(value).ok()?))
    };
    lines.map(|line| sample(line).unwrap_or_else(|| panic!("no sample: {line:?}"))).collect()
}

/// Prints a node's pages, series by series.
fn print(node: &str, pages: &[Page]) {
    let times: Vec<f64> = pages.iter().map(|page| page.at).collect();
    record(&json!({ "times": { "node": node, "times": times } }));
    let mut changes: BTreeMap<&str, Vec<(usize, &Value)>> = BTreeMap::new();
    for name in pages.iter().flat_map(|page| page.samples.keys()) {
        changes.entry(name).or_default();
    }
    for (name, changes) in &mut changes {
        for (number, page) in pages.iter().enumerate() {
            let value = page.samples.get(*name).unwrap_or(&Value::Null);
            if changes.last().map_or(&Value::Null, |last| last.1) != value {
                changes.push((number, value));
            }
        }
        record(&json!({ "series": { "node": node, "name": name, "values": changes } }));
    }
}
