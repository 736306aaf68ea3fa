//! Checks of what others have on the node that decides which flows may be offloaded, and of what offloading would change
//! for them.

use super::{
    Finding,
    facts::{IngressChain, NodeFacts},
    some,
};
use crate::core::{
    model::{FLOWTABLE, TABLE},
    policy::traits::TIMEOUT,
};

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = vec![route_rules(facts)];
    findings.extend(postrouting(facts));
    findings.extend(ingress(facts));
    findings.push(ipsec(facts));
    findings.push(timeouts(facts));
    findings.push(saved(facts));
    findings
}

/// Policy rules that keep flows from being offloaded.
fn route_rules(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "route-rules";
    let rules = &facts.policy.surroundings.unguessed;
    if rules.is_empty() {
        return Finding::green(CHECK, "none that the kernel leaves out when it offloads a flow");
    }
    Finding::green(
        CHECK,
        format!(
            "flows whose route one of these may decide are offloaded by the packets of the other direction, or not at all: {}",
            some(rules)
        ),
    )
}

/// Policies without an interface, which the flowtable would pass by.
fn ipsec(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "ipsec-policies";
    match &facts.ipsec {
        Err(why) => Finding::amber(CHECK, format!("can't be read: {why}"), "run doctor with CAP_NET_ADMIN"),
        Ok(policies) if policies.is_empty() => Finding::green(CHECK, "none for forwarded packets"),
        Ok(policies) => Finding::green(
            CHECK,
            format!("flows that one of these applies to stay on the normal path: {}", some(policies)),
        ),
    }
}

fn postrouting(facts: &NodeFacts) -> Option<Finding> {
    let priority = facts.policy.surroundings.denying_postrouting?;
    Some(Finding::green(
        "postrouting",
        format!(
            "other programs may deny packets there (up to priority {priority}): a flow is offloaded once packets of both directions have left"
        ),
    ))
}

/// Ingress chains that offloaded packets don't pass, since the flowtable's hook comes first.
/// That they can't be read has a finding of its own.
fn ingress(facts: &NodeFacts) -> Option<Finding> {
    const CHECK: &str = "ingress-chains";
    let others = facts.others.as_ref().ok()?;
    let table = facts.observed.as_ref().ok().and_then(|observed| observed.table.as_ref());
    let flowtable =
        table.and_then(|table| table.flowtables.iter().find(|flowtable| flowtable.name == FLOWTABLE));
    let own = flowtable.map_or(facts.policy.flowtable_priority, |flowtable| flowtable.priority);
    let places = |behind: bool| -> Vec<&str> {
        let wanted = others.ingress.iter().filter(|chain| behind == (chain.priority >= own));
        wanted.map(|chain| chain.place.as_str()).collect()
    };
    let passed = places(true);
    Some(match (others.ingress.as_slice(), passed.as_slice()) {
        ([], _) => Finding::green(CHECK, "none"),
        ([..], []) => Finding::green(
            CHECK,
            format!("before the flowtable, so offloaded packets pass them too: {}", some(places(false))),
        ),
        _ => Finding::amber(
            CHECK,
            format!(
                "offloaded packets bypass these, whose priority isn't below the flowtable's ({own}): {}",
                some(passed)
            ),
            "give them a lower priority, or start the agent without --flowtable-priority",
        ),
    })
}

/// Objects that give flows a timeout of their own, which is lost when such a flow leaves the flowtable.
fn timeouts(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "flow-timeouts";
    match &facts.timeouts {
        Err(why) => Finding::amber(CHECK, format!("can't be read: {why}"), "run doctor with CAP_NET_ADMIN"),
        Ok(names) if names.is_empty() => Finding::green(CHECK, "no flows with timeouts of their own"),
        Ok(names) if gives_timeouts(facts) => Finding::green(
            CHECK,
            format!(
                "flows that a rule of nftables gives one of these timeouts are left out: {}",
                some(names)
            ),
        ),
        Ok(names) => Finding::amber(
            CHECK,
            format!(
                "no rule of nftables or iptables-nft is known to give these timeouts; flows that get one otherwise have the default one once they leave the flowtable: {}",
                some(names)
            ),
            "leave those flows out with --exclude, by the addresses or ports of the rules that give them the timeout",
        ),
    }
}

fn gives_timeouts(facts: &NodeFacts) -> bool {
    facts.policy.surroundings.rules.iter().any(|rule| rule.cause.word == TIMEOUT && !rule.ignored)
}

/// Our table in a file that is loaded at boot: as a file it names interfaces, and one that is missing then makes all of the
/// file fail.
fn saved(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "saved-ruleset";
    match facts.saved.as_slice() {
        [] => Finding::green(CHECK, "the files that nft loads at boot don't have the agent's table"),
        files => Finding::amber(
            CHECK,
            format!(
                "table inet {TABLE} is in {}: if one of its interfaces is missing at boot, nothing of that file is loaded",
                some(files)
            ),
            format!(
                "take the table out of the file; save a ruleset without it: `nft delete table inet {TABLE}; nft list ruleset > FILE` (a running agent makes it again at once)"
            ),
        ),
    }
}

impl IngressChain {
    /// From family, table and chain, and the device that it is for.
    pub fn new(family: &str, table: &str, chain: &str, devices: &[String], priority: i32) -> Self {
        let on = if devices.is_empty() { String::new() } else { format!(" on {}", devices.join(", ")) };
        Self { place: format!("{family} {table} {chain}{on} (priority {priority})"), priority }
    }
}
