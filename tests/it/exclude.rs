//! Exclusions: flows that they name take the normal path with every packet, all others are accelerated; flows that are
//! in the flowtable leave it when they are named. Before and after NAT, by any packet of either direction.

use std::{
    fmt::Write as _,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    monitor::Monitor,
    netns::Netns,
    table,
    topology::{Family, Layout, Nat, Topology},
    traffic::Proto,
    wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::flows::flows;

use Family::{V4, V6};
use Proto::{Tcp, Udp};

const FILE: &str = "/run/exclude";
const SOON: Duration = Duration::from_secs(5);

/// A flow, and whether it should be excluded.
type Case = (Proto, Family, u16, bool);

#[track_caller]
fn assert_path(topology: &Topology, nat: Nat, (proto, family, port, excluded): Case) {
    let mut flow = match nat {
        Nat::Service => topology.open_service(proto, family, port),
        Nat::Plain | Nat::Masquerade => topology.open(proto, family, port),
    };
    if excluded {
        assert_eq!(flow.rounds(30), 30);
        topology.assert_forwarded(&mut flow);
        assert!(!topology.marked_offloaded(port), "{flow:?}");
        let said = why(topology, port);
        assert_eq!(said["verdict"]["reason"], "excluded", "{said:#}");
        // It takes a second until the flow isn't new any more.
        if nat != Nat::Plain {
            assert_cause(&topology.node, port, "excluded");
        }
    } else {
        topology.assert_becomes_accelerated(&mut flow);
    }
}

/// What `why` says of the flow that conntrack has to `port`.
#[track_caller]
fn why(topology: &Topology, port: u16) -> Value {
    let line = topology.conntrack(port).into_iter().next().expect("a connection");
    let word = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)).expect("in the line");
        value.to_owned()
    };
    let end = |address: String, port: String| {
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    let protocol = line.split_whitespace().next().expect("a protocol").to_owned();
    let (from, to) = (end(word("src="), word("sport=")), end(word("dst="), word("dport=")));
    let output = agent::run(&topology.node, &["why", "-o", "json", &protocol, &from, &to]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Runs the agent with these exclusions and looks which path each flow takes.
#[track_caller]
fn excludes(nat: Nat, entries: &str, cases: &[Case]) {
    let topology = Topology::build(Layout { nat, ..Layout::default() });
    let _agent = Agent::start(&topology.node, &[&format!("--exclude={entries}")]);
    for case in cases {
        assert_path(&topology, nat, *case);
    }
}

/// What `flows` says of the flow to `port`, once it isn't new any more.
#[track_caller]
pub(crate) fn assert_cause(node: &Netns, port: u16, cause: &str) {
    let start = Instant::now();
    loop {
        let flow = flows(node, &[&format!("--port={port}")]).pop().expect("a flow");
        if flow["cause"] == cause || flow["cause"].get(cause).is_some() {
            return;
        }
        assert!(start.elapsed() < SOON, "{flow:#}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn addresses_and_networks() {
    excludes(Nat::Plain, "10.2.0.2", &[(Tcp, V4, 7001, true), (Udp, V4, 7002, true), (Tcp, V6, 7003, false)]);
    excludes(Nat::Plain, "10.3.0.0/16,fd00:1::/64", &[(Udp, V6, 7001, true), (Udp, V4, 7002, false)]);
    excludes(
        Nat::Plain,
        "10.2.0.3,10.128.0.0/9,fd00::/96",
        &[(Udp, V4, 7001, false), (Tcp, V6, 7002, false)],
    );
}

#[test]
fn ports_and_protocols() {
    excludes(
        Nat::Plain,
        "tcp/7001,udp/7002-7003,port/7004",
        &[
            (Tcp, V4, 7001, true),
            (Udp, V4, 7001, false),
            (Udp, V6, 7003, true),
            (Tcp, V6, 7002, false),
            (Tcp, V6, 7004, true),
        ],
    );
    excludes(
        Nat::Plain,
        "protocol/udp",
        &[(Udp, V4, 7001, true), (Udp, V6, 7002, true), (Tcp, V4, 7003, false)],
    );
}

#[test]
fn interfaces() {
    let topology = Topology::build(Layout { pods: 3, ..Layout::default() });
    let _agent = Agent::start(&topology.node, &["--exclude=interface/p*"]);
    table::wait_for_devices(&topology.node, &["c0", "s0"], SOON);
    let mut out = topology.open_between(0, 2, Tcp, V4, 7001);
    assert_eq!(out.rounds(30), 30);
    topology.assert_forwarded(&mut out);
    let said = why(&topology, 7001);
    assert_eq!(said["verdict"]["reason"], "excluded", "{said:#}");
    assert_eq!(said["verdict"]["exclusion"], "interface/p3", "{said:#}");
    topology.assert_becomes_accelerated(&mut topology.open(Tcp, V4, 7002));
}

#[test]
fn marks_of_packets_and_of_connections() {
    let topology = Topology::routed();
    topology.node.nft(
        "table inet marks {
            chain pre {
                type filter hook prerouting priority mangle
                udp dport 7001 meta mark set 0x15
                udp sport 7001 meta mark set 0x15
                udp dport 7002 ct mark set 0x15
                udp dport 7003 meta mark set 0x25
                tcp dport 7004 meta mark set 9
                tcp sport 7004 meta mark set 9
            }
        }",
    );
    let _agent = Agent::start(&topology.node, &["--exclude=mark/0x10/0xf0", "--exclude=mark/9"]);
    for family in [V4, V6] {
        assert_path(&topology, Nat::Plain, (Udp, family, 7002, true));
        let mut marked = topology.open(Udp, family, 7001);
        assert_eq!(marked.rounds(30), 30);
        topology.assert_forwarded(&mut marked);
    }
    assert_path(&topology, Nat::Plain, (Udp, V4, 7003, false));
    // Nothing shows a packet's mark, but no other cause fits.
    let mut marked = topology.open(Tcp, V4, 7004);
    assert_eq!(marked.rounds(30), 30);
    let marked = marked.in_background();
    let verdict = why(&topology, 7004)["verdict"].clone();
    marked.stop_intact();
    assert_eq!(verdict["reason"], "excluded", "{verdict:#}");
    assert_eq!(verdict["certain"], false, "{verdict:#}");
    assert_eq!(verdict["exclusion"], "mark/0x9 or mark/0x10/0xf0", "{verdict:#}");
}

#[test]
fn before_and_after_nat() {
    // After masquerading the client has the node's address.
    excludes(
        Nat::Masquerade,
        "10.2.0.1",
        &[(Tcp, V4, 7001, true), (Udp, V4, 7002, true), (Udp, V6, 7003, false)],
    );
    excludes(Nat::Masquerade, "fd00:1::2", &[(Tcp, V6, 7001, true), (Udp, V4, 7002, false)]);
    // Before NAT the server has the service's address.
    excludes(
        Nat::Service,
        "10.96.0.0/24",
        &[(Tcp, V4, 7001, true), (Udp, V4, 7002, true), (Tcp, V6, 7003, false)],
    );
    excludes(Nat::Service, "fd00:2::2/128", &[(Udp, V6, 7001, true), (Udp, V4, 7002, false)]);
}

fn status(topology: &Topology) -> Value {
    serde_json::from_str(&agent::output(&topology.node, &["status", "-o", "json"])).expect("JSON")
}

#[test]
fn a_file_that_changes_puts_flows_out_and_lets_them_in_again() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let node = &topology.node;
    fs::write(FILE, "# nothing yet\n").expect("write the file");
    let mut agent = Agent::start(node, &["--exclude-file", FILE, "--exclude=tcp/9"]);
    let mut first = topology.open(Tcp, V4, 7001);
    let mut second = topology.open(Udp, V6, 7002);
    topology.assert_becomes_accelerated(&mut first);
    topology.assert_becomes_accelerated(&mut second);

    let mut monitor = Monitor::start(node);
    fs::write(FILE, "tcp/7001 # the first\n10.2.0.77\n").expect("write the file");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("exclusions read again", SOON);
    wait_until("the port in its set", SOON, || {
        table::listing(node).is_some_and(|l| l.contains("{ 9, 7001 }"))
    });
    topology.assert_forwarded(&mut first);
    assert_eq!(second.rounds(5), 5);
    topology.assert_accelerated(&mut second);
    assert_eq!(monitor.commits_of_agent(), 1, "{:#?}", monitor.lines());
    let shown = status(&topology);
    assert_eq!(shown["table"]["exclusions"]["entries"], 3, "{shown:#}");
    assert_eq!(shown["table"]["exclusions"]["first"], serde_json::json!(["10.2.0.77", "tcp/9", "tcp/7001"]));
    assert!(agent::output(node, &["status"]).contains("10.2.0.77, tcp/9, tcp/7001"));

    // A wrong line is named once, and nothing changes.
    let before = table::listing(node);
    fs::write(FILE, "udp/7002\n\ntcp/port\n").expect("write the file");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("line 3: 'tcp/port'", SOON);
    assert_eq!(agent.count("exclusions unchanged"), 1);
    assert_eq!(table::listing(node), before);
    topology.assert_accelerated(&mut second);

    fs::write(FILE, "").expect("write the file");
    agent.signal(Signal::SIGHUP);
    agent.wait_for_count("exclusions read again", 2, SOON);
    assert_eq!(first.rounds(20), 20);
    topology.assert_accelerated(&mut first);
    topology.assert_accelerated(&mut second);
    // And with the flags of a new start, which finds flows in the flowtable.
    agent.stop();
    let _agent = Agent::start(node, &["--exclude=fd00:1::/64"]);
    topology.assert_forwarded(&mut second);
    assert_eq!(first.rounds(5), 5);
    topology.assert_accelerated(&mut first);
}

/// Of connections that are older than the rules too: they are helped from then on.
#[test]
fn old_connections_are_let_in_again() {
    let topology = Topology::routed();
    let mut old = topology.open(Tcp, V4, 7001);
    assert_eq!(old.rounds(5), 5);
    fs::write(FILE, "10.2.0.2\n").expect("write the file");
    let mut agent = Agent::start_with(&topology.node, &["--exclude-file", FILE]);
    // Its packets are counted from the moment on that the programs are attached.
    wait_until("enough packets", SOON, || {
        assert_eq!(old.rounds(5), 5);
        flows(&topology.node, &["--port=7001", "--state=never"]).len() == 1
    });
    topology.assert_forwarded(&mut old);
    assert_cause(&topology.node, 7001, "excluded");
    fs::write(FILE, "").expect("write the file");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("exclusions read again", SOON);
    // Help comes some packets after the one that calls for it.
    wait_until("help", SOON, || old.rounds(5) == 5 && topology.marked_offloaded(7001));
    topology.assert_accelerated(&mut old);
}

#[test]
fn exclusions_that_others_change_are_put_right() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start(node, &["--exclude=tcp/7001,10.7.0.0/16,10.8.0.1"]);
    let before = table::listing(node);
    for (number, change) in [
        "delete element inet kindnet-fastpath kindnet-exclude-tcp { 7001 }",
        "add element inet kindnet-fastpath kindnet-exclude-v4-32 { 10.1.0.2 }",
        "flush set inet kindnet-fastpath kindnet-exclude-v4-16",
    ]
    .into_iter()
    .enumerate()
    {
        node.nft(change);
        agent.wait_for_count("putting it back", number + 1, SOON);
        wait_until("the same table", SOON, || table::listing(node) == before);
    }
    assert_path(&topology, Nat::Plain, (Tcp, V4, 7001, true));
    assert_path(&topology, Nat::Plain, (Udp, V4, 7002, false));
}

#[test]
fn a_hundred_thousand_entries() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut file = String::new();
    for number in 0..100_000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        writeln!(file, "172.{}.{c}.{d}", 16 + b).expect("string");
    }
    fs::write(FILE, &file).expect("write the file");
    let start = Instant::now();
    let mut agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off", "--exclude-file", FILE, "--v=2"]));
    // Some 10 seconds in the emulator, a fraction of one outside.
    agent.wait_for("ruleset verified", Duration::from_secs(40));
    eprintln!("100,000 entries from start to verified: {:?}", start.elapsed());
    assert_eq!(status(&topology)["table"]["exclusions"]["entries"], 100_000);
    let mut flow = topology.open(Tcp, V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);

    file += "10.1.0.2\n";
    fs::write(FILE, file.split_once('\n').expect("lines").1).expect("write the file");
    let start = Instant::now();
    agent.signal(Signal::SIGHUP);
    // Just these two elements, whatever is beside them.
    agent.wait_for(
        "remove from kindnet-exclude-v4-32 172.16.0.0; add to kindnet-exclude-v4-32 10.1.0.2; ",
        SOON,
    );
    agent.wait_for_count("reconciled", 2, SOON);
    eprintln!("one entry more and one less: {:?}", start.elapsed());
    topology.assert_forwarded(&mut flow);
    assert_eq!(status(&topology)["table"]["exclusions"]["entries"], 100_000);
    assert_eq!(agent.count("came too fast"), 0, "its own announcements aren't too many for it");
    assert_eq!(agent.count("putting it back"), 0, "what it reads is what it wrote");
    assert!(agent.is_running());
}

/// The agent in a container, the commands on the node: a path of a flag of the agent's is one where the agent is.
#[test]
fn a_file_of_another_mount_namespace_is_found() {
    let topology = Topology::routed();
    let node = &topology.node;
    let script = format!(
        "mkdir -p /mnt; mount -t tmpfs none /mnt; cd /mnt; echo 10.1.0.0/16 > exclude; echo 'exclude-file = \"exclude\"' > config; \
         exec {} run --ebpf=off --config=/mnt/config",
        agent::binary()
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-euc", &script]).env("FASTPATH_METRICS_BIND_ADDRESS", "");
    let mut agent = Agent::spawn(node, &mut command);
    agent.wait_for_ruleset();
    assert!(!std::path::Path::new("/mnt/exclude").exists());
    let examine = |wanted_level: &str, wanted: &str| {
        let doctor = agent::run(node, &["doctor", "--no-canary", "-o", "json"]);
        let report: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
        let of = |check: &str| {
            let mut findings = report["findings"].as_array().expect("a list").iter();
            findings.find(|finding| finding["check"] == check).expect("it").clone()
        };
        let (found, ruleset) = (of("agent"), of("ruleset"));
        assert_eq!(found["level"], wanted_level, "{report:#}");
        assert!(found["found"].as_str().is_some_and(|text| text.contains(wanted)), "{found:#}");
        assert_eq!(ruleset["level"], "green", "{ruleset:#}");
    };
    examine("green", &format!("runs as process {}", agent.pid()));
    let mut flow = topology.open(Udp, V4, 7001);
    topology.assert_forwarded(&mut flow);
    let [proto, from, to] = flow.words();
    let why = agent::output(node, &["why", &proto, &from, &to]);
    assert!(why.contains("--exclude") && !why.contains("no agent runs"), "{why}");

    // It has gone meanwhile: what the agent excludes is in its table.
    let pid = agent.pid().to_string();
    node.output("nsenter", &["-m", "-t", &pid, "rm", "/mnt/exclude"]);
    examine("amber", "exclude");
}
