//! Other programs' rules that offloaded packets bypass: what each asks, and how the agent handles it.

use super::{Finding, facts::NodeFacts};
use crate::core::policy::concern::{Class, Concern};

const CHECK: &str = "rules";
/// More than these aren't told one by one.
const SHOWN: usize = 20;

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let rules = &facts.policy.surroundings.rules;
    let decisive = || rules.iter().filter(|rule| rule.class != Class::NotDecisive);
    let mut findings: Vec<Finding> = decisive().take(SHOWN).map(finding).collect();
    let (listed, rest) = (findings.len(), rules.len() - findings.len());
    if listed == 0 {
        let found = match rest {
            0 => "none wants every packet or changes without an event".to_owned(),
            more => format!("{more} that only log or mark packets; `fastpath-agent status` lists them"),
        };
        findings.push(Finding::green(CHECK, found));
    } else if decisive().count() > SHOWN {
        findings.push(Finding::green(CHECK, format!("{rest} more; `fastpath-agent status -o json` has all")));
    }
    findings.extend(shaping(facts));
    findings
}

/// Rules that mark packets for traffic control: offloaded packets don't pass them, and are shaped as unmarked ones.
fn shaping(facts: &NodeFacts) -> Vec<Finding> {
    let filters = match &facts.mark_filters {
        Ok(filters) if filters.is_empty() => return Vec::new(),
        Ok(filters) => filters.join(", "),
        Err(why) => {
            let why = format!("filters of traffic control can't be read: {why}");
            return vec![Finding::amber(CHECK, why, "run doctor as root")];
        }
    };
    let marks = |rule: &&Concern| {
        rule.class == Class::NotDecisive
            && matches!(&*rule.cause.detail, "meta mark" | "MARK" | "CONNMARK" | "meta")
    };
    let finding = |rule: &Concern| {
        let found = format!(
            "marks packets, and traffic control uses marks ({filters}): offloaded packets carry none"
        );
        let remedy =
            "mark in a netdev chain at ingress, which offloaded packets pass, or exclude those flows";
        Finding::amber(CHECK, found, remedy).about(rule.to_string())
    };
    facts.policy.surroundings.rules.iter().filter(marks).map(finding).collect()
}

fn finding(rule: &Concern) -> Finding {
    let (cause, conditions) = (&rule.cause, rule.conditions());
    let finding = if rule.leaves_everything_out() {
        Finding::amber(
            CHECK,
            format!(
                "{cause}: wants every packet and has no condition that the agent could copy, so no flow of its family is offloaded"
            ),
            "give the rule conditions (addresses, interfaces, ports, protocol) before its verdict, or name it in --ignore-rule",
        )
    } else {
        let found = match rule.class {
            _ if rule.ignored => format!("{cause}: ignored by choice (--ignore-rule)"),
            Class::EveryPacket => {
                format!("{cause}: wants every packet, so flows of these aren't offloaded: {conditions}")
            }
            _ if rule.when.anytime => format!(
                "{cause}: changes without an event, so offloaded flows are revalidated at intervals \
                 (--enforce-within)"
            ),
            _ => format!("{cause}: changes by itself, so offloaded flows are revalidated {}", rule.when),
        };
        Finding::green(CHECK, found)
    };
    finding.about(rule.to_string())
}
