//! Which changes count, told by the notices that real programs cause, and how often they are answered.

use super::*;

const BRIDGE: u8 = 7;

fn chain<'a>(family: u8, table: &'a str, name: &'a str, hook: (&'a str, u32, i32)) -> Notice<'a> {
    let (kind, number, priority) = hook;
    let hook = Some(Hook { kind, number, priority });
    Notice { family, table, subject: Subject::Chain { name, hook, gone: false } }
}

fn rule<'a>(family: u8, table: &'a str, chain: &'a str) -> Notice<'a> {
    Notice { family, table, subject: Subject::Rule { chain } }
}

fn other(family: u8, table: &str) -> Notice<'_> {
    Notice { family, table, subject: Subject::Other }
}

fn new(family: u8, table: &str) -> Notice<'_> {
    Notice { family, table, subject: Subject::Table { gone: false } }
}

/// Their tables are known, as if they had been read.
fn known(notices: &[Notice<'_>]) -> BaseChains {
    let mut chains = BaseChains::default();
    for Notice { family, table, .. } in notices {
        chains.note(&new(*family, table));
    }
    notices.iter().for_each(|notice| {
        chains.note(notice);
    });
    chains
}

#[test]
fn a_chain_counts_if_forwarded_packets_pass_it_and_offloaded_ones_do_not() {
    for (family, hook, counts) in [
        (INET, ("filter", 2, 0), true),
        (IPV4, ("filter", 0, -300), true),
        (IPV6, ("filter", 4, -150), true),
        (INET, ("filter", 1, 0), false),
        (IPV4, ("filter", 3, 0), false),
        (IPV4, ("nat", 0, -100), false),
        (INET, ("nat", 4, 100), false),
        (IPV4, ("route", 3, -150), false),
        (INET, ("filter", INET_INGRESS, 0), true),
        (INET, ("filter", INET_INGRESS, -500), false),
        (NETDEV, ("filter", NETDEV_INGRESS, 10), true),
        (NETDEV, ("filter", NETDEV_INGRESS, -1), false),
        (NETDEV, ("filter", NETDEV_EGRESS, 0), false),
        (BRIDGE, ("filter", 1, 0), true),
        (ARP, ("filter", 0, 0), false),
        (99, ("filter", 9, 0), true),
    ] {
        let mut chains = BaseChains::default();
        assert_eq!(chains.note(&new(family, "t")), Touched::default());
        let touched = chains.note(&chain(family, "t", "c", hook));
        assert_eq!(touched, Touched { own_table: false, forwarding: counts }, "{family} {hook:?}");
        // And so do its rules, and the table's sets.
        assert_eq!(chains.note(&rule(family, "t", "c")).forwarding, counts, "{family} {hook:?}");
        assert_eq!(chains.note(&other(family, "t")).forwarding, counts, "{family} {hook:?}");
        assert_eq!(chains.note(&rule(family, "t", "jumped-to")).forwarding, counts, "{family} {hook:?}");
    }
}

#[test]
fn in_a_mixed_table_rules_of_base_chains_are_told_apart() {
    let mut chains = known(&[
        chain(IPV4, "filter", "INPUT", ("filter", 1, 0)),
        chain(IPV4, "filter", "FORWARD", ("filter", 2, 0)),
    ]);
    assert!(!chains.note(&rule(IPV4, "filter", "INPUT")).forwarding);
    assert!(chains.note(&rule(IPV4, "filter", "FORWARD")).forwarding);
    assert!(chains.note(&rule(IPV4, "filter", "f2b-sshd")).forwarding, "which chain jumps there isn't known");
    assert!(chains.note(&other(IPV4, "filter")).forwarding);
    // The same names elsewhere are others.
    chains.note(&new(IPV6, "filter"));
    assert!(!chains.note(&rule(IPV6, "filter", "FORWARD")).forwarding);
}

#[test]
fn a_table_without_base_chains_concerns_no_flow() {
    let mut chains = BaseChains::default();
    let jumped_to = Subject::Chain { name: "c", hook: None, gone: false };
    for notice in [
        new(INET, "t"),
        Notice { family: INET, table: "t", subject: jumped_to },
        rule(INET, "t", "c"),
        other(INET, "t"),
        Notice { family: INET, table: "t", subject: Subject::Table { gone: true } },
    ] {
        assert_eq!(chains.note(&notice), Touched::default(), "{notice:?}");
    }
    assert_eq!(chains, BaseChains::default());
}

#[test]
fn what_is_deleted_counts_once_more() {
    let forward = chain(INET, "t", "c", ("filter", 2, 0));
    let gone =
        |name| Notice { family: INET, table: "t", subject: Subject::Chain { name, hook: None, gone: true } };
    let mut chains = known(&[forward]);
    assert!(chains.note(&gone("c")).forwarding);
    assert!(!chains.note(&gone("c")).forwarding && !chains.note(&other(INET, "t")).forwarding);
    let mut chains = known(&[forward]);
    let table = Notice { family: INET, table: "t", subject: Subject::Table { gone: true } };
    assert!(chains.note(&table).forwarding);
}

/// With its last chain of type nat the kernel stops to translate, also packets of established connections.
#[test]
fn chains_that_translate_count_when_they_go() {
    let nat = chain(INET, "t", "c", ("nat", 4, 100));
    let chain = Subject::Chain { name: "c", hook: None, gone: true };
    for subject in [chain, Subject::Table { gone: true }] {
        let mut chains = known(&[nat]);
        let gone = Notice { family: INET, table: "t", subject };
        assert!(!chains.note(&nat).forwarding && chains.note(&gone).forwarding, "{subject:?}");
    }
}

/// Objects of a table that wasn't announced, in an unknown family, or in a hook of its own.
#[test]
fn what_is_not_known_counts() {
    for family in [INET, IPV4, NETDEV, BRIDGE, 99] {
        let gone = |name| Subject::Chain { name, hook: None, gone: true };
        for subject in
            [Subject::Rule { chain: "c" }, Subject::Other, gone("c"), Subject::Table { gone: true }]
        {
            let mut chains = BaseChains::default();
            assert!(chains.note(&Notice { family, table: "t", subject }).forwarding, "{family} {subject:?}");
        }
        // One chain of it says nothing about the others.
        let mut chains = BaseChains::default();
        chains.note(&chain(family, "t", "c", ("filter", 1, 0)));
        assert!(chains.note(&rule(family, "t", "jumped-to")).forwarding);
    }
    for hook in [("filter", 9, 0), ("later", 9, 0)] {
        let mut chains = known(&[chain(INET, "t", "c", hook)]);
        assert!(chains.note(&rule(INET, "t", "c")).forwarding, "{hook:?}");
    }
}

#[test]
fn a_table_that_is_switched_off_or_on_counts_if_its_chains_do() {
    let mut chains = known(&[chain(INET, "t", "c", ("filter", 2, 0))]);
    assert!(
        chains.note(&Notice { family: INET, table: "t", subject: Subject::Table { gone: false } }).forwarding
    );
}

#[test]
fn our_own_table_concerns_only_us() {
    let mut chains = BaseChains::default();
    for notice in [chain(INET, TABLE, "c", ("filter", 2, 300)), rule(INET, TABLE, "c"), other(INET, TABLE)] {
        assert_eq!(chains.note(&notice), Touched { own_table: true, forwarding: false });
    }
    assert!(
        chains.note(&chain(IPV4, TABLE, "c", ("filter", 2, 0))).forwarding,
        "another family's is another table"
    );
}

#[test]
fn the_first_change_is_answered_at_once_and_the_next_ones_together() {
    let mut pace = Pace::new(1000);
    assert_eq!(pace.due(), None);
    pace.changed(5000);
    assert_eq!(pace.due(), Some(5000));
    pace.ran(5002);
    assert_eq!(pace.due(), None);
    pace.changed(5003);
    pace.changed(5900);
    assert_eq!(pace.due(), Some(6002));
    pace.ran(6003);
    pace.changed(9000);
    assert_eq!(pace.due(), Some(9000), "after a rest at once again");
}

#[test]
fn a_hundred_changes_a_second_are_answered_once_a_second() {
    let mut pace = Pace::new(1000);
    let mut answered = 0;
    for now in (0..10_000).step_by(10) {
        pace.changed(now);
        if pace.due().is_some_and(|due| due <= now) {
            pace.ran(now);
            answered += 1;
        }
    }
    assert_eq!(answered, 10);
}
