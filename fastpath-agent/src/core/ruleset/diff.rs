//! The difference between what should be and what is.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    desired::{Desired, DesiredTable},
    empty::{counting_from, refers, remove_most},
    exclude::Keys,
    expr::Expr,
    observed::{
        ChainHook, Counter, Observed, ObservedChain, ObservedFlowtable, ObservedSet, ObservedTable, Owner,
    },
    plan::Op,
    rule::Rule,
    sets::{ExcludeSet, Key, OwnSet},
};
use crate::core::model::{CHAIN, FLOWTABLE, IfIndex, IfName, MAX_DEVICES_PER_MESSAGE, OFFLOAD_CHAIN};

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

/// What [`diff`] says if nothing is to be done but about links that changed: `before` are those of them that were devices of
/// the table, `changed` all of them. `None` if it takes a look at everything.
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

/// A plan that makes our table right and leaves alone what others put into it.
fn repair(want: &DesiredTable, table: &ObservedTable) -> Vec<Op> {
    let flowtable = table.flowtables.iter().find(|f| f.name == FLOWTABLE);
    let keep_flowtable = flowtable.filter(|f| flowtable_is_right(want, f));
    let ours = table.sets.iter().filter_map(|set| OwnSet::named(&set.name));
    let (keep_sets, stale_sets): (Vec<OwnSet>, Vec<OwnSet>) =
        ours.partition(|set| want.sets.contains(set) && set_is_right(*set, want, table));
    let keep_set = |set: OwnSet| table.set(set).filter(|_| keep_sets.contains(&set));

    let exclusions = Exclusions::compare(want, keep_set);
    // Flows that are excluded from now on may be in the flowtable, which lets go of all or none.
    let empties = keep_flowtable.is_some_and(|flowtable| excludes_more(want, table, flowtable, &exclusions));
    let keep_flowtable = keep_flowtable.filter(|_| !empties);

    // Rules refer to sets and flowtable, the base chain's to the other chain. Where one of those is made anew, chains
    // go first as a whole, with what others put into them: that may refer to it too.
    // Sets of exclusions are apart: all keys of one that is made anew are new, and so are then our rules.
    let refers_other = |set: &&OwnSet| want.sets.contains(set) && !matches!(set, OwnSet::Exclude(_));
    let anew = stale_sets.iter().any(|set| refers_other(&set))
        || (flowtable.is_some() && keep_flowtable.is_none() && !(empties && only_we_offload(table)));
    let [base, offload] = [CHAIN, OFFLOAD_CHAIN].map(|name| table.chain(name));
    let keep_offload = offload.filter(|c| !anew && c.hook.is_none());
    let keep_base =
        base.filter(|c| !anew && base_chain_is_right(want, c) && offload.is_some() == keep_offload.is_some());

    let mut ops = Vec::new();
    if base.is_some() && keep_base.is_none() {
        ops.push(Op::DeleteChain { chain: CHAIN });
    }
    let base_rules = Rules::compare(CHAIN, &want.base_rules, keep_base, false, None);
    let offload_rules =
        Rules::compare(OFFLOAD_CHAIN, &want.offload_rules, keep_offload, empties, table.offloads());
    ops.extend(base_rules.stale);
    if offload.is_some() && keep_offload.is_none() {
        ops.push(Op::DeleteChain { chain: OFFLOAD_CHAIN });
    }
    ops.extend(offload_rules.stale);
    if let Some(flowtable) = flowtable
        && keep_flowtable.is_none()
    {
        ops.extend(flowtable.devices.iter().flat_map(remove_most));
        ops.push(Op::DeleteFlowtable);
    }
    ops.extend(stale_sets.into_iter().map(Op::DeleteSet));

    if keep_flowtable.is_none() {
        ops.push(Op::AddFlowtable {
            priority: want.flowtable_priority,
            counter: want.counter,
            hw_offload: want.hw_offload,
        });
    }
    ops.extend(want.sets.iter().filter(|set| keep_set(**set).is_none()).map(|set| match set {
        OwnSet::Exclude(set) => {
            Op::AddExcludeSet(*set, ExcludeSet::size_for(want.exclusions.keys(*set).len()))
        }
        set => Op::AddSet(*set),
    }));
    ops.extend(devices(&want.devices, keep_flowtable, keep_set(OwnSet::Devices)));
    ops.extend(indices(&want.devices, keep_set(OwnSet::Devices)));
    ops.extend(exclusions.gone);
    ops.extend(exclusions.new);
    if keep_offload.is_none() {
        ops.push(Op::AddOffloadChain);
    }
    ops.extend(offload_rules.missing);
    if keep_base.is_none() {
        ops.push(Op::AddBaseChain { priority: want.chain_priority });
    }
    ops.extend(base_rules.missing);
    ops
}

/// What is to be done about the keys of exclusions.
struct Exclusions {
    gone: Vec<Op>,
    new: Vec<Op>,
}

impl Exclusions {
    fn compare<'t>(want: &DesiredTable, keep_set: impl Fn(OwnSet) -> Option<&'t ObservedSet>) -> Self {
        let mut exclusions = Self { gone: Vec::new(), new: Vec::new() };
        for (set, keys) in want.exclusions.sets() {
            let has = keep_set(OwnSet::Exclude(set)).map_or(&[][..], |observed| &observed.keys);
            let (gone, new) = (missing_from(has, keys), missing_from(keys, has));
            exclusions.gone.extend((!gone.is_empty()).then_some(Op::RemoveExcluded(set, gone)));
            exclusions.new.extend((!new.is_empty()).then_some(Op::AddExcluded(set, new)));
        }
        exclusions
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

/// A flow may be in the flowtable that is excluded from now on.
fn excludes_more(
    want: &DesiredTable,
    table: &ObservedTable,
    flowtable: &ObservedFlowtable,
    exclusions: &Exclusions,
) -> bool {
    let has = table.chain(OFFLOAD_CHAIN).map_or(&[][..], |chain| &chain.rules);
    let new_rule = |rule: &&Rule| !has.iter().any(|observed| observed.exprs == rule.exprs());
    let device_leaves = |device: &IfName| flowtable.devices.as_ref().is_some_and(|d| d.contains(device));
    !exclusions.new.is_empty()
        || want.offload_rules.iter().filter(|rule| rule.is_exclusion()).any(|rule| new_rule(&rule))
        || want.excluded_devices.iter().any(device_leaves)
}

/// No rule of others in our chains refers to the flowtable.
fn only_we_offload(table: &ObservedTable) -> bool {
    let rules =
        [CHAIN, OFFLOAD_CHAIN].into_iter().filter_map(|name| table.chain(name)).flat_map(|c| &c.rules);
    !rules.filter(|rule| rule.owner == Owner::Foreign).any(|rule| refers(&rule.exprs))
}

fn set_is_right(set: OwnSet, want: &DesiredTable, table: &ObservedTable) -> bool {
    let keys = match set {
        OwnSet::Exclude(set) => want.exclusions.keys(set).len(),
        _ => 0,
    };
    table.set(set).is_some_and(|observed| set.fits(&observed.shape, keys))
}

fn flowtable_is_right(want: &DesiredTable, has: &ObservedFlowtable) -> bool {
    // One that can't be read is the work of our own hands, or of somebody who knows what he does.
    has.devices.is_none()
        || (has.priority, has.counter, has.hw_offload)
            == (want.flowtable_priority, want.counter, want.hw_offload)
}

fn base_chain_is_right(want: &DesiredTable, has: &ObservedChain) -> bool {
    has.hook
        == Some(ChainHook {
            kind: "filter".to_owned(),
            hook: HOOK_FORWARD,
            priority: want.chain_priority,
            accept: true,
        })
}

/// What is to be done about the rules of one chain.
struct Rules {
    /// Deletions of ours that shouldn't be there.
    stale: Vec<Op>,
    /// Additions of those that should be but aren't.
    missing: Vec<Op>,
}

impl Rules {
    /// Our rules in another order are as good as wrong: all are made anew. Rules without our marker don't count.
    /// With `all` each is made anew. The rule that offloads goes on counting from `offloads`.
    fn compare(
        chain: &'static str,
        want: &[Rule],
        has: Option<&ObservedChain>,
        all: bool,
        offloads: Option<Counter>,
    ) -> Self {
        let ours: Vec<_> =
            has.map(|c| c.rules.iter().filter(|r| r.owner == Owner::Ours).collect()).unwrap_or_default();
        let want: Vec<Vec<Expr>> = want.iter().map(Rule::exprs).collect();
        if !all && ours.iter().map(|r| &r.exprs).eq(&want) {
            return Self { stale: Vec::new(), missing: Vec::new() };
        }
        Self {
            stale: ours.iter().map(|r| Op::DeleteRule { chain, handle: r.handle }).collect(),
            missing: want
                .into_iter()
                .map(|exprs| Op::AddRule { chain, exprs: counting_from(offloads, exprs) })
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

/// Splits into what one netlink message may carry.
pub(super) fn chunks<'a, T: Clone + 'a>(items: impl Iterator<Item = &'a T>) -> impl Iterator<Item = Vec<T>> {
    let items: Vec<T> = items.cloned().collect();
    let chunks: Vec<Vec<T>> = items.chunks(MAX_DEVICES_PER_MESSAGE).map(<[T]>::to_vec).collect();
    chunks.into_iter()
}

/// What others put into our table, in words, in no particular order. It stays while the table stands.
pub fn foreign_objects(table: &ObservedTable) -> Vec<String> {
    let is_ours = |chain: &&ObservedChain| [CHAIN, OFFLOAD_CHAIN].contains(&chain.name.as_str());
    let (ours, foreign): (Vec<_>, Vec<_>) = table.chains.iter().partition(is_ours);
    let flowtables = table.flowtables.iter().map(|f| &f.name).filter(|name| *name != FLOWTABLE);
    let sets = table.sets.iter().map(|s| &s.name).filter(|name| OwnSet::named(name).is_none());
    let rules = ours.into_iter().flat_map(|chain| {
        let foreign = chain.rules.iter().filter(|r| r.owner == Owner::Foreign);
        foreign.map(|r| format!("rule with handle {} in chain {}", r.handle, chain.name))
    });
    flowtables
        .map(|name| format!("flowtable {name}"))
        .chain(foreign.into_iter().map(|chain| format!("chain {}", chain.name)))
        .chain(sets.map(|name| format!("set {name}")))
        .chain(rules)
        .collect()
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
            Op::AddExcluded(..) | Op::RemoveExcluded(..) => return None,
            // Nobody looks at what is in those sets.
            Op::AddAssisted { .. } | Op::RemoveAssisted(_) | Op::AddRevoked { .. } => {}
            _ => return None,
        }
    }
    Some(table)
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
