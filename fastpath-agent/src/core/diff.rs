//! The difference between what should be and what is.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    desired::{Desired, DesiredTable},
    expr::Expr,
    model::{CHAIN, DEVICE_SET, FLOWTABLE, IfIndex, IfName, MAX_DEVICES_PER_MESSAGE},
    observed::{ChainHook, Observed, ObservedChain, ObservedFlowtable, ObservedSet, ObservedTable, Owner},
    plan::Op,
    rule::Rule,
};

/// Key type of the set: iface_index, as nft numbers its types (src/datatype.c, `TYPE_IFINDEX`).
pub const KEY_TYPE_IFINDEX: u32 = 20;
/// Number of the forward hook (`NF_INET_FORWARD`).
const HOOK_FORWARD: u32 = 2;

/// What to do about a table of our name that we did not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignTable {
    /// Leave it alone.
    Refuse,
    /// Replace it (`--takeover`).
    TakeOver,
}

/// What a comparison of desired and observed state comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Apply these operations; none means that all is right.
    Apply(Vec<Op>),
    /// A table of our name is somebody else's and stays as it is.
    Foreign,
}

/// Compares and decides.
pub fn diff(desired: &Desired, observed: &Observed, foreign: ForeignTable) -> Decision {
    let ops = match (desired, &observed.table) {
        (None, None) => Vec::new(),
        (None, Some(table)) if table.owner == Owner::Foreign => return Decision::Foreign,
        (None, Some(_)) => vec![Op::DeleteTable],
        (Some(want), None) => create(want),
        (Some(want), Some(table)) => match (&table.owner, foreign) {
            (Owner::Ours, _) => repair(want, table),
            (Owner::Foreign, ForeignTable::Refuse) => return Decision::Foreign,
            (Owner::Foreign, ForeignTable::TakeOver) => {
                let mut ops = vec![Op::DeleteTable];
                ops.extend(create(want));
                ops
            }
        },
    };
    Decision::Apply(ops)
}

/// A plan for an empty place.
pub fn create(want: &DesiredTable) -> Vec<Op> {
    let mut ops = vec![Op::AddTable];
    ops.extend(repair(
        want,
        &ObservedTable { owner: Owner::Ours, flowtables: Vec::new(), chains: Vec::new(), sets: Vec::new() },
    ));
    ops
}

/// A plan that makes our table right and leaves alone what others put into it.
fn repair(want: &DesiredTable, table: &ObservedTable) -> Vec<Op> {
    let flowtable = table.flowtables.iter().find(|f| f.name == FLOWTABLE);
    let set = table.sets.iter().find(|s| s.name == DEVICE_SET);
    let chain = table.chains.iter().find(|c| c.name == CHAIN);

    let keep_flowtable = flowtable.filter(|f| flowtable_is_right(want, f));
    let keep_set = set.filter(|s| s.key_type == KEY_TYPE_IFINDEX);
    // Rules refer to the set and to the flowtable: where one of those is made anew the chain goes first.
    let referents_stay =
        flowtable.is_some() == keep_flowtable.is_some() && set.is_some() == keep_set.is_some();
    let keep_chain = chain.filter(|c| referents_stay && chain_is_right(want, c));

    let mut ops = Vec::new();
    if chain.is_some() && keep_chain.is_none() {
        ops.push(Op::DeleteChain);
    }
    let (stale_rules, missing_rules) = rules(want, keep_chain);
    ops.extend(stale_rules.into_iter().map(|handle| Op::DeleteRule { handle }));

    if flowtable.is_some() && keep_flowtable.is_none() {
        ops.push(Op::DeleteFlowtable);
    }
    if set.is_some() && keep_set.is_none() {
        ops.push(Op::DeleteDeviceSet);
    }
    if keep_flowtable.is_none() {
        ops.push(Op::AddFlowtable {
            priority: want.flowtable_priority,
            counter: want.counter,
            hw_offload: want.hw_offload,
        });
    }
    if keep_set.is_none() {
        ops.push(Op::AddDeviceSet);
    }
    ops.extend(devices(&want.devices, keep_flowtable, keep_set));
    ops.extend(indices(&want.devices, keep_set));
    if keep_chain.is_none() {
        ops.push(Op::AddChain { priority: want.chain_priority });
    }
    ops.extend(missing_rules.into_iter().map(|exprs| Op::AddRule { exprs }));
    ops
}

fn flowtable_is_right(want: &DesiredTable, has: &ObservedFlowtable) -> bool {
    // One that can't be read is the work of our own hands, or of somebody who knows what he does.
    has.devices.is_none()
        || (has.priority, has.counter, has.hw_offload)
            == (want.flowtable_priority, want.counter, want.hw_offload)
}

fn chain_is_right(want: &DesiredTable, has: &ObservedChain) -> bool {
    has.hook
        == Some(ChainHook {
            kind: "filter".to_owned(),
            hook: HOOK_FORWARD,
            priority: want.chain_priority,
            accept: true,
        })
}

/// Handles of our rules that shouldn't be there, and the rules that should be but aren't. Our rules in another order
/// are as good as wrong: all are made anew. Rules without our marker don't count.
fn rules(want: &DesiredTable, chain: Option<&ObservedChain>) -> (Vec<u64>, Vec<Vec<Expr>>) {
    let ours: Vec<_> =
        chain.map(|c| c.rules.iter().filter(|r| r.owner == Owner::Ours).collect()).unwrap_or_default();
    let want: Vec<Vec<Expr>> = want.rules.iter().map(Rule::exprs).collect();
    if ours.iter().map(|r| &r.exprs).eq(&want) {
        (Vec::new(), Vec::new())
    } else {
        (ours.iter().map(|r| r.handle).collect(), want)
    }
}

fn devices(
    want: &BTreeMap<IfIndex, IfName>,
    flowtable: Option<&ObservedFlowtable>,
    set: Option<&ObservedSet>,
) -> Vec<Op> {
    let has = match flowtable {
        None => BTreeSet::new(),
        // Too long to be read: the set, which changes with it in the same transactions, speaks for it. What the set
        // lacks is added, whether it is there already or not; what is there too much no rule refers to.
        Some(ObservedFlowtable { devices: None, .. }) => {
            let in_set = |index: &IfIndex| set.is_some_and(|set| set.elements.contains(index));
            want.iter().filter(|(index, _)| in_set(index)).map(|(_, name)| name.clone()).collect()
        }
        Some(ObservedFlowtable { devices: Some(devices), .. }) => devices.clone(),
    };
    let want: BTreeSet<IfName> = want.values().cloned().collect();
    let gone = chunks(has.difference(&want)).map(Op::RemoveDevices);
    let new = chunks(want.difference(&has)).map(Op::AddDevices);
    gone.chain(new).collect()
}

fn indices(want: &BTreeMap<IfIndex, IfName>, set: Option<&ObservedSet>) -> Vec<Op> {
    let want: BTreeSet<IfIndex> = want.keys().copied().collect();
    let has = set.map(|s| s.elements.clone()).unwrap_or_default();
    let gone = chunks(has.difference(&want)).map(Op::RemoveIndices);
    let new = chunks(want.difference(&has)).map(Op::AddIndices);
    gone.chain(new).collect()
}

/// Splits into what one netlink message may carry.
pub(super) fn chunks<'a, T: Clone + 'a>(items: impl Iterator<Item = &'a T>) -> impl Iterator<Item = Vec<T>> {
    let items: Vec<T> = items.cloned().collect();
    let chunks: Vec<Vec<T>> = items.chunks(MAX_DEVICES_PER_MESSAGE).map(<[T]>::to_vec).collect();
    chunks.into_iter()
}

/// What others put into our table, in words, in no particular order. It stays while the table stands.
pub fn foreign_objects(table: &ObservedTable) -> Vec<String> {
    let named = |kind: &str, name: &str, ours: &str| (name != ours).then(|| format!("{kind} {name}"));
    let rules = table
        .chains
        .iter()
        .filter(|c| c.name == CHAIN)
        .flat_map(|c| c.rules.iter().filter(|r| r.owner == Owner::Foreign))
        .map(|r| format!("rule with handle {} in chain {CHAIN}", r.handle));
    table
        .flowtables
        .iter()
        .filter_map(|f| named("flowtable", &f.name, FLOWTABLE))
        .chain(table.chains.iter().filter_map(|c| named("chain", &c.name, CHAIN)))
        .chain(table.sets.iter().filter_map(|s| named("set", &s.name, DEVICE_SET)))
        .chain(rules)
        .collect()
}

/// `observed` after `ops` were committed, where that can be told: for operations on devices and indices.
/// `None` where the kernel has to be asked (new rules have handles that only it knows).
pub fn after(observed: &Observed, ops: &[Op]) -> Option<ObservedTable> {
    let mut table = observed.table.clone()?;
    let flowtable = table.flowtables.iter_mut().find(|f| f.name == FLOWTABLE)?;
    let set = table.sets.iter_mut().find(|s| s.name == DEVICE_SET)?;
    let devices = flowtable.devices.as_mut()?;
    for op in ops {
        match op {
            Op::AddDevices(names) => devices.extend(names.iter().cloned()),
            Op::RemoveDevices(names) => devices.retain(|name| !names.contains(name)),
            Op::AddIndices(new) => set.elements.extend(new),
            Op::RemoveIndices(gone) => set.elements.retain(|index| !gone.contains(index)),
            _ => return None,
        }
    }
    Some(table)
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
