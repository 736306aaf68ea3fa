//! Each reason comes out of the facts that make it so, and out of no others.

use std::net::IpAddr;

use fastpath_common::FlowCounters;

use super::*;
use crate::core::{
    flow::{
        Earlier,
        connection::{Entry, Status, TCP, TcpState, Tuple, UDP},
        trace::Trace,
    },
    link::{select::Unmanaged, table::LinkTable},
    model::{Counter, IfIndex, IfName, Link, test_link},
    route_rule::RouteRule,
    ruleset::{expr::Direction as Direction_, observed::Owner},
    why_not::Reason,
};

const SEEN_REPLY: u32 = 1 << 1;
const OFFLOAD: u32 = 1 << 14;

/// errno, as on all architectures that we run on.
const ENETUNREACH: i32 = 101;
const C0: IfIndex = IfIndex(1);
const S0: IfIndex = IfIndex(2);
const BR0: IfIndex = IfIndex(3);

fn tuple(protocol: u8) -> Tuple {
    Tuple {
        source: "10.1.0.2".parse().unwrap(),
        destination: "10.2.0.2".parse().unwrap(),
        protocol,
        source_port: 40000,
        destination_port: 443,
    }
}

fn link(index: IfIndex, name: &str) -> Link {
    Link { index, ..test_link(name) }
}

/// An established flow of 50 packets each way through managed interfaces, which nothing keeps from being accelerated; it
/// isn't in the flowtable, and 10 packets came while watching.
fn facts() -> FlowFacts {
    let original = tuple(TCP);
    let count = Counter { packets: 50, bytes: 5000 };
    let direction = |tuple: Tuple, input: IfIndex, output| Direction {
        tuple,
        counted: Some(FlowCounters {
            packets: 50,
            segments: 50,
            bytes: 5000,
            first_seen_ns: 1_000_000_000,
            last_seen_ns: 9_000_000_000,
            ifindex: input.0,
            ..FlowCounters::default()
        }),
        moved: Moved { packets: 5, segments: 5, bytes: 500, forwarded: 0 },
        input: Some(input),
        back: Some(input),
        route: Route::Forward { output, gateway: None, mtu: 1500 },
    };
    FlowFacts {
        asked: original,
        entry: Some(Entry {
            id: 7,
            original,
            reply: original.reversed(),
            status: Status(SEEN_REPLY),
            zone: 0,
            tcp_state: Some(TcpState::Established),
            helper: None,
            mark: 0,
            counters: Some([count; 2]),
        }),
        tracked: Some(10),
        directions: [direction(original, C0, S0), direction(original.reversed(), S0, C0)],
        counting: true,
        left: Some([5, 5]),
        ruleset: Ruleset {
            owner: Some(Owner::Agent),
            earlier: Earlier::default(),
            threshold: Some(20),
            priority: 300,
            managed: [C0, S0].into(),
            counter: true,
            meter: true,
            excluded: None,
            excluded_marks: Vec::new(),
            revoked: false,
            assisted: false,
            left_out: Vec::new(),
        },
        wanted: Vec::new(),
        slow: None,
        traces: vec![trace(Direction_::Original, C0, S0), trace(Direction_::Reply, S0, C0)],
        route_rules: Vec::new(),
        ipvs: false,
        dead: Vec::new(),
        flowtables: Vec::new(),
        notrack: Vec::new(),
        ipsec: Vec::new(),
        programs: Vec::new(),
        unmanaged: Vec::new(),
        links: [link(C0, "c0"), link(S0, "s0")].into_iter().collect(),
        addresses: ["10.1.0.1".parse::<IpAddr>().unwrap(), "10.2.0.1".parse().unwrap()].into(),
        flow_timeout_ms: 30_000,
        now_ns: 9_100_000_000,
    }
}

fn trace(direction: Direction_, input: IfIndex, output: IfIndex) -> Trace {
    Trace { direction, input, output, idle_ms: 10 }
}

fn slow(packets: u64, moved: u64) -> Slow {
    let counter = |packets| Counter { packets, bytes: packets * 100 };
    Slow { counter: counter(packets), idle_ms: 100, moved: counter(moved) }
}

fn accelerated() -> FlowFacts {
    changed(|facts| {
        facts.slow = None;
        entry(facts).status = Status(SEEN_REPLY | OFFLOAD);
    })
}

fn changed(change: impl FnOnce(&mut FlowFacts)) -> FlowFacts {
    let mut facts = facts();
    change(&mut facts);
    facts
}

fn entry(facts: &mut FlowFacts) -> &mut Entry {
    facts.entry.as_mut().unwrap()
}

fn offloaded_and_slow(facts: &mut FlowFacts) {
    entry(facts).status.0 |= OFFLOAD;
    facts.slow = Some(slow(70, 10));
}

fn quiet(facts: &mut FlowFacts) {
    facts.tracked = Some(0);
    facts.traces.clear();
    for direction in &mut facts.directions {
        direction.moved = Moved::default();
    }
}

fn name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn program(before_ours: bool) -> Program {
    Program { interface: name("c0"), name: "XDP program thief".to_owned(), before_ours }
}

fn other_flowtable(priority: i32) -> Flowtable {
    Flowtable {
        name: "inet other ft".to_owned(),
        devices: Some([name("c0"), name("s0")].into()),
        priority: Some(priority),
    }
}

/// Makes both interfaces ports of a bridge.
fn bridge(facts: &mut FlowFacts) {
    facts.links = [
        Link { master: Some(BR0), ..link(C0, "c0") },
        Link { master: Some(BR0), ..link(S0, "s0") },
        Link { kind: Some("bridge".to_owned()), ..link(BR0, "br0") },
    ]
    .into_iter()
    .collect::<LinkTable>();
}

type Change = fn(&mut FlowFacts);

/// What each reason looks like, and what the verdict says.
const REASONS: &[(&str, Change, &str)] = &[
    ("protocol", |f| entry(f).original.protocol = 132, "neither TCP nor UDP"),
    ("local", |f| f.addresses.extend([f.directions[1].tuple.source]), "begins or ends on this node"),
    ("local", |f| f.directions[0].route = Route::Local, "begins or ends on this node"),
    ("bridged", bridge, "from port to port of br0"),
    (
        "redirected",
        |f| {
            f.tracked = Some(0);
            f.slow = None;
            f.programs = vec![program(false)];
        },
        "thief on c0",
    ),
    ("no-rule", |f| f.ruleset = Ruleset::default(), "no rule of the agent"),
    ("no-route", |f| f.directions[0].route = Route::Nowhere(ENETUNREACH), "Network is unreachable"),
    (
        "interface",
        |f| {
            f.ruleset.managed.remove(&S0);
            f.unmanaged = vec![(S0, Unmanaged::Down)];
        },
        "s0 isn't in the flowtable: down",
    ),
    (
        "interface",
        |f| {
            f.ruleset.managed.remove(&S0);
            f.unmanaged = vec![(S0, Unmanaged::Refused { error: "too many".to_owned() })];
        },
        "refuses it: too many",
    ),
    ("excluded", |f| f.ruleset.excluded = Some("port 443".to_owned()), "excluded: port 443"),
    (
        "excluded",
        |f| {
            f.ruleset.managed.remove(&S0);
            f.unmanaged = vec![(S0, Unmanaged::FlowsExcluded)];
        },
        "excluded: interface/s0",
    ),
    (
        "excluded",
        |f| {
            f.traces.clear();
            f.ruleset.excluded_marks = vec!["mark/0x10".to_owned()];
        },
        "probably excluded: mark/0x10",
    ),
    ("revoked", |f| f.ruleset.revoked = true, "`fastpath-agent revoke` keeps it"),
    (
        "ipsec",
        |f| f.ipsec = vec!["out 10.1.0.0/24 > 10.2.0.0/24".to_owned()],
        "IPsec policy applies (out 10.1.0.0/24",
    ),
    ("helper", |f| entry(f).helper = Some("ftp".to_owned()), "helper ftp reads along"),
    ("sequence-adjusted", |f| entry(f).status.0 |= 1 << 6, "sequence numbers"),
    ("one-way", |f| entry(f).status = Status(0), "one direction only"),
    ("closing", |f| entry(f).tcp_state = Some(TcpState::Closing), "FIN or RST"),
    ("not-established", |f| entry(f).tcp_state = Some(TcpState::Opening), "handshake"),
    ("not-counted", |f| entry(f).counters = None, "never takes it"),
    (
        "not-counted",
        |f| {
            entry(f).counters = None;
            f.ruleset.assisted = true;
        },
        "next packet offloads it",
    ),
    ("below-threshold", |f| f.ruleset.threshold = Some(100), "100 packets so far, offloaded after 100"),
    (
        "ip-options",
        |f| f.directions[1].counted.as_mut().unwrap().flags = FlowCounters::IPV4_OPTIONS,
        "IPv4 options",
    ),
    (
        "fragments",
        |f| {
            offloaded_and_slow(f);
            f.directions[0].counted.as_mut().unwrap().flags = FlowCounters::FIRST_FRAGMENT;
        },
        "fragments",
    ),
    (
        "mtu",
        |f| {
            offloaded_and_slow(f);
            f.directions[0].moved = Moved { packets: 5, segments: 5, bytes: 5 * 1600, forwarded: 0 };
        },
        "(1600 bytes on average) are larger than the MTU of the way out (1500)",
    ),
    (
        "every-packet",
        |f| {
            f.traces.clear();
            let rule = "inet edge forward handle 7 \"shape guests\"".to_owned();
            f.wanted = vec![Wanted { rule, asks: "limit".to_owned(), certain: true }];
        },
        "wants every packet: `inet edge forward handle 7 \"shape guests\"` (limit)",
    ),
    (
        "ipvs",
        |f| {
            f.ipvs = true;
            f.traces.remove(0);
        },
        "IPVS handles it",
    ),
    ("one-direction", |f| f.traces.truncate(1), "only packets of the original direction were accepted"),
    ("asymmetric", |f| f.traces[1].input = BR0, "c0 > s0 and #3 > c0"),
    (
        "route-rule",
        |f| {
            let not_this = RouteRule { destination_ports: Some((80..=80).into()), ..RouteRule::default() };
            let lan = RouteRule { input: Some(name("c0")), ..RouteRule::default() };
            f.route_rules = vec![not_this, lan];
        },
        "probably the policy rule `from all iif c0`",
    ),
    ("no-way-back", |f| f.directions[0].back = Some(S0), "doesn't lead out of c0"),
    (
        "lost",
        |f| {
            entry(f).status.0 |= OFFLOAD;
            f.left = Some([5, 0]);
        },
        "offloaded, but packets of the reply direction come in and none leaves",
    ),
    (
        "dead-neighbour",
        |f| {
            entry(f).status.0 |= OFFLOAD;
            f.dead = vec![("10.2.0.2".parse().unwrap(), S0)];
        },
        "10.2.0.2 on s0 doesn't answer",
    ),
    ("blocked", |f| f.traces.clear(), "don't reach the agent's rule"),
    ("idle", quiet, "no packets just now"),
    (
        "idle",
        |f| {
            quiet(f);
            f.now_ns += 30_000_000_000;
        },
        "leaves the flowtable after 30 s",
    ),
    ("unknown", |_| {}, "doesn't take it"),
    ("unknown", offloaded_and_slow, "but its packets are still on the normal path"),
    ("unknown-to-conntrack", |f| f.entry = None, "conntrack doesn't have it: its table is full"),
    (
        "unknown-to-conntrack",
        |f| {
            quiet(f);
            f.entry = None;
        },
        "any more",
    ),
    (
        "untracked",
        |f| {
            f.entry = None;
            f.notrack = vec!["table inet raw, chain pre".to_owned()];
        },
        "`notrack` in table inet raw, chain pre",
    ),
    (
        "redirected",
        |f| {
            f.entry = None;
            f.programs = vec![program(false)];
        },
        "thief on c0",
    ),
    (
        "bridged",
        |f| {
            f.entry = None;
            bridge(f);
        },
        "from port to port of br0",
    ),
];

#[test]
fn every_reason_is_told_from_the_others() {
    for (reason, change, words) in REASONS {
        let facts = changed(change);
        let Explanation { steps, verdict } = explain(&facts);
        assert_eq!(verdict.reason.as_ref().map(Reason::name), Some(*reason), "{verdict:#?}");
        assert_eq!(verdict.accelerated, Accelerated::No, "{verdict:#?}");
        assert!(verdict.text.contains(words), "{words:?} not in {:?}", verdict.text);
        // It shows in just one step, which isn't called right.
        let shown: Vec<_> = steps.iter().filter(|step| step.reasons.contains(reason)).collect();
        assert_eq!(shown.len(), 1, "{reason}: {steps:#?}");
        assert_eq!(shown[0].ok, StepMark::NotOk);
    }
}

#[test]
fn every_reason_has_an_example() {
    let json = |reason: &Reason| serde_json::to_value(reason).unwrap()["reason"].clone();
    for (reason, change, _) in REASONS {
        let verdict = explain(&changed(change)).verdict;
        // The name that serde gives is the one that steps have.
        assert_eq!(json(&verdict.reason.unwrap()), **reason);
    }
    let shown: std::collections::BTreeSet<_> = REASONS.iter().map(|(reason, ..)| *reason).collect();
    // All but other-flowtable, whose flows are accelerated.
    assert_eq!(shown.len(), 33);
}

#[test]
fn accelerated_since_when_and_how_many() {
    let verdict = explain(&accelerated()).verdict;
    assert_eq!((verdict.accelerated, &verdict.reason, verdict.certain), (Accelerated::Yes, &None, true));
    // 100 packets, of which 21 came before.
    assert!(
        verdict.text.contains("10 packets while watching, 10 left again, none on the normal path"),
        "{}",
        verdict.text
    );
    assert!(verdict.text.contains("79 packets have bypassed it"), "{}", verdict.text);
    assert_eq!(verdict.remedy, None);

    let mut facts = accelerated();
    facts.slow = Some(Slow { idle_ms: 5000, ..slow(9, 0) });
    let verdict = explain(&facts).verdict;
    assert!(verdict.text.contains("for 5 s, 70 packets"), "{}", verdict.text);

    quiet(&mut facts);
    let verdict = explain(&facts).verdict;
    assert_eq!(verdict.accelerated, Accelerated::Quiet);
    assert!(!verdict.certain && verdict.text.contains("no packets while watching"), "{}", verdict.text);
}

#[test]
fn some_packets_may_take_the_forward_path() {
    let mut facts = accelerated();
    facts.slow = Some(slow(3, 3));
    facts.directions[0].counted.as_mut().unwrap().flags = FlowCounters::FIRST_FRAGMENT;
    let verdict = explain(&facts).verdict;
    assert_eq!(verdict.accelerated, Accelerated::Partly);
    assert_eq!(verdict.reason, Some(Reason::Fragments));
    assert!(verdict.text.contains("3 of 10 packets"), "{}", verdict.text);
}

/// Packets that were options or fragments once say nothing while all are fast.
#[test]
fn what_was_once_seen_hinders_no_accelerated_flow() {
    let mut facts = accelerated();
    facts.directions[0].counted.as_mut().unwrap().flags =
        FlowCounters::FIRST_FRAGMENT | FlowCounters::IPV4_OPTIONS;
    facts.ipsec = vec!["out".to_owned()];
    assert_eq!(explain(&facts).verdict.reason, None);
}

#[test]
fn another_flowtable_shows_by_what_ours_would_not_do() {
    let owner = |change: Change| {
        let mut facts = accelerated();
        facts.flowtables = vec![other_flowtable(0)];
        change(&mut facts);
        let verdict = explain(&facts).verdict;
        assert_eq!(verdict.accelerated, Accelerated::Yes);
        verdict.reason.map(|reason| (reason.name(), verdict.certain))
    };
    let theirs = Some(("other-flowtable", true));
    assert_eq!(owner(|_| {}), None, "conntrack counts on, as only a flowtable with a counter makes it do");
    assert_eq!(owner(|f| f.tracked = Some(0)), theirs, "the agent's would have counted");
    assert_eq!(owner(|f| f.ruleset = Ruleset::default()), theirs, "we have no rule");
    assert_eq!(owner(|f| f.ruleset.threshold = Some(1000)), theirs, "the agent's waits for more packets");
    assert_eq!(owner(|f| f.ruleset.excluded = Some("x".to_owned())), theirs);
    assert_eq!(
        owner(|f| {
            f.ruleset.managed.remove(&S0);
        }),
        theirs
    );
    // A flowtable that the flow doesn't go through, or that no rule adds to, isn't it.
    let elsewhere: Change = |f| {
        f.ruleset = Ruleset::default();
        f.flowtables[0].devices = Some([name("eth7")].into());
    };
    assert_eq!(owner(elsewhere), None);
    let unused: Change = |f| {
        f.ruleset = Ruleset::default();
        f.flowtables[0].priority = None;
    };
    assert_eq!(owner(unused), None);
}

#[test]
fn what_would_never_be_accelerated_comes_first() {
    let mut facts = facts();
    facts.ruleset.threshold = Some(1000);
    entry(&mut facts).helper = Some("ftp".to_owned());
    facts.unmanaged = vec![(S0, Unmanaged::LeftOut)];
    facts.ruleset.managed.remove(&S0);
    let Explanation { steps, verdict } = explain(&facts);
    assert_eq!(verdict.reason.unwrap().name(), "interface");
    let all: Vec<_> = steps.iter().flat_map(|step| &step.reasons).collect();
    assert_eq!(all, [&"helper", &"interface", &"below-threshold"], "in the order of the story");
}

#[test]
fn packets_that_come_in_below_a_managed_interface() {
    // An ipvlan in L3 mode on s0, which itself is left out: the server's packets are forwarded from s0.
    let mut facts = accelerated();
    let upper = IfIndex(9);
    facts.links = [
        link(C0, "c0"),
        link(S0, "s0"),
        Link { lower: Some(S0), kind: Some("ipvlan".to_owned()), ..link(upper, "ipv0") },
    ]
    .into_iter()
    .collect::<LinkTable>();
    facts.ruleset.managed = [C0, upper].into();
    facts.directions[0].route = Route::Forward { output: upper, gateway: None, mtu: 1500 };
    facts.directions[1].input = Some(upper);
    facts.directions[1].counted = None;
    facts.directions[1].moved = Moved::default();
    facts.slow = Some(slow(5, 5));
    let verdict = explain(&facts).verdict;
    let problem = Unmanaged::Layered { upper: "ipv0".to_owned() };
    assert_eq!(verdict.reason, Some(Reason::Interface { interface: "s0".to_owned(), problem }));
}

#[test]
fn an_unknown_flow() {
    let mut facts = changed(|f| {
        quiet(f);
        f.entry = None;
        f.tracked = None;
        for direction in &mut f.directions {
            direction.counted = None;
        }
    });
    let verdict = explain(&facts).verdict;
    assert_eq!((verdict.accelerated, &verdict.reason), (Accelerated::NotFound, &None));
    assert!(verdict.text.contains("neither conntrack nor the agent's counters"), "{}", verdict.text);
    // A program after the agent's would have left the flow to be counted.
    facts.programs = vec![program(false)];
    assert_eq!(explain(&facts).verdict.reason, None);
    facts.programs = vec![program(true)];
    let verdict = explain(&facts).verdict;
    assert_eq!((verdict.reason.map(|r| r.name()), verdict.certain), (Some("redirected"), false));
    // Without the agent's programs one can't tell that it isn't there.
    facts.programs.clear();
    facts.counting = false;
    facts.notrack = vec!["table ip raw, chain PREROUTING".to_owned()];
    assert_eq!(explain(&facts).verdict.reason.map(|r| r.name()), Some("untracked"));
}

#[test]
fn a_masqueraded_flow_is_not_local() {
    let mut facts = accelerated();
    let node = "10.2.0.1".parse().unwrap();
    entry(&mut facts).reply.destination = node;
    facts.directions[1].tuple.destination = node;
    let Explanation { steps, verdict } = explain(&facts);
    assert_eq!(verdict.accelerated, Accelerated::Yes);
    assert!(
        steps[0].text.contains("leaves as 10.2.0.1:40000 > 10.2.0.2:443, source NAT"),
        "{}",
        steps[0].text
    );
    let mut facts = changed(|f| entry(f).original.protocol = UDP);
    facts.addresses.insert("10.1.0.2".parse().unwrap());
    assert_eq!(explain(&facts).verdict.reason, Some(Reason::Local), "but what it begins itself is");
}

#[test]
fn json_keeps_its_shape() {
    let json = serde_json::to_value(explain(&changed(|f| {
        f.ruleset.managed.remove(&S0);
        f.unmanaged = vec![(S0, Unmanaged::Down)];
    })))
    .unwrap();
    let verdict = &json["verdict"];
    assert_eq!(
        (&verdict["accelerated"], &verdict["reason"], &verdict["interface"], &verdict["problem"]),
        (&"no".into(), &"interface".into(), &"s0".into(), &"down".into())
    );
    let rule = json["steps"].as_array().unwrap().iter().find(|step| step["step"] == "rule").unwrap();
    assert_eq!((&rule["ok"], &rule["reasons"]), (&false.into(), &serde_json::json!(["interface"])));
}
