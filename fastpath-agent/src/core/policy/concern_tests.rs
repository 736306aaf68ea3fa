//! Which of other programs' rules concern offloaded flows.

use super::*;
use crate::core::policy::{
    chain::Base,
    expr::{Expr as Other, Verdict},
    rule::Rule,
};

const FORWARD: u32 = 2;
const LIMIT: Other<'_> = Other::Other { name: "limit" };
const DROP: Other<'_> = Other::Verdict(Verdict::Drop);
const ACCEPT: Other<'_> = Other::Verdict(Verdict::Accept);
const SADDR: Other<'_> = Other::Payload { base: 1, offset: 12, length: 4, register: 1 };

fn rules(list: &[&[Other<'_>]]) -> Vec<Rule> {
    list.iter().zip(1..).map(|(exprs, handle)| Rule::new(2, handle, exprs.iter().copied())).collect()
}

fn others(kind: &str, hook: u32, priority: i32, chains: &[(&str, &[&[Other<'_>]])]) -> Others {
    let mut table = BTreeMap::new();
    for (position, (name, list)) in chains.iter().enumerate() {
        let base = Base { kind: kind.to_owned(), hook, priority, accepts: true, devices: Vec::new() };
        let chain = Chain { base: (position == 0).then_some(base), rules: rules(list), ..Chain::default() };
        table.insert((*name).to_owned(), chain);
    }
    Others([((2, "t".to_owned()), table)].into())
}

fn found(others: &Others) -> Vec<(String, &'static str)> {
    let text = |rule: &Concern| (format!("{} {}", rule.chain, rule.handle), rule.class.name());
    others.concerns(true, false).iter().map(text).collect()
}

#[test]
fn only_rules_that_established_connections_reach_and_that_decide() {
    let established = [
        Other::Ct { key: 0, register: 1 },
        Other::Mask { source: 1, destination: 1, mask: 2 },
        Other::Compare { register: 1, equal: false, value: 0 },
        ACCEPT,
    ];
    let new = [
        Other::Ct { key: 0, register: 1 },
        Other::Mask { source: 1, destination: 1, mask: 8 },
        Other::Compare { register: 1, equal: false, value: 0 },
        LIMIT,
        DROP,
    ];
    let log = [LIMIT, Other::Other { name: "log" }];
    let jump = [LIMIT, Other::Verdict(Verdict::Jump("d"))];
    let one = |list: &[&[Other<'_>]], other: &[&[Other<'_>]]| {
        found(&others("filter", FORWARD, 0, &[("c", list), ("d", other)]))
    };
    let every = |place: &str| vec![(place.to_owned(), "every-packet")];
    assert_eq!(one(&[&[LIMIT, DROP]], &[]), every("c 1"));
    assert_eq!(one(&[&established, &[LIMIT, DROP]], &[]), []);
    assert_eq!(one(&[&new], &[]), []);
    assert_eq!(one(&[&log], &[]), [("c 1".to_owned(), "not-decisive")]);
    assert_eq!(one(&[&jump], &[&[DROP]]), every("c 1"));
    assert_eq!(one(&[&jump], &[&log])[0].1, "not-decisive");
    assert_eq!(one(&[&[Other::Verdict(Verdict::Jump("d"))]], &[&[LIMIT, DROP]]), every("d 1"));
    assert_eq!(one(&[], &[&[LIMIT, DROP]]), [], "nothing jumps there");
    let time = [Other::Meta { key: 32, register: 1 }, DROP];
    assert_eq!(one(&[&time], &[]), [("c 1".to_owned(), "changing")]);
    for (kind, hook, listed) in [("nat", 2, 0), ("filter", 1, 0), ("filter", 0, 1), ("filter", 4, 1)] {
        let others = others(kind, hook, 0, &[("c", &[&[LIMIT, DROP]])]);
        assert_eq!(others.concerns(true, false).len(), listed, "{kind} {hook}");
    }
}

#[test]
fn addresses_are_the_connections_where_nat_changes_them() {
    let rule = [SADDR, Other::Compare { register: 1, equal: true, value: 1 }, LIMIT, DROP];
    let [plain, before, behind] = [
        vec!["meta nfproto ipv4 ip saddr 1.0.0.0"],
        vec![
            "ct direction original meta nfproto ipv4 ct original ip saddr 1.0.0.0",
            "ct direction reply meta nfproto ipv4 ct reply ip saddr 1.0.0.0",
        ],
        vec![
            "ct direction original meta nfproto ipv4 ct reply ip daddr 1.0.0.0",
            "ct direction reply meta nfproto ipv4 ct original ip daddr 1.0.0.0",
        ],
    ];
    for (hook, priority, expected) in [
        (0, -300, &before),
        (0, -100, &before),
        (0, -99, &plain),
        (2, 0, &plain),
        (4, 0, &plain),
        (4, 100, &behind),
    ] {
        let concerns = others("filter", hook, priority, &[("c", &[&rule])]).concerns(true, false);
        let [concern] = &concerns[..] else { panic!("{concerns:?}") };
        let found: Vec<String> = concern.left_out(false).iter().map(Conditions::to_string).collect();
        assert_eq!(&found, expected, "{hook} {priority}");
        assert!(!concern.leaves_everything_out());
    }
}

/// Calico's limit of packets a second.
#[test]
fn a_mark_decides_where_a_rule_asks_for_one() {
    let mark = [LIMIT, Other::Target { name: "MARK" }];
    let asks = [Other::Match { name: "mark", info: &[] }, DROP];
    let new = [LIMIT, Other::Verdict(Verdict::Jump("d"))];
    let one = |list: &[&[Other<'_>]], other: &[&[Other<'_>]]| {
        found(&others("filter", FORWARD, 0, &[("c", list), ("d", other)]))
    };
    assert_eq!(one(&[&mark], &[])[0].1, "not-decisive");
    assert_eq!(one(&[&mark, &asks], &[])[0].1, "every-packet");
    assert_eq!(one(&[&new, &asks], &[&mark[1..]])[0].1, "every-packet", "in a chain");
}

/// TTL, DSCP and the like decide where a verdict or a mark hangs on them.
#[test]
fn headers_that_differ_count_where_something_hangs_on_them() {
    let ttl = Other::Payload { base: 1, offset: 8, length: 1, register: 1 };
    let is = Other::CompareBytes { register: 1, op: 0, data: &[64] };
    let one = |exprs: &[Other<'_>], other: &[Other<'_>]| {
        let rule = [&[ttl, is], exprs].concat();
        let concerns =
            others("filter", FORWARD, 0, &[("c", &[&rule]), ("d", &[other])]).concerns(true, false);
        concerns.iter().map(|rule| (rule.class.name(), rule.cause.to_string())).collect::<Vec<_>>()
    };
    let counts = [("every-packet", "header ip ttl".to_owned())];
    assert_eq!(one(&[DROP], &[]), counts);
    assert_eq!(one(&[Other::Verdict(Verdict::Jump("d"))], &[DROP]), counts);
    assert_eq!(one(&[Other::Verdict(Verdict::Jump("d"))], &[Other::Other { name: "counter" }]), []);
    assert_eq!(one(&[Other::Other { name: "counter" }], &[]), []);
    let edit = ("not-decisive", "edit payload".to_owned());
    assert_eq!(one(&[Other::Edit { name: "payload" }], &[]), [edit]);
    let asks = [Other::Match { name: "mark", info: &[] }, DROP];
    let mark = [Other::Edit { name: "meta mark" }];
    assert_eq!(one(&mark, &[])[0].0, "not-decisive");
    let marks = others("filter", FORWARD, 0, &[("c", &[&[ttl, is, mark[0]], &asks])]).concerns(true, false);
    assert_eq!(marks[0].cause.to_string(), "header ip ttl");
    // Something else that changes doesn't make it less.
    let time = Other::Meta { key: 32, register: 1 };
    assert_eq!(one(&[time, DROP], &[]), counts);
}

#[test]
fn what_takes_the_normal_path_anyway_costs_nothing() {
    let flags = Other::Payload { base: 2, offset: 13, length: 1, register: 1 };
    let [rst, null] = [&[4], &[0]].map(|data| {
        [flags, Other::CompareBytes { register: 1, op: 0, data }, LIMIT, Other::Verdict(Verdict::Jump("d"))]
    });
    let ttl = [
        Other::Payload { base: 1, offset: 8, length: 1, register: 1 },
        Other::CompareBytes { register: 1, op: 0, data: &[1] },
        Other::Verdict(Verdict::Jump("d")),
    ];
    let one = |hook, rule: &[Other<'_>], ends_leave| {
        let tables = others("filter", hook, 0, &[("c", &[rule]), ("d", &[&[LIMIT, DROP]])]);
        tables.concerns(ends_leave, false).len()
    };
    // The rule, and the one behind the jump.
    assert_eq!([one(FORWARD, &rst, true), one(FORWARD, &rst, false)], [0, 2]);
    assert_eq!([one(FORWARD, &null, true), one(FORWARD, &null, false)], [0, 0]);
    assert_eq!([one(FORWARD, &ttl, true), one(0, &ttl, true)], [2, 0]);
}

/// kube-network-policies' queue.
#[test]
fn what_an_earlier_rule_takes_is_no_longer_asked() {
    let label = [
        Other::Ct { key: 13, register: 1 },
        Other::MaskBytes { register: 1, mask: &[1; 16], toggled: &[0; 16] },
        Other::CompareBytes { register: 1, op: 1, data: &[0; 16] },
    ];
    let queue: &[Other<'_>] = &[Other::Verdict(Verdict::Queue)];
    let conditions = |rule: &[Other<'_>]| {
        let concerns = others("filter", FORWARD, 0, &[("c", &[rule, queue])]).concerns(true, false);
        concerns.last().map(|concern| concern.conditions().to_string()).unwrap_or_default()
    };
    let accept = conditions(&[label.as_slice(), &[Other::Other { name: "counter" }, ACCEPT]].concat());
    assert!(accept.starts_with("meta nfproto ipv4 ct label & 0x0101"), "{accept}");
    assert!(accept.contains(" == 0x0000"), "{accept}");
    for (more, why) in [
        (vec![SADDR, Other::Compare { register: 1, equal: true, value: 1 }, ACCEPT], "two conditions"),
        (vec![Other::Lookup { set: "__set0", register: 1, inverted: false }, ACCEPT], "not copied"),
        (vec![Other::Other { name: "log" }], "goes on"),
    ] {
        assert_eq!(conditions(&[label.as_slice(), &more].concat()), "meta nfproto ipv4", "{why}");
    }
}

#[test]
fn edits_count_while_chains_behind_the_flowtable_may_ask_for_them() {
    let mark = [SADDR, Other::Compare { register: 1, equal: true, value: 1 }, Other::Edit { name: "meta" }];
    let connection = [Other::Edit { name: "ct" }];
    let mut others = others("filter", FORWARD, 0, &[("c", &[&mark, &connection])]);
    let classes =
        |others: &Others| others.concerns(true, false).iter().map(|rule| rule.class).collect::<Vec<_>>();
    assert_eq!(classes(&others), [Class::NotDecisive; 2]);
    let mut later = |family, hook, asks: &[Other<'_>]| {
        let base = Base { kind: "filter".to_owned(), hook, priority: 0, accepts: true, devices: Vec::new() };
        let rule = Rule::new(family, 1, asks.iter().copied().chain([DROP]));
        let chain = Chain { base: Some(base), rules: vec![rule], ..Chain::default() };
        others.0.insert((family, "later".to_owned()), [("c".to_owned(), chain)].into());
        let found = others.concerns(true, false);
        others.0.remove(&(family, "later".to_owned()));
        found
    };
    let is = Other::Compare { register: 1, equal: true, value: 7 };
    let mark = [Other::Meta { key: 3, register: 1 }, is];
    let dscp = [Other::Payload { base: 1, offset: 1, length: 1, register: 1 }, is];
    let address = [SADDR, is];
    for (family, hook, asks, counts) in [
        (5, 0, &mark, false),
        (5, 1, &mark, true),
        (5, 1, &dscp, true),
        (5, 1, &address, false),
        (7, 3, &mark, true),
        (7, 3, &address, false),
        (2, 3, &mark, false),
    ] {
        let first = if counts { Class::EveryPacket } else { Class::NotDecisive };
        let found: Vec<_> = later(family, hook, asks).iter().map(|rule| rule.class).collect();
        assert_eq!(found, [first, Class::NotDecisive], "family {family}, hook {hook}, {asks:?}");
    }
    assert!(later(5, 1, &mark)[0].conditions().to_string().contains("saddr"), "only its own packets");
}
