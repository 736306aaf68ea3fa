//! What follows from a reading, and which announcements lead to another one.

use super::*;
use crate::core::{
    policy::{
        chain::{Base, Chain, Device},
        expr::{Expr, Verdict},
        outcome::{Established, Outcome},
        rule::Rule,
        traits::SetKind,
    },
    revalidate::Hook,
};

const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;

fn chain(hook: u32, priority: i32, devices: &[&str]) -> Chain {
    let devices = devices.iter().map(|name| Device::Name((*name).to_owned())).collect();
    let base = Base { kind: "filter".to_owned(), hook, priority, accepts: true, devices };
    Chain { base: Some(base), ..Chain::default() }
}

fn table(family: u8, name: &str, chains: &[(&str, Chain)]) -> (TableKey, BTreeMap<String, Chain>) {
    let chains = chains.iter().map(|(name, chain)| ((*name).to_owned(), chain.clone())).collect();
    ((family, name.to_owned()), chains)
}

fn read() -> Known {
    Known {
        expiries: BTreeMap::new(),
        tables: Some(Arc::default()),
        legacy: Some(BTreeSet::new()),
        ends_leave: true,
        route_rules: Some(RouteRules::default()),
        uppers: BTreeMap::new(),
        pppoe: BTreeSet::new(),
    }
}

fn upper(name: &str, programs: Option<bool>) -> Upper {
    Upper { name: IfName::new(name).unwrap(), programs }
}

#[test]
fn without_other_programs_there_is_nothing_to_respect() {
    let expected = Surroundings { sure_of_answers: true, ..Surroundings::default() };
    assert_eq!(read().surroundings(&[]), expected);
}

#[test]
fn answers_are_sure_while_no_rule_can_deny_them() {
    let sure = |known: Known| known.surroundings(&[]).sure_of_answers;
    let with = |tables: &[_]| {
        sure(Known { tables: Some(Arc::new(Others(tables.iter().cloned().collect()))), ..read() })
    };
    let denies = |hook| {
        let mut chain = chain(hook, 0, &[]);
        chain.rules.push(Rule::asking_nothing(1, Outcome::Deny, Established::Some));
        chain
    };
    assert!(with(&[table(IPV4, "t", &[("c", chain(2, 0, &[])), ("input", denies(1))])]));
    for hook in [0, 2, 4] {
        assert!(!with(&[table(IPV4, "t", &[("c", denies(hook))])]), "hook {hook}");
    }
    assert!(with(&[table(BRIDGE, "t", &[("c", chain(2, 0, &[]))])]));
    assert!(!with(&[table(BRIDGE, "t", &[("c", denies(2))])]), "bridges deny too");
    let legacy = |name: &str| sure(Known { legacy: Some([name.to_owned()].into()), ..read() });
    assert!(legacy("nat") && !legacy("raw"));
    let by_mark = RouteRules { by_mark: true, ..RouteRules::default() };
    let by_packet = RouteRules { by_packet: true, ..RouteRules::default() };
    for rules in [by_mark, by_packet] {
        assert!(!sure(Known { route_rules: Some(rules), ..read() }));
    }
}

#[test]
fn legacy_tables_translate_too() {
    let translates =
        |name: &str| Known { legacy: Some([name.to_owned()].into()), ..read() }.surroundings(&[]).translates;
    assert_eq!(translates("nat"), Translates { v4: true, v6: true });
    assert_eq!(translates("filter"), Translates::default());
}

#[test]
fn legacy_tables_have_their_places() {
    let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    let of = |legacy| {
        let found = Known { legacy, ..read() }.surroundings(&[]);
        (found.last_forward, found.denying_postrouting)
    };
    assert_eq!(of(names(&["nat", "raw"])), (None, None));
    assert_eq!(of(names(&["filter", "nat"])), (Some(0), None));
    assert_eq!(of(names(&["mangle", "security", "filter"])), (Some(50), Some(-150)));
    assert_eq!(of(None), (Some(50), Some(-150)), "unread");
    let later = Others([table(IPV4, "t", &[("c", chain(2, 200, &[]))])].into());
    let known = Known { legacy: names(&["filter"]), tables: Some(Arc::new(later)), ..read() };
    assert_eq!(known.surroundings(&[]).last_forward, Some(200));
}

#[test]
fn what_cannot_be_read_is_the_worst_that_could_be() {
    let unread = Known { uppers: [(IfIndex(3), upper("vlan", None))].into(), ..Known::default() };
    let Surroundings {
        last_forward,
        denying_postrouting,
        unguessed,
        inspected,
        pppoe: _,
        rules,
        sure_of_answers,
        translates,
    } = unread.surroundings(&[]);
    assert_eq!(translates, Translates::default());
    assert_eq!((last_forward, denying_postrouting), (Some(UNKNOWN_PRIORITY), Some(UNKNOWN_PRIORITY)));
    assert_eq!(unguessed.len(), 2);
    assert!(!sure_of_answers);
    assert_eq!(inspected, [IfIndex(3)].into());
    assert!(rules.iter().all(|rule| rule.is_changing()) && rules.len() == 2, "{rules:?}");
}

#[test]
fn interfaces_are_inspected_by_programs_and_by_chains() {
    let tables = Others([table(NETDEV, "t", &[("c", chain(0, -10, &["eth0.8", "eth0"]))])].into());
    let uppers = [
        (IfIndex(7), upper("eth0.7", Some(true))),
        (IfIndex(8), upper("eth0.8", Some(false))),
        (IfIndex(9), upper("eth0.9", Some(false))),
    ];
    let known = Known { tables: Some(Arc::new(tables)), uppers: uppers.into(), ..read() };
    assert_eq!(known.surroundings(&[]).inspected, [IfIndex(7), IfIndex(8)].into());
}

fn counts(known: Option<&Others>, reading: Option<&Parts>, subject: Subject<'_>) -> bool {
    let mut parts = Parts::default();
    parts.note(&Notice { family: IPV4, table: "t", subject }, known, reading);
    !parts.is_empty()
}

#[test]
fn only_what_may_change_our_ruleset_is_read_again() {
    let hook = |number| Some(Hook { kind: "filter", number, priority: 0 });
    let none = Others::default();
    let input = Others([table(IPV4, "t", &[("c", chain(1, 0, &[]))])].into());
    let post = Others([table(IPV4, "t", &[("c", chain(4, 0, &[]))])].into());
    let base = Subject::Chain { name: "c", hook: hook(2), gone: false };
    let plain = Subject::Chain { name: "d", hook: None, gone: false };
    let gone = Subject::Chain { name: "c", hook: None, gone: true };
    let rule = Subject::Rule { chain: "c" };
    let deleted = Subject::Table { gone: true };
    // Whatever table is meant: known with no chains, with one that is only looked up, or with one whose rules are read.
    for (subject, expected) in [
        (base, [true, true, true]),
        (plain, [false, false, true]),
        (gone, [false, true, true]),
        (rule, [false, false, true]),
        (deleted, [false, true, true]),
        (Subject::Table { gone: false }, [false; 3]),
        (Subject::Other, [false; 3]),
        (Subject::Timeout, [true; 3]),
        (Subject::Elements { set: "s" }, [false; 3]),
    ] {
        let found = [&none, &input, &post].map(|known| counts(Some(known), None, subject));
        assert_eq!(found, expected, "{subject:?}");
        let unsure = !matches!(subject, Subject::Other | Subject::Table { gone: false });
        let elements = matches!(subject, Subject::Elements { .. });
        assert_eq!(counts(None, None, subject), unsure && !elements, "{subject:?}");
        let reading = Parts { tables: [(IPV4, "t".to_owned())].into(), ..Parts::default() };
        assert_eq!(counts(Some(&none), Some(&reading), subject), unsure, "{subject:?}");
        assert_eq!(counts(Some(&none), Some(&Parts::all()), subject), unsure, "{subject:?}");
    }
    // A map that says where packets go.
    let maps = ["m".into()].into();
    let leading = Others([table(IPV4, "t", &[("c", Chain { maps, ..chain(2, 0, &[]) })])].into());
    for (set, expected) in [("m", true), ("s", false)] {
        assert_eq!(counts(Some(&leading), None, Subject::Elements { set }), expected, "{set}");
    }
    // A chain and its rules in one transaction.
    let mut parts = Parts::default();
    for subject in [base, rule] {
        parts.note(&Notice { family: IPV4, table: "t", subject }, Some(&none), None);
    }
    assert_eq!(parts.tables.len(), 1);
    let mut parts = Parts::default();
    parts.note(&Notice { family: 1, table: crate::core::model::TABLE, subject: base }, None, None);
    assert!(parts.is_empty(), "our own");
}

#[test]
fn elements_that_run_out_are_read_again_and_known_moments_are_all_that_is_needed() {
    let asking = |set| {
        let lookup = Expr::Lookup { set, register: 1, inverted: false };
        let mut rule = Rule::new(IPV4, 7, [lookup, Expr::Verdict(Verdict::Drop)]);
        rule.traits.as_mut().expect("traits").resolve(|_| SetKind::Expiring);
        rule
    };
    let rules = vec![asking("s"), asking("other")];
    let expiring = ["s".into(), "other".into()].into();
    let tables = Others([table(IPV4, "t", &[("c", Chain { rules, expiring, ..chain(2, 0, &[]) })])].into());
    let mut parts = Parts::default();
    for set in ["s", "unasked"] {
        let notice = Notice { family: IPV4, table: "t", subject: Subject::Elements { set } };
        parts.note(&notice, Some(&tables), None);
    }
    let key = |set: &str| ((IPV4, "t".to_owned()), set.into());
    assert_eq!(parts, Parts { sets: [key("s")].into(), ..Parts::default() });
    let need = |other: Option<Vec<u64>>| {
        let expiries = [(key("s"), Some(vec![10, 30])), (key("other"), other), (key("unasked"), None)].into();
        let known = Known { tables: Some(Arc::new(tables.clone())), expiries, ..read() };
        known.need(&known.surroundings(&[]).rules)
    };
    let causes = BTreeSet::from(["set"]);
    let expected = Need { causes: causes.clone(), expiries: vec![10, 20, 30], ..Need::default() };
    assert_eq!(need(Some(vec![20])), expected);
    assert_eq!(need(None), Need { causes, anytime: true, expiries: vec![10, 30], ..Need::default() });
}

#[test]
fn what_is_not_read_may_change_at_any_time() {
    let legacy = Known { legacy: Some(["filter".to_owned()].into()), ..read() };
    for known in [legacy, Known { tables: None, ..read() }] {
        assert!(known.need(&known.surroundings(&[]).rules).anytime);
    }
    assert_eq!(read().need(&read().surroundings(&[]).rules), Need::default());
}
