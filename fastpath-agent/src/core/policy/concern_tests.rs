//! Which rules of others concern offloaded flows.

use super::*;
use crate::core::policy::{
    expr::{Expr as Other, Verdict},
    others::Base,
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
        let chain = Chain { base: (position == 0).then_some(base), rules: rules(list) };
        table.insert((*name).to_owned(), chain);
    }
    Others([((2, "t".to_owned()), table)].into())
}

fn found(others: &Others) -> Vec<(String, &'static str)> {
    let text = |rule: &Concern| (format!("{} {}", rule.chain, rule.handle), rule.class.name());
    others.concerns().iter().map(text).collect()
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
    assert_eq!(one(&[], &[&[LIMIT, DROP]]), [], "nobody jumps there");
    let time = [Other::Meta { key: 32, register: 1 }, DROP];
    assert_eq!(one(&[&time], &[]), [("c 1".to_owned(), "changing")]);
    for (kind, hook, listed) in [("nat", 2, 0), ("filter", 1, 0), ("filter", 0, 1), ("filter", 4, 1)] {
        let others = others(kind, hook, 0, &[("c", &[&[LIMIT, DROP]])]);
        assert_eq!(others.concerns().len(), listed, "{kind} {hook}");
    }
}

#[test]
fn addresses_are_copied_where_nat_leaves_them() {
    let rule = [SADDR, Other::Compare { register: 1, equal: true, value: 1 }, LIMIT, DROP];
    for (hook, priority, addresses) in
        [(0, -300, false), (0, -100, false), (0, -99, true), (2, 0, true), (4, 0, true), (4, 100, false)]
    {
        let concerns = others("filter", hook, priority, &[("c", &[&rule])]).concerns();
        let [concern] = &concerns[..] else { panic!("{concerns:?}") };
        assert_eq!(concern.conditions.to_string().contains("saddr"), addresses, "{hook} {priority}");
        assert_eq!(concern.leaves_everything_out(), !addresses);
    }
}

#[test]
fn edits_count_while_chains_behind_the_flowtable_may_ask_for_them() {
    let mark = [SADDR, Other::Compare { register: 1, equal: true, value: 1 }, Other::Edit { name: "meta" }];
    let connection = [Other::Edit { name: "ct" }];
    let mut others = others("filter", FORWARD, 0, &[("c", &[&mark, &connection])]);
    let classes = |others: &Others| others.concerns().iter().map(|rule| rule.class).collect::<Vec<_>>();
    assert_eq!(classes(&others), [Class::NotDecisive; 2]);
    for (family, hook, counts) in [(5, 0, false), (5, 1, true), (7, 3, true), (2, 3, false)] {
        let base = Base { kind: "filter".to_owned(), hook, priority: 0, accepts: true, devices: Vec::new() };
        let chain = Chain { base: Some(base), rules: Vec::new() };
        others.0.insert((family, "later".to_owned()), [("c".to_owned(), chain)].into());
        let first = if counts { Class::EveryPacket } else { Class::NotDecisive };
        assert_eq!(classes(&others), [first, Class::NotDecisive], "family {family}, hook {hook}");
        others.0.remove(&(family, "later".to_owned()));
    }
    let later = Base { kind: "filter".to_owned(), hook: 1, priority: 0, accepts: true, devices: Vec::new() };
    let later = Chain { base: Some(later), rules: Vec::new() };
    others.0.insert((5, "later".to_owned()), [("c".to_owned(), later)].into());
    assert!(others.concerns()[0].conditions.to_string().contains("saddr"), "only its own packets");
}
