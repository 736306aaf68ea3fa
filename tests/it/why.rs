//! `why`: each reason why a flow isn't accelerated, brought about and told. Reasons that lie on the flow's way through the
//! node are in `why_path`.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    reference,
    topology::{Family, Layout, Nat, Topology},
    traffic::Proto,
    wait_until,
    why::{ask, asked, assert_reason, reasons},
};
use serde_json::{Value, json};

fn start(topology: &Topology, flags: &[&str]) -> Agent {
    let agent = Agent::start_with(&topology.node, flags);
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    agent
}

#[test]
fn accelerated_whichever_tuple_is_asked_for() {
    let topology = Topology::build(Layout { nat: Nat::Service, ..Layout::default() });
    let node = &topology.node;
    let _agent = start(&topology, &[]);
    for (proto, family, port) in [(Proto::Tcp, Family::V4, 7001), (Proto::Udp, Family::V6, 7002)] {
        let mut flow = topology.open_service(proto, family, port);
        assert_eq!(flow.rounds(50), 50);
        let background = flow.in_background();
        let words = asked(&topology, port);
        let first = ask(node, &words);
        let end = |side: &str, which: &str| {
            let tuple = &first[side];
            let (address, port) = (tuple[which].as_str().unwrap(), &tuple[format!("{which}_port")]);
            if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
        };
        // Original, reply, and each turned round: before and after NAT, in either direction.
        for side in ["original", "reply"] {
            for (from, to) in [("source", "destination"), ("destination", "source")] {
                let words = [words[0].clone(), end(side, from), end(side, to)];
                let answer = ask(node, &words);
                assert_eq!(answer["original"], first["original"], "{words:?}");
                assert_eq!(answer["verdict"]["accelerated"], "yes", "{answer:#}");
                assert_eq!(answer["verdict"]["certain"], true, "{answer:#}");
                assert_eq!(answer["slow"], 0, "{answer:#}");
                assert!(answer["moved"].as_u64() > Some(20), "{answer:#}");
                assert!(
                    answer["steps"].as_array().unwrap().iter().all(|step| step["ok"] == true),
                    "{answer:#}"
                );
            }
        }
        let (mut flow, _) = background.stop_intact();
        if proto == Proto::Tcp {
            continue; // acknowledgements may come by themselves
        }
        // All but the packets up to the one that offloaded it, to the last one.
        let before = ask(node, &words)["bypassed"].as_u64().unwrap();
        assert_eq!(flow.rounds(100), 100);
        assert_eq!(ask(node, &words)["bypassed"].as_u64().unwrap(), before + 200);
    }
}

#[test]
fn young_and_ended_flows() {
    let topology = Topology::routed();
    let _agent = start(&topology, &[]);

    let mut young = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(young.rounds(2), 2);
    let answer = assert_reason(&topology, 7001, "below-threshold");
    assert_eq!(answer["verdict"]["threshold"], 20);
    assert!(answer["verdict"]["packets"].as_u64() < Some(20), "{answer:#}");

    let mut one_way = topology.open(Proto::Udp, Family::V4, 7002);
    for _ in 0..30 {
        assert!(one_way.request());
    }
    assert_reason(&topology, 7002, "one-way");

    let mut ended = topology.open(Proto::Tcp, Family::V6, 7003);
    assert_eq!(ended.rounds(50), 50);
    ended.close_gracefully();
    assert_reason(&topology, 7003, "closing");

    // The client's own filter loses the server's SYN-ACK.
    topology.client().ns.nft(
        "table inet deaf { chain in { type filter hook input priority 0; policy accept;
            tcp sport 7004 drop
        }; }",
    );
    let (client, server) = (&topology.client().ns, topology.server_at(Family::V4, 7004));
    let _listener = topology.server().ns.run(|| std::net::TcpListener::bind(server)).expect("bind");
    client
        .run(|| std::net::TcpStream::connect_timeout(&server, Duration::from_secs(2)))
        .expect_err("the handshake can't be completed");
    assert_reason(&topology, 7004, "not-established");
}

#[test]
fn idle_and_back_again() {
    let topology = Topology::routed();
    let _agent = start(&topology, &[]);
    topology.node.sysctl("net/netfilter/nf_flowtable_udp_timeout", "2");
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    wait_until("the flowtable lets go", Duration::from_secs(15), || !topology.marked_offloaded(7001));
    let answer = assert_reason(&topology, 7001, "idle");
    assert!(
        answer["verdict"]["text"].as_str().unwrap().contains("leaves the flowtable after 2 s"),
        "{answer:#}"
    );
    let background = flow.in_background();
    assert_eq!(ask(&topology.node, &asked(&topology, 7001))["verdict"]["accelerated"], "yes");
    background.stop_intact();
}

#[test]
fn older_than_the_rules() {
    let topology = Topology::routed();
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(flow.rounds(20), 20);
    assert_reason(&topology, 7001, "no-rule");
    let mut helped = topology.open(Proto::Udp, Family::V4, 7002);
    assert_eq!(helped.rounds(1), 1);
    let agent = start(&topology, &["--assist=off"]);
    assert_eq!(flow.rounds(50), 50);
    let answer = assert_reason(&topology, 7001, "not-counted");
    assert_eq!(answer["verdict"]["pending"], false);
    agent.stop();

    let _agent = start(&topology, &["--assist=on"]);
    // One direction crosses the threshold with its last packet: nothing comes after it that the rule could take up.
    assert_eq!(helped.rounds(20), 20);
    assert!(helped.request());
    wait_until("the agent lists it", Duration::from_secs(10), || {
        let listing =
            topology.node.try_run("nft", &["list", "set", "inet", "kindnet-fastpath", "kindnet-assist"], "");
        String::from_utf8_lossy(&listing.stdout).contains("elements")
    });
    let answer = assert_reason(&topology, 7002, "not-counted");
    assert_eq!(answer["verdict"]["pending"], true);
    assert_eq!(helped.rounds(5), 5);
    assert_eq!(ask(&topology.node, &asked(&topology, 7002))["verdict"]["accelerated"], "quiet");
    let background = helped.in_background();
    assert_eq!(ask(&topology.node, &asked(&topology, 7002))["verdict"]["accelerated"], "yes");
    background.stop_intact();
}

#[test]
fn a_helper_reads_along() {
    let topology = Topology::routed();
    let _agent = start(&topology, &[]);
    topology.node.nft(
        "table inet helped {
            ct helper ftp-reader { type \"ftp\" protocol tcp; }
            chain pre { type filter hook prerouting priority 0; policy accept;
                tcp dport 7001 ct helper set \"ftp-reader\"
            }
        }",
    );
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(flow.rounds(50), 50);
    topology.assert_forwarded(&mut flow);
    let answer = assert_reason(&topology, 7001, "helper");
    assert_eq!(answer["verdict"]["helper"], "ftp");
}

#[test]
fn what_conntrack_does_not_have() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = start(&topology, &[]);
    node.nft(
        "table inet raw { chain pre { type filter hook prerouting priority raw; policy accept;
            udp dport 7001 notrack
            udp sport 7001 notrack
        }; }",
    );
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(50), 50);
    let words = flow.words();
    let background = flow.in_background();
    let answer = ask(node, &words);
    background.stop_intact();
    assert_eq!(reasons(&answer)[0], "untracked", "{answer:#}");
    assert_eq!(answer["verdict"]["rule"], "table inet raw, chain pre");
    assert_eq!(answer["original"], Value::Null);

    // Deleted: whatever the rules say, this one was tracked.
    node.nft("delete table inet raw");
    let mut flow = topology.open(Proto::Udp, Family::V4, 7002);
    assert_eq!(flow.rounds(50), 50);
    let words = flow.words();
    node.output("conntrack", &["-D", "-p", "udp", "--dport", "7002"]);
    let answer = ask(node, &words);
    assert_eq!(reasons(&answer), ["unknown-to-conntrack"], "{answer:#}");
}

#[test]
fn another_flowtable_has_it() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = start(&topology, &["--fastpath-threshold=1000"]);
    reference::flowtable_for_all(node, &["c0", "s0"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let background = flow.in_background();
    let answer = ask(node, &asked(&topology, 7001));
    background.stop_intact();
    let verdict = &answer["verdict"];
    assert_eq!(
        (&verdict["accelerated"], &verdict["reason"]),
        (&json!("yes"), &json!("other-flowtable")),
        "{answer:#}"
    );
    assert_eq!(verdict["flowtable"], "inet reference every");
    assert_eq!(verdict["certain"], true);
    drop(agent);
}

#[test]
fn dropped_before_it_gets_to_the_rule() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = start(&topology, &[]);
    // The flow is established, and its packets end here.
    node.nft(
        "table inet firewall { chain forward { type filter hook forward priority 0; policy accept; }; }",
    );
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(8), 8);
    node.nft("add rule inet firewall forward udp dport 7001 drop");
    let words = flow.words();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let answer = thread::scope(|scope| {
        let client = flow.client_datagrams();
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.send(b"again").expect("send");
                thread::sleep(Duration::from_millis(20));
            }
        });
        thread::sleep(Duration::from_millis(500));
        let answer = ask(node, &words);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        answer
    });
    assert_eq!(reasons(&answer), ["blocked"], "{answer:#}");
}

#[test]
fn exit_codes_and_words() {
    let topology = Topology::routed();
    let node: &Netns = &topology.node;
    let _agent = start(&topology, &[]);
    let why = |words: &[&str]| {
        let output = agent::run(node, &[&["why"], words].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, _) = why(&["tcp", "10.1.0.2:1", "10.2.0.2:2"]);
    assert_eq!(code, Some(1));
    assert!(out.contains("not found: neither conntrack nor the agent's counters know it"), "{out}");
    for words in [
        ["tpc", "10.1.0.2:1", "10.2.0.2:2"],
        ["tcp", "10.1.0.2:x", "10.2.0.2:2"],
        ["udp", "10.1.0.2:1", "[fd00:2::2]:2"],
    ] {
        let (code, out, err) = why(&words);
        assert_eq!((code, out.as_str()), (Some(64), ""), "{words:?}: {err}");
        assert!(err.starts_with("error: "), "{err}");
    }
    // Neither TCP nor UDP: known by its addresses.
    topology.client().ns.output("ping", &["-c", "30", "-i", "0.01", "-q", "10.2.0.2"]);
    let answer = ask(node, &["icmp", "10.1.0.2", "10.2.0.2"].map(str::to_owned));
    assert_eq!(reasons(&answer)[0], "protocol", "{answer:#}");
    // For people.
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(flow.rounds(50), 50);
    let background = flow.in_background();
    let words = asked(&topology, 7001);
    let (code, out, err) = why(&words.each_ref().map(String::as_str));
    background.stop_intact();
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    for text in ["flow       tcp 10.1.0.2", "comes in on c0", "conntrack  established", "accelerated: "] {
        assert!(out.contains(text), "{text:?} not in\n{out}");
    }
}

#[test]
fn a_part_of_a_flow_is_enough() {
    let topology = Topology::routed();
    let node: &Netns = &topology.node;
    let _agent = start(&topology, &[]);
    let mut fast = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(fast.rounds(50), 50);
    // Nothing answers it, so it isn't offloaded.
    let mut slow = topology.open(Proto::Udp, Family::V4, 7002);
    for _ in 0..30 {
        assert!(slow.request());
    }
    let why = |words: &[&str]| {
        let output = agent::run(node, &[&["why", "-o", "json"], words].concat());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), answer, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for words in [&["tcp"][..], &[":7001"], &["10.1.0.2", ":7001"], &["tcp", "10.2.0.2:7001", "10.1.0.2"]] {
        let (code, answer, said) = why(words);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{words:?}: {answer:#}");
        assert_eq!(answer["original"]["destination_port"], 7001, "{words:?}: {answer:#}");
    }
    let (code, answer, said) = why(&["--top"]);
    assert_eq!((code, &answer["verdict"]["reason"]), (Some(0), &json!("one-way")), "{said}{answer:#}");
    // Several are listed, the larger one first.
    let (code, answer, said) = why(&["10.1.0.2"]);
    assert_eq!(code, Some(1), "{answer:#}");
    assert!(said.contains("2 flows match: name one"), "{said}");
    let ports: Vec<_> =
        answer.as_array().expect("a list").iter().map(|f| &f["original"]["destination_port"]).collect();
    assert_eq!(ports, [&json!(7001), &json!(7002)], "{answer:#}");
    for words in [&["10.1.0.9"][..], &["udp", ":7001"]] {
        let (code, answer, said) = why(words);
        assert_eq!((code, answer), (Some(1), Value::Null), "{words:?}");
        assert!(said.contains("no connection matches"), "{said}");
    }
}

/// Where nothing is watched, conntrack says which flow is the heaviest.
#[test]
fn the_heaviest_flow_without_programs() {
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    for (port, packets) in [(7001, 25), (7002, 60), (7003, 30)] {
        let mut flow = topology.open(Proto::Udp, Family::V4, port);
        for _ in 0..packets {
            assert!(flow.request());
        }
    }
    let answer = agent::output(&topology.node, &["why", "-o", "json", "--top"]);
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["original"]["destination_port"], 7002, "{answer:#}");
}
