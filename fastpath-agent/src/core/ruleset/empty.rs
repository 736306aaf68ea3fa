//! Empties the flowtable: all flows in it go back to the normal path, and those that the filters still accept come back
//! with their next packet. Connections with their NAT mappings aren't touched.
//! nftables has no such operation: the flowtable is deleted and made again in one transaction, with the sets of evidence
//! (what was accepted before says nothing about now) and the rules that refer to them.

use std::collections::BTreeSet;

use super::{
    chain::OwnChain,
    expr::{Direction, Expr},
    observed::{ObservedChain, ObservedRule, ObservedTable, Owner},
    plan::Op,
    rule::Rule,
    sets::OwnSet,
};

use crate::core::{
    model::{Counter, FLOWTABLE, IfName, MAX_DEVICES_PER_MESSAGE, TABLE},
    ruleset::plan::chunks,
};

/// Why a flowtable can't be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Its devices have to be known to make it again.
    #[error(
        "its more than about 1,600 interfaces don't fit the kernel's answer. Run `nft delete table inet {TABLE}`: a running agent makes \
         the table again at once"
    )]
    Unreadable,
    /// No other program's rule is deleted for it.
    #[error(
        "another program's rule in table inet {TABLE} refers to {FLOWTABLE} or its evidence: delete that rule"
    )]
    InUse,
}

/// Flows that our rules have offered to the flowtable so far; `None` where one of them doesn't count. The flowtable is
/// empty for certain if this is as it was when it was emptied.
pub fn offers(table: &ObservedTable) -> Option<u64> {
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.filter(|rule| offers_flows(&rule.exprs)).map(|rule| Some(rule.counter?.packets)).sum()
}

/// The operations that empty the flowtable of our table; none where there is no flowtable.
///
/// They leave everything as it was observed: flags, priority, devices, and our rules with the values of their counters.
pub fn empty(table: &ObservedTable) -> Result<Vec<Op>, Obstacle> {
    without_flows(table, None)
}

/// The operations that empty it and keep the connections with these conntrack ids from being offloaded again, until they
/// have had no packet for so long.
pub fn revoke(table: &ObservedTable, ids: Vec<u32>, timeout_ms: u64) -> Result<Vec<Op>, Obstacle> {
    let mut ops = Vec::new();
    let known = table.set(OwnSet::Revoked).is_some();
    if !known {
        ops.push(Op::AddSet(OwnSet::Revoked));
    }
    ops.push(Op::AddRevoked { ids, timeout_ms });
    let rest = without_flows(table, (!known).then_some(&Rule::Revoked))?;
    // Without a flowtable nothing is offloaded, or by another program.
    Ok(if rest.is_empty() { rest } else { ops.into_iter().chain(rest).collect() })
}

/// `first` becomes the first rule of the chain that offloads.
fn without_flows(table: &ObservedTable, first: Option<&Rule>) -> Result<Vec<Op>, Obstacle> {
    let Some(flowtable) = table.flowtables.iter().find(|f| f.name == FLOWTABLE) else {
        return Ok(Vec::new());
    };
    let devices = flowtable.devices.as_ref().ok_or(Obstacle::Unreadable)?;
    let (delete_rules, add_rules) = rules(table, first)?;

    let mut ops = delete_rules;
    ops.extend(remove_most(devices));
    ops.push(Op::DeleteFlowtable);
    let evidence = || EVIDENCE.into_iter().filter(|set| table.set(*set).is_some());
    ops.extend(evidence().map(Op::DeleteSet));
    ops.push(Op::AddFlowtable {
        priority: flowtable.priority,
        counter: flowtable.counter,
        hw_offload: flowtable.hw_offload,
    });
    ops.extend(evidence().map(Op::AddSet));
    ops.extend(chunks(devices.iter()).map(Op::AddDevices));
    ops.extend(add_rules);
    Ok(ops)
}

/// The kernel names all devices when it announces that a flowtable is deleted. Where they don't fit one message every
/// listener is told that it has lost some, so no more are left in it than fit.
pub(super) fn remove_most(devices: &BTreeSet<IfName>) -> impl Iterator<Item = Op> {
    chunks(devices.iter().skip(MAX_DEVICES_PER_MESSAGE)).map(Op::RemoveDevices)
}

/// Deletes our rules, from the first that refers to what is made again, and appends them again, so that they stay in
/// order; all of the chain if another rule has to come before them.
fn rules(table: &ObservedTable, first: Option<&Rule>) -> Result<(Vec<Op>, Vec<Op>), Obstacle> {
    let (mut delete, mut add) = (Vec::new(), Vec::new());
    for ObservedChain { name, rules, .. } in &table.chains {
        let own = OwnChain::named(name);
        let in_the_way = |rule: &&ObservedRule| own.is_none() || rule.owner == Owner::Foreign;
        if rules.iter().filter(in_the_way).any(|rule| refers(&rule.exprs)) {
            return Err(Obstacle::InUse);
        }
        let Some(chain) = own else { continue };
        let first = first.filter(|_| chain == OwnChain::Offload);
        add.extend(first.map(|rule| Op::AddRule { chain, exprs: rule.exprs() }));
        let behind = rules.iter().skip_while(|rule| first.is_none() && !refers(&rule.exprs));
        for rule in behind.filter(|rule| rule.owner == Owner::Agent) {
            delete.push(Op::DeleteRule { chain, handle: rule.handle });
            add.push(Op::AddRule { chain, exprs: counting_from(rule.counter, rule.exprs.clone()) });
        }
    }
    Ok((delete, add))
}

/// What was seen of either direction.
pub(super) const EVIDENCE: [OwnSet; 2] = [OwnSet::Seen(Direction::Original), OwnSet::Seen(Direction::Reply)];

fn offers_flows(exprs: &[Expr]) -> bool {
    exprs.iter().any(|e| matches!(e, Expr::FlowAdd { flowtable } if flowtable == FLOWTABLE))
}

/// To something that is made again when the flowtable is emptied.
pub(super) fn refers(exprs: &[Expr]) -> bool {
    let is_evidence = |name: &str| EVIDENCE.iter().any(|set| set.name() == name);
    let refers = |expr: &Expr| match expr {
        Expr::Lookup { set, .. } | Expr::Update { set, .. } | Expr::UpdateCounter { set, .. } => {
            is_evidence(set)
        }
        _ => false,
    };
    offers_flows(exprs) || exprs.iter().any(refers)
}

/// The instructions of a rule with its counter's value (a packet that it counts in the meantime is lost to it).
pub(super) fn counting_from(counter: Option<Counter>, exprs: Vec<Expr>) -> Vec<Expr> {
    let Some(value) = counter else { return exprs };
    let on = |expr| if expr == Expr::Counter { Expr::CounterFrom(value) } else { expr };
    exprs.into_iter().map(on).collect()
}

#[cfg(test)]
#[path = "empty_tests.rs"]
mod tests;
