//! What the page says of offloaded flows, held against what was sent and forwarded; what it costs while nobody looks.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    http::{self, SERVE, bring_loopback_up},
    topology::{Family, Layout, Nat, Topology},
    traffic::{Direction, Proto},
    wait_until,
};
use serde_json::Value;

/// Starts an agent with a page, and waits until it watches.
#[track_caller]
fn start(topology: &Topology, flags: &[&str]) -> Agent {
    bring_loopback_up(&topology.node);
    let agent = Agent::start_with(&topology.node, &[&[SERVE], flags].concat());
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    agent
}

#[track_caller]
fn get(topology: &Topology, path: &str) -> Value {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:19080\r\n\r\n");
    let answer = http::request(&topology.node, &request).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{path}: {error} in {answer:?}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Packets in all and on the fast path, over the last hour.
fn hour(history: &Value) -> [u64; 2] {
    let steps = history["steps"].as_array().expect("steps");
    [0, 2].map(|column| steps.iter().map(|step| number(&step[2][column])).sum())
}

#[test]
fn it_says_what_was_sent_and_which_way_it_took() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let agent = start(&topology, &["--exclude=port/7003"]);
    let mut fast = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(fast.rounds(300), 300);
    let mut short = topology.open(Proto::Udp, Family::V4, 7002);
    assert_eq!(short.rounds(5), 5);
    let mut excluded = topology.open(Proto::Udp, Family::V4, 7003);
    assert_eq!(excluded.rounds(100), 100);

    // `status`, which waited for the programs, has asked as well: an answer may be a second old.
    thread::sleep(Duration::from_millis(1100));
    let [all, bypassed] = hour(&get(&topology, "/api/history"));
    let sent: u64 = [7001, 7002, 7003].map(|port| topology.counted(port).0).iter().sum();
    let forwarded: u64 = [7001, 7002, 7003].map(|port| topology.forwarded(port).total()).iter().sum();
    assert_eq!([all, bypassed], [sent, sent - forwarded]);
    assert!(bypassed > 500, "{bypassed} of {all}");

    let in_group = |group: &str| {
        number(&get(&topology, &format!("/api/flows?search=10.0.0.0/8&group={group}"))["matching"])
    };
    assert_eq!(["fast", "could-be-fast", "never"].map(in_group), [1, 1, 1]);
    let found = get(&topology, "/api/flows?search=:7001+udp");
    let flows = found["flows"].as_array().expect("flows");
    assert_eq!((number(&found["matching"]), flows.len()), (1, 1), "{found:#}");
    assert_eq!(
        (flows[0]["group"].as_str(), number(&flows[0]["packets"])),
        (Some("fast"), topology.counted(7001).0)
    );
    let never = get(&topology, "/api/flows?group=never&search=udp");
    assert_eq!(number(&never["matching"]), 1);
    let why = never["flows"][0]["why"].as_str().expect("words");
    assert!(why.contains("udp/7003"), "{why}");
    agent.stop();
}

/// The agent that answers has given up what `why` takes on the command line.
#[test]
fn why_is_told_by_an_agent_with_few_rights() {
    let topology = Topology::routed();
    let agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(100), 100);
    let name =
        get(&topology, "/api/flows?search=7001")["flows"][0]["flow"].as_str().expect("a flow").to_owned();
    let encoded = name.replace(' ', "+").replace('>', "%3E");
    let told = thread::scope(|scope| {
        let told = scope.spawn(|| get(&topology, &format!("/api/why?flow={encoded}")));
        while !told.is_finished() {
            assert_eq!(flow.rounds(1), 1);
            thread::sleep(Duration::from_millis(20));
        }
        told.join().expect("told")
    });
    assert_eq!(told["verdict"]["accelerated"], "yes", "{told:#}");
    assert_eq!(told["steps"].as_array().map(Vec::len), Some(7), "{told:#}");
    agent.stop();
}

#[test]
fn what_happens_is_on_the_time_line() {
    let topology = Topology::routed();
    let agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(100), 100);
    let told = |kind: &str| -> Option<String> {
        let history = get(&topology, "/api/history");
        let events = history["events"].as_array().expect("events").clone();
        let event = events.into_iter().find(|event| event["kind"] == kind)?;
        assert!(number(&event["at_ms"]) <= number(&history["now_ms"]), "{event}");
        Some(event["about"].as_str().expect("text").to_owned())
    };
    assert_eq!(told("ready").as_deref(), Some(""));
    assert_eq!(told("revalidated"), None);
    topology.node.nft("add table inet other\nadd chain inet other c { type filter hook forward priority 0; }\nadd rule inet other c udp dport 9 drop");
    wait_until("a revalidation", Duration::from_secs(5), || {
        told("revalidated").as_deref() == Some("ruleset")
    });
    topology.node.ip("link add d0 type dummy\n");
    wait_until("an interface", Duration::from_secs(5), || told("interface-came").as_deref() == Some("d0"));
    topology.node.ip("link del d0\n");
    wait_until("no interface", Duration::from_secs(5), || told("interface-went").as_deref() == Some("d0"));
    topology.node.nft("delete table inet kindnet-fastpath");
    wait_until("a repair", Duration::from_secs(5), || told("repaired").is_some());
    agent.stop();
}

/// Opens a stream of live numbers.
fn listen(topology: &Topology) -> BufReader<TcpStream> {
    let mut stream = topology.node.run(|| TcpStream::connect(http::ADDRESS)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").expect("ask");
    BufReader::new(stream)
}

/// The next event.
#[track_caller]
fn next(stream: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut line = String::new();
    while stream.read_line(&mut line).expect("read") > 0 {
        if let Some(data) = line.strip_prefix("data: ") {
            return Some(serde_json::from_str(data).expect("JSON"));
        }
        if line.starts_with("HTTP/1.1 503") {
            return None;
        }
        line.clear();
    }
    None
}

#[test]
fn live_numbers_come_while_a_few_look_and_places_are_free_again() {
    let topology = Topology::routed();
    let agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(30), 30);
    thread::sleep(Duration::from_secs(25));
    let mut streams: Vec<_> = (0..4).map(|_| listen(&topology)).collect();
    for stream in &mut streams {
        let first = next(stream).expect("numbers");
        assert_eq!(number(&first["total"][0]), 60, "{first:#}");
        assert!(first["steps"].as_array().is_some_and(|steps| steps.len() > 2), "all at first: {first:#}");
    }
    assert_eq!(flow.rounds(100), 100);
    for stream in &mut streams {
        let mut total = 0;
        while total != 260 {
            let news = next(stream).expect("more numbers");
            assert!(
                news["steps"].as_array().is_some_and(|steps| steps.len() <= 2),
                "only what is new: {news:#}"
            );
            total = number(&news["total"][0]);
        }
    }
    assert!(next(&mut listen(&topology)).is_none(), "a fifth one");
    // Health is answered beside them, and who is gone leaves room.
    assert_eq!(http::get(&topology.node, "/healthz").status, 200);
    drop(streams);
    wait_until("a place", Duration::from_secs(10), || next(&mut listen(&topology)).is_some());
    // With nobody there the agent sleeps.
    agent.wait_until_idle();
    agent.stop();
}

/// A node with flows of all groups, events, and traffic that changes: every step is as much as was sent. With `FASTPATH_RECORD`, a
/// number of steps, it says what the page is told, for the picture in the README.
#[test]
fn an_hour_with_everything_on_it() {
    let recorded: Option<u64> =
        std::env::var("FASTPATH_RECORD").ok().map(|steps| steps.parse().expect("a number"));
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let node = &topology.node;
    let agent = start(&topology, &["--exclude=port/7009", "--hostname-override=router"]);
    let mut excluded = topology.open(Proto::Udp, Family::V4, 7009);
    let mut early = topology.open(Proto::Tcp, Family::V6, 7008);
    let mut unanswered = topology.open(Proto::Udp, Family::V4, 7010);
    let mut large: Vec<_> =
        [(Proto::Tcp, Family::V4, 443), (Proto::Tcp, Family::V6, 443), (Proto::Tcp, Family::V4, 8443)]
            .into_iter()
            .map(|(proto, family, port)| topology.open(proto, family, port))
            .collect();
    let mut small: Vec<_> =
        (0..12).map(|number| topology.open(Proto::Udp, Family::V4, 5000 + number)).collect();
    let steps = recorded.unwrap_or(3);
    assert_eq!(early.rounds(4), 4);
    for step in 0..steps {
        let part = |number: u64, of: u64| step * number / steps.max(1) % of;
        // More towards the middle, less at the end, and none for a while.
        let amount = [2, 3, 5, 8, 9, 7, 0, 4, 6, 5, 4, 3][part(12, 12) as usize];
        for (number, flow) in large.iter_mut().enumerate() {
            let bytes = amount * (40_000 >> number) + (step * 7919 % 20_000) as usize;
            flow.transfer(Direction::Download, bytes).expect("all of it");
        }
        for (number, flow) in small.iter_mut().enumerate().take(3 + part(9, 10) as usize) {
            assert_eq!(flow.rounds(3 + number), 3 + number);
        }
        assert_eq!(excluded.rounds(amount * 4), amount * 4);
        (0..10).for_each(|_| assert!(unanswered.request()));
        if step == steps / 5 {
            node.ip("link add veth7a3f type dummy\nlink set veth7a3f up\n");
        }
        if step == steps / 2 {
            node.nft("add table inet firewall\nadd chain inet firewall forward { type filter hook forward priority 0; }\nadd rule inet firewall forward tcp dport 25 drop");
        }
        if step == steps * 4 / 5 {
            node.nft("delete table inet kindnet-fastpath");
        }
        if recorded.is_some() {
            thread::sleep(Duration::from_secs(9));
            agent.wait_until_idle();
            get(&topology, "/api/history");
        }
    }
    // Until the table is there again.
    thread::sleep(Duration::from_secs(1));
    for flow in &mut large {
        flow.transfer(Direction::Download, 60_000).expect("all of it");
    }
    // TCP acknowledges the last of it later.
    thread::sleep(Duration::from_secs(2));
    let history = get(&topology, "/api/history");
    if recorded.is_some() {
        println!("@@PAGE before {history}");
        for flow in &mut large {
            flow.transfer(Direction::Download, 60_000).expect("all of it");
        }
        (0..10).for_each(|_| assert!(unanswered.request()));
        thread::sleep(Duration::from_secs(2));
        println!("@@PAGE after {}", get(&topology, "/api/history"));
        println!("@@PAGE flows {}", get(&topology, "/api/flows"));
    } else {
        let ports = [7008, 7009, 7010, 443, 8443].into_iter().chain(5000..5012);
        let sent: u64 = ports.map(|port| topology.counted(port).0).sum();
        assert_eq!(hour(&history)[0], sent, "{history:#}");
    }
    let groups = &history["groups"];
    let several = ["fast", "could-be-fast", "never"].iter().all(|group| number(&groups[group]) >= 1);
    assert!(several, "{groups}");
    agent.stop();
}

/// The safety net's readings are the same; it comes once a minute.
#[test]
fn what_nobody_looked_at_is_kept_where_the_agent_was_awake_in_any_case() {
    let topology = Topology::routed();
    let agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(100), 100);
    thread::sleep(Duration::from_secs(11));
    agent.wait_until_idle();
    topology.node.ip("link add d0 type dummy\n");
    thread::sleep(Duration::from_secs(30));
    let history = get(&topology, "/api/history");
    assert_eq!(hour(&history)[0], 200, "{history:#}");
    let steps = history["steps"].as_array().expect("steps");
    let covered = |busy: bool| -> u64 {
        steps.iter().filter(|step| (number(&step[2][0]) > 0) == busy).map(|step| number(&step[1])).sum()
    };
    // All of it came before the interface did, a dozen seconds after the start: in three steps at most. Without that reading it would
    // be spread over all the time.
    assert!(covered(true) <= 30_000 && covered(false) > 8_000, "{history:#}");
    agent.stop();
}
