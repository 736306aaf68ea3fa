//! The difference between what should be and what is.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    chain::OwnChain,
    empty::{EVIDENCE, counting_from, refers, remove_most},
    expr::Expr,
    observed::{ChainHook, Observed, ObservedChain, ObservedFlowtable, ObservedSet, ObservedTable, Owner},
    plan::Op,
    rule::Rule,
    sets::{Key, OwnSet, size_for},
};

use crate::core::{
    model::{Counter, FLOWTABLE, IfIndex, IfName},
    ruleset::{
        plan::chunks,
        sets::Keys,
        wanted::{Desired, DesiredTable},
    },
};

/// What to do about a table of our name that we did not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignTable {
    /// Leave it alone.
    Refuse,
    /// Replace it (`--takeover`).
    TakeOver,
}

/// Result of comparing desired and observed state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Apply these operations; none means that all is right.
    Apply(Vec<Op>),
    /// A table of our name is another program's and stays as it is.
    Foreign,
}

/// Compares and decides.
pub fn diff(desired: &Desired, observed: &Observed, foreign: ForeignTable) -> Decision {
    let ops = match (desired, &observed.table) {
        (None, None) => Vec::new(),
        (None, Some(table)) if table.owner == Owner::Foreign && !table.is_rendering() => {
            return Decision::Foreign;
        }
        (None, Some(_)) => vec![Op::DeleteTable],
        (Some(want), None) => create(want),
        (Some(want), Some(table)) => match (&table.owner, foreign) {
            (Owner::Agent, _) => repair(want, table),
            (Owner::Foreign, ForeignTable::Refuse) if !table.is_rendering() => return Decision::Foreign,
            (Owner::Foreign, _) => {
                let mut ops = vec![Op::DeleteTable];
                ops.extend(create(want));
                ops
            }
        },
    };
    Decision::Apply(ops)
}

/// What [`diff`] says if only links changed: `before` are those of them that were devices of
/// the table, `changed` all of them. `None` if everything has to be compared.
pub fn diff_links(
    want: &DesiredTable,
    before: &BTreeMap<IfIndex, IfName>,
    changed: &BTreeSet<IfIndex>,
    observed: &ObservedTable,
) -> Option<Vec<Op>> {
    let flowtable = observed.flowtables.iter().find(|f| f.name == FLOWTABLE)?;
    let set = observed.set(OwnSet::Devices)?;
    let devices = flowtable.devices.as_ref()?;
    let want: BTreeMap<_, _> =
        changed.iter().filter_map(|index| want.devices.get_key_value(index)).map(owned).collect();
    let names = before.values().chain(want.values()).filter(|name| devices.contains(*name));
    let indices = changed.iter().filter(|index| set.elements.contains(index));
    let mut ops = lacking_devices(&want, &names.cloned().collect());
    ops.extend(lacking_indices(&want, &indices.copied().collect()));
    Some(ops)
}

fn owned((index, name): (&IfIndex, &IfName)) -> (IfIndex, IfName) {
    (*index, name.clone())
}

/// A plan for an empty place.
pub fn create(want: &DesiredTable) -> Vec<Op> {
    let mut ops = vec![Op::AddTable];
    ops.extend(repair(want, &ObservedTable::empty()));
    ops
}

/// A plan that makes our table right and leaves alone what other programs put into it.
fn repair(want: &DesiredTable, table: &ObservedTable) -> Vec<Op> {
    let flowtable = table.flowtables.iter().find(|f| f.name == FLOWTABLE);
    let right_flowtable = flowtable.filter(|f| flowtable_is_right(want, f));
    let own = table.sets.iter().filter_map(|set| OwnSet::named(&set.name));
    let (right_sets, stale_sets): (Vec<OwnSet>, Vec<OwnSet>) =
        own.partition(|set| want.sets.contains(set) && set_is_right(*set, want, table));
    let right_set = |set: OwnSet| table.set(set).filter(|_| right_sets.contains(&set));

    let keys = Keyed::compare(want, right_set);
    // Flows that mustn't be offloaded from now on may be in the flowtable, which lets go of all or none.
    let empties = right_flowtable.is_some_and(|flowtable| guards_more(want, table, flowtable, &keys));
    let keep_flowtable = right_flowtable.filter(|_| !empties);
    // What was seen goes with the flowtable.
    let flushed = |set: OwnSet| flowtable.is_some() && keep_flowtable.is_none() && EVIDENCE.contains(&set);
    let keep_set = |set: OwnSet| right_set(set).filter(|_| !flushed(set));

    // Rules, other programs' too, refer to sets, flowtable and chains: where one of those is made again, chains go first as a
    // whole. Not for sets with keys: the keys of one that is made again are new, and so are the rules.
    let refers_other = |set: &&OwnSet| want.sets.contains(set) && !set.has_keys();
    let is_hooked = |chain: &OwnChain| table.chain(*chain).is_some_and(|c| c.hook.is_some());
    let remade = stale_sets.iter().any(|set| refers_other(&set))
        || (flowtable.is_some() && keep_flowtable.is_none() && !(empties && only_we_refer(table)))
        || OwnChain::ALL.iter().filter(|chain| chain.hook().is_none()).any(is_hooked);
    let keep_chain = |chain: OwnChain| {
        table
            .chain(chain)
            .filter(|has| !remade && want.chains.contains_key(&chain) && chain_is_right(want, chain, has))
    };
    let goes = |exprs: &[Expr]| {
        let stale = |expr: &Expr| matches!(expr, Expr::Lookup { set, .. } if stale_sets.iter().any(|s| s.name() == *set));
        (empties && refers(exprs)) || exprs.iter().any(stale)
    };
    let rules: Vec<(OwnChain, Rules)> = OwnChain::ALL
        .into_iter()
        .map(|chain| {
            let want = want.chains.get(&chain).map_or(&[][..], Vec::as_slice);
            let counted = Counted { offloads: offloads_of(table, chain), untraced: table.untraced_of(chain) };
            (chain, Rules::compare(chain, want, keep_chain(chain), goes, counted))
        })
        .collect();

    let mut ops = Vec::new();
    // First those that go to others.
    for (chain, rules) in rules.iter().rev() {
        ops.extend_from_slice(&rules.stale);
        if table.chain(*chain).is_some() && keep_chain(*chain).is_none() {
            ops.push(Op::DeleteChain(*chain));
        }
    }
    if let Some(flowtable) = flowtable
        && keep_flowtable.is_none()
    {
        ops.extend(flowtable.devices.iter().flat_map(remove_most));
        ops.push(Op::DeleteFlowtable);
    }
    ops.extend(stale_sets.iter().copied().map(Op::DeleteSet));
    ops.extend(right_sets.iter().filter(|set| flushed(**set)).copied().map(Op::DeleteSet));

    if keep_flowtable.is_none() {
        ops.push(Op::AddFlowtable {
            priority: want.flowtable_priority,
            counter: want.counter,
            hw_offload: want.hw_offload,
        });
    }
    ops.extend(want.sets.iter().filter(|set| keep_set(**set).is_none()).map(|set| match set {
        set if set.has_keys() => Op::AddKeySet(*set, size_for(want.keys(*set).len())),
        set => Op::AddSet(*set),
    }));
    ops.extend(devices(&want.devices, keep_flowtable, keep_set(OwnSet::Devices)));
    ops.extend(indices(&want.devices, keep_set(OwnSet::Devices)));
    ops.extend(keys.gone);
    ops.extend(keys.new);
    for (chain, rules) in rules {
        if want.chains.contains_key(&chain) && keep_chain(chain).is_none() {
            ops.push(match chain.hook() {
                Some(_) => Op::AddBaseChain { chain, priority: priority(want, chain) },
                None => Op::AddChain(chain),
            });
        }
        ops.extend(rules.missing);
    }
    ops
}

/// Changes of the keys of sets.
struct Keyed {
    gone: Vec<Op>,
    new: Vec<Op>,
}

impl Keyed {
    fn compare<'t>(want: &DesiredTable, keep_set: impl Fn(OwnSet) -> Option<&'t ObservedSet>) -> Self {
        let mut keyed = Self { gone: Vec::new(), new: Vec::new() };
        for set in want.sets.iter().copied().filter(|set| set.has_keys()) {
            let has = keep_set(set).map_or(&[][..], |observed| &observed.keys);
            let wanted = want.keys(set);
            let (gone, new) = (missing_from(has, wanted), missing_from(wanted, has));
            keyed.gone.extend((!gone.is_empty()).then_some(Op::RemoveKeys(set, gone)));
            keyed.new.extend((!new.is_empty()).then_some(Op::AddKeys(set, new)));
        }
        keyed
    }
}

/// Those of `keys` that `others` lacks; both in order.
fn missing_from(keys: &[Key], others: &[Key]) -> Keys {
    let mut others = others.iter().peekable();
    let missing = |key: &&Key| {
        while others.next_if(|other| other < key).is_some() {}
        others.peek() != Some(key)
    };
    keys.iter().filter(missing).copied().collect()
}

/// A flow may be in the flowtable that mustn't be from now on.
fn guards_more(
    want: &DesiredTable,
    table: &ObservedTable,
    flowtable: &ObservedFlowtable,
    keys: &Keyed,
) -> bool {
    let guards = |set: &OwnSet| matches!(set, OwnSet::Exclude(_) | OwnSet::RuleInputs);
    let new_key = |op: &Op| matches!(op, Op::AddKeys(set, _) if guards(set));
    let new_rule = |chain: OwnChain, rule: &Rule| {
        let has = table.chain(chain).map_or(&[][..], |chain| &chain.rules);
        rule.is_guard() && !has.iter().any(|observed| observed.exprs == rule.exprs())
    };
    let device_leaves = |device: &IfName| flowtable.devices.as_ref().is_some_and(|d| d.contains(device));
    // Flows were offloaded before filters that this chain is behind from now on.
    let moves_back = |chain: OwnChain| {
        let hook = table.chain(chain).and_then(|has| has.hook.as_ref());
        hook.is_some_and(|hook| hook.priority < priority(want, chain))
    };
    keys.new.iter().any(new_key)
        || want.chains.iter().any(|(chain, rules)| rules.iter().any(|rule| new_rule(*chain, rule)))
        || want.excluded_devices.iter().any(device_leaves)
        || want.chains.keys().filter(|chain| chain.hook().is_some()).any(|chain| moves_back(*chain))
}

/// No other program's rule refers to what is made again with the flowtable.
fn only_we_refer(table: &ObservedTable) -> bool {
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    !rules.filter(|rule| rule.owner == Owner::Foreign).any(|rule| refers(&rule.exprs))
}

fn set_is_right(set: OwnSet, want: &DesiredTable, table: &ObservedTable) -> bool {
    table.set(set).is_some_and(|observed| set.fits(&observed.shape, want.keys(set).len()))
}

fn flowtable_is_right(want: &DesiredTable, has: &ObservedFlowtable) -> bool {
    // Only the agent, or a program that means to, makes one that can't be read.
    has.devices.is_none()
        || (has.priority, has.counter, has.hw_offload)
            == (want.flowtable_priority, want.counter, want.hw_offload)
}

fn priority(want: &DesiredTable, chain: OwnChain) -> i32 {
    match chain {
        OwnChain::Postrouting => want.postrouting_priority,
        _ => want.chain_priority,
    }
}

fn chain_is_right(want: &DesiredTable, chain: OwnChain, has: &ObservedChain) -> bool {
    let hook = chain.hook().map(|hook| ChainHook {
        kind: "filter".to_owned(),
        hook,
        priority: priority(want, chain),
        accept: true,
    });
    has.hook == hook
}

/// Offloads that a chain's rules have counted; those of chains that there aren't any more are the original direction's.
fn offloads_of(table: &ObservedTable, chain: OwnChain) -> Option<Counter> {
    match chain {
        OwnChain::Original => table.offloads_of(|name| name != OwnChain::Reply.name()),
        chain => table.offloads_of(|name| name == chain.name()),
    }
}

/// What the rules of a chain have counted.
struct Counted {
    offloads: Option<Counter>,
    untraced: Option<Counter>,
}

/// Changes of the rules of one chain.
struct Rules {
    /// Deletions of the agent's rules that shouldn't be there.
    stale: Vec<Op>,
    /// Additions of those that should be but aren't.
    missing: Vec<Op>,
}

impl Rules {
    /// Our rules in another order are as good as wrong: all are made again. Rules without our marker don't count.
    /// They are made again, too, where one refers to something that `goes`. The first that offloads and the first that counts
    /// missing traces go on from what was `counted`.
    fn compare(
        chain: OwnChain,
        want: &[Rule],
        has: Option<&ObservedChain>,
        goes: impl Fn(&[Expr]) -> bool,
        mut counted: Counted,
    ) -> Self {
        let own: Vec<_> =
            has.map(|c| c.rules.iter().filter(|r| r.owner == Owner::Agent).collect()).unwrap_or_default();
        let want: Vec<Vec<Expr>> = want.iter().map(Rule::exprs).collect();
        if !want.iter().any(|exprs| goes(exprs)) && own.iter().map(|r| &r.exprs).eq(&want) {
            return Self { stale: Vec::new(), missing: Vec::new() };
        }
        Self {
            stale: own.iter().map(|r| Op::DeleteRule { chain, handle: r.handle }).collect(),
            missing: want
                .into_iter()
                .map(|exprs| {
                    let from = match exprs[..] {
                        [Expr::Counter] => counted.untraced.take(),
                        _ if exprs.contains(&Expr::Counter) => counted.offloads.take(),
                        _ => None,
                    };
                    Op::AddRule { chain, exprs: counting_from(from, exprs) }
                })
                .collect(),
        }
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
    lacking_devices(want, &has)
}

fn lacking_devices(want: &BTreeMap<IfIndex, IfName>, has: &BTreeSet<IfName>) -> Vec<Op> {
    let want: BTreeSet<IfName> = want.values().cloned().collect();
    let gone = chunks(has.difference(&want)).map(Op::RemoveDevices);
    let new = chunks(want.difference(has)).map(Op::AddDevices);
    gone.chain(new).collect()
}

fn indices(want: &BTreeMap<IfIndex, IfName>, set: Option<&ObservedSet>) -> Vec<Op> {
    lacking_indices(want, set.map_or(&BTreeSet::new(), |set| &set.elements))
}

fn lacking_indices(want: &BTreeMap<IfIndex, IfName>, has: &BTreeSet<IfIndex>) -> Vec<Op> {
    let want: BTreeSet<IfIndex> = want.keys().copied().collect();
    let gone = chunks(has.difference(&want)).map(Op::RemoveIndices);
    let new = chunks(want.difference(has)).map(Op::AddIndices);
    gone.chain(new).collect()
}

/// What other programs put into our table, in words, in no particular order. It stays as long as the table.
pub fn foreign_objects(table: &ObservedTable) -> Vec<String> {
    let is_ours = |chain: &&ObservedChain| OwnChain::named(&chain.name).is_some();
    let (own, foreign): (Vec<_>, Vec<_>) = table.chains.iter().partition(is_ours);
    let flowtables = table.flowtables.iter().map(|f| &f.name).filter(|name| *name != FLOWTABLE);
    let sets = table.sets.iter().map(|s| &s.name).filter(|name| OwnSet::named(name).is_none());
    let rules = own.into_iter().flat_map(foreign_rules);
    flowtables
        .map(|name| format!("flowtable {name}"))
        .chain(foreign.into_iter().map(|chain| format!("chain {}", chain.name)))
        .chain(sets.map(|name| format!("set {name}")))
        .chain(rules)
        .collect()
}

fn foreign_rules(chain: &ObservedChain) -> impl Iterator<Item = String> {
    let foreign = chain.rules.iter().filter(|r| r.owner == Owner::Foreign);
    foreign.map(|r| format!("rule with handle {} in chain {}", r.handle, chain.name))
}

/// Other programs' rules that go with our chains by these operations: a chain that moves is made again.
pub fn rules_that_go(table: &ObservedTable, ops: &[Op]) -> Vec<String> {
    let chains = ops.iter().filter_map(|op| match op {
        Op::DeleteChain(chain) => table.chain(*chain),
        _ => None,
    });
    chains.flat_map(foreign_rules).collect()
}

/// `observed` after `ops` were committed, where that can be told: for operations on devices and indices.
/// `None` where the kernel has to be asked (new rules have handles that only it knows).
pub fn after(observed: Observed, ops: &[Op]) -> Option<ObservedTable> {
    let mut table = observed.table?;
    let flowtable = table.flowtables.iter_mut().find(|f| f.name == FLOWTABLE)?;
    let set = table.sets.iter_mut().find(|s| s.name == OwnSet::Devices.name())?;
    let devices = flowtable.devices.as_mut()?;
    for op in ops {
        match op {
            Op::AddDevices(names) => devices.extend(names.iter().cloned()),
            Op::RemoveDevices(names) => {
                for name in names {
                    devices.remove(name);
                }
            }
            Op::AddIndices(new) => set.elements.extend(new),
            Op::RemoveIndices(gone) => {
                for index in gone {
                    set.elements.remove(index);
                }
            }
            // The contents of those sets aren't compared.
            Op::AddAssisted { .. } | Op::RemoveAssisted(_) | Op::AddRevoked { .. } | Op::AddTraces(_) => {}
            _ => return None,
        }
    }
    Some(table)
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
