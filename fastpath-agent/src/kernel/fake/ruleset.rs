//! A ruleset in memory for tests of the core and of the daemon: it follows the kernel's rules as far as our
//! operations can meet them (what must exist, what is still referred to), and fails where a test scripts it to.
//! What it says about the real kernel is shown by the tests that run on one.

use std::{collections::BTreeSet, io, mem};

use crate::{
    core::{
        flow::one_way::Answer,
        model::{Counter, FLOWTABLE, IfName},
        revalidate::BaseChains,
        ruleset::{
            chain::OwnChain,
            expr::Expr,
            observed::{
                ChainHook, Generation, Observed, ObservedChain, ObservedFlowtable, ObservedRule, ObservedSet,
                ObservedTable, Owner,
            },
            plan::Op,
            rule::Rule,
            sets::{Keys, OwnSet, SetShape},
        },
    },
    kernel::{
        Ruleset,
        nft::{CommitError, NftError, Rejection},
    },
};

/// The fake.
#[derive(Clone, Debug)]
pub struct FakeRuleset {
    /// The table of our name.
    pub table: Option<ObservedTable>,
    /// Generation of the ruleset.
    pub generation: u32,
    /// Devices that exist; others are refused with ENOENT.
    pub devices: BTreeSet<IfName>,
    /// Devices whose hook is refused with EOPNOTSUPP.
    pub refusing: BTreeSet<IfName>,
    /// How many devices a flowtable may have before it can't be read any more.
    pub readable_devices: usize,
    /// Transactions applied so far.
    pub commits: Vec<Vec<Op>>,
    /// Answers to the next commits; `None` lets one through.
    pub script: Vec<Option<CommitError>>,
    next_handle: u64,
}

impl Clone for CommitError {
    fn clone(&self) -> Self {
        match self {
            Self::Stale => Self::Stale,
            _ => Self::Io(NftError::Io {
                operation: "fake",
                object: "ruleset",
                source: io::Error::from_raw_os_error(5),
            }),
        }
    }
}

impl FakeRuleset {
    /// An empty ruleset on a node that has `devices`.
    pub fn new(devices: impl IntoIterator<Item = IfName>) -> Self {
        Self {
            table: None,
            generation: 1,
            devices: devices.into_iter().collect(),
            refusing: BTreeSet::new(),
            readable_devices: usize::MAX,
            commits: Vec::new(),
            script: Vec::new(),
            next_handle: 1,
        }
    }

    /// Another program changes the table.
    pub fn disturb(&mut self, change: impl FnOnce(&mut Option<ObservedTable>)) {
        change(&mut self.table);
        self.generation += 1;
    }

    /// A device vanishes, and with it its place in the flowtables.
    pub fn remove_device(&mut self, name: &IfName) {
        self.devices.remove(name);
        for flowtable in self.table.iter_mut().flat_map(|t| t.flowtables.iter_mut()) {
            if let Some(devices) = flowtable.devices.as_mut() {
                devices.remove(name);
            }
        }
    }

    /// A device has another name: flowtables know their devices, whatever they are called.
    pub fn rename_device(&mut self, before: &IfName, now: &IfName) {
        self.devices.remove(before);
        self.devices.insert(now.clone());
        for flowtable in self.table.iter_mut().flat_map(|t| t.flowtables.iter_mut()) {
            if let Some(devices) = flowtable.devices.as_mut()
                && devices.remove(before)
            {
                devices.insert(now.clone());
            }
        }
    }

    /// A rule offers a flow to the flowtable.
    pub fn count_offer(&mut self) {
        let rules =
            self.table.iter_mut().flat_map(|table| &mut table.chains).flat_map(|chain| &mut chain.rules);
        rules.filter_map(|rule| rule.counter.as_mut()).for_each(|counter| counter.packets += 1);
    }

    /// Whether there is a rule that offers connections which are listed.
    pub fn assists(&self) -> bool {
        let set = OwnSet::Assist.name();
        let rules = self.table.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
        let mut asked = rules.flat_map(|rule| &rule.exprs).filter_map(referent);
        asked.any(|name| name == set)
    }

    fn apply(&self, table: &mut Option<ObservedTable>, op: &Op, handle: u64) -> Result<(), i32> {
        if *op == Op::AddTable {
            if table.is_some() {
                return Err(libc::EEXIST);
            }
            *table = Some(ObservedTable::empty());
            return Ok(());
        }
        if *op == Op::DeleteTable {
            return table.take().map(drop).ok_or(libc::ENOENT);
        }
        self.apply_inside(table.as_mut().ok_or(libc::ENOENT)?, op, handle)
    }

    fn apply_inside(&self, table: &mut ObservedTable, op: &Op, handle: u64) -> Result<(), i32> {
        match op {
            Op::AddTable | Op::DeleteTable => unreachable!("handled by the caller"),
            Op::AddFlowtable { priority, counter, hw_offload } => {
                if table.flowtables.iter().any(|f| f.name == FLOWTABLE) {
                    return Err(libc::EEXIST);
                }
                table.flowtables.push(ObservedFlowtable {
                    name: FLOWTABLE.to_owned(),
                    priority: *priority,
                    counter: *counter,
                    hw_offload: *hw_offload,
                    devices: Some(BTreeSet::new()),
                });
            }
            Op::DeleteFlowtable if refers(table, FLOWTABLE) => return Err(libc::EBUSY),
            Op::DeleteFlowtable => remove(&mut table.flowtables, |f| f.name == FLOWTABLE)?,
            Op::AddSet(set) => {
                if table.set(*set).is_some() {
                    return Err(libc::EEXIST);
                }
                table.sets.push(new_set(*set, set.shape().size, handle));
            }
            Op::AddKeySet(set, size) => {
                if table.set(*set).is_some() {
                    return Err(libc::EEXIST);
                }
                table.sets.push(new_set(*set, *size, handle));
            }
            Op::DeleteSet(set) if refers(table, &set.name()) => return Err(libc::EBUSY),
            Op::DeleteSet(set) => remove(&mut table.sets, |s| s.name == set.name())?,
            Op::AddBaseChain { chain, priority } => {
                let hook = ChainHook {
                    kind: "filter".to_owned(),
                    hook: chain.hook().ok_or(libc::EINVAL)?,
                    priority: *priority,
                    accept: true,
                };
                add_chain(table, *chain, Some(hook))?;
            }
            Op::AddChain(chain) => add_chain(table, *chain, None)?,
            Op::DeleteChain(chain) if refers(table, chain.name()) => return Err(libc::EBUSY),
            Op::DeleteChain(chain) => remove(&mut table.chains, |c| c.name == chain.name())?,
            Op::AddRule { chain, exprs } => {
                let (exprs, start) = without_start(exprs);
                if Rule::recognise(&exprs).is_none() {
                    return Err(libc::EINVAL);
                }
                if !exprs.iter().filter_map(referent).all(|name| exists(table, name)) {
                    return Err(libc::ENOENT);
                }
                let counter = exprs.contains(&Expr::Counter).then_some(start);
                let rule = ObservedRule { handle, owner: Owner::Agent, exprs, counter };
                self::chain(table, *chain)?.rules.push(rule);
            }
            Op::DeleteRule { chain, handle } => {
                remove(&mut self::chain(table, *chain)?.rules, |r| r.handle == *handle)?;
            }
            Op::AddDevices(names) => {
                if names.len() > 256 {
                    return Err(libc::EFBIG);
                }
                if names.iter().any(|n| !self.devices.contains(n)) {
                    return Err(libc::ENOENT);
                }
                if names.iter().any(|n| self.refusing.contains(n)) {
                    return Err(libc::EOPNOTSUPP);
                }
                flowtable_devices(table)?.extend(names.iter().cloned());
            }
            Op::RemoveDevices(names) => {
                let devices = flowtable_devices(table)?;
                for name in names {
                    if !devices.remove(name) {
                        return Err(libc::ENOENT);
                    }
                }
            }
            Op::AddIndices(new) => set(table)?.elements.extend(new),
            Op::RemoveIndices(gone) => {
                let set = set(table)?;
                for index in gone {
                    if !set.elements.remove(index) {
                        return Err(libc::ENOENT);
                    }
                }
            }
            Op::AddKeys(set, keys) => {
                let (has, size) = keyed(table, *set)?;
                has.extend(keys);
                has.sort_unstable();
                has.dedup();
                if has.len() > size {
                    return Err(libc::ENFILE);
                }
            }
            Op::RemoveKeys(set, keys) => {
                let (has, _) = keyed(table, *set)?;
                for key in keys {
                    has.remove(has.binary_search(key).map_err(|_| libc::ENOENT)?);
                }
            }
            // What is in those sets can't be observed.
            Op::AddTraces(answers) => {
                let known = |answer: &Answer| table.set(OwnSet::Seen(answer.direction)).is_some();
                if !answers.iter().all(known) {
                    return Err(libc::ENOENT);
                }
            }
            Op::AddRevoked { .. } => table.set(OwnSet::Revoked).map(drop).ok_or(libc::ENOENT)?,
            Op::AddAssisted { .. } | Op::RemoveAssisted(_) => {
                table.set(OwnSet::Assist).map(drop).ok_or(libc::ENOENT)?;
            }
        }
        Ok(())
    }
}

/// The object in the same table that an instruction refers to.
fn referent(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Lookup { set, .. } | Expr::Update { set, .. } | Expr::UpdateCounter { set, .. } => Some(set),
        Expr::FlowAdd { flowtable } => Some(flowtable),
        Expr::Goto { chain } => Some(chain),
        _ => None,
    }
}

fn refers(table: &ObservedTable, name: &str) -> bool {
    let rules = table.chains.iter().flat_map(|c| &c.rules);
    rules.flat_map(|r| &r.exprs).filter_map(referent).any(|referent| referent == name)
}

fn exists(table: &ObservedTable, name: &str) -> bool {
    table.sets.iter().any(|s| s.name == name)
        || table.flowtables.iter().any(|f| f.name == name)
        || table.chains.iter().any(|chain| chain.name == name)
}

fn chain(table: &mut ObservedTable, chain: OwnChain) -> Result<&mut ObservedChain, i32> {
    table.chains.iter_mut().find(|c| c.name == chain.name()).ok_or(libc::ENOENT)
}

fn add_chain(table: &mut ObservedTable, chain: OwnChain, hook: Option<ChainHook>) -> Result<(), i32> {
    if table.chain(chain).is_some() {
        return Err(libc::EEXIST);
    }
    table.chains.push(ObservedChain { name: chain.name().to_owned(), hook, rules: Vec::new() });
    Ok(())
}

/// Instructions as they are read back, and where their counter begins.
fn without_start(exprs: &[Expr]) -> (Vec<Expr>, Counter) {
    let mut start = Counter::default();
    let exprs = exprs.iter().map(|expr| match expr {
        Expr::CounterFrom(value) => {
            start = *value;
            Expr::Counter
        }
        other => other.clone(),
    });
    (exprs.collect(), start)
}

fn remove<T>(from: &mut Vec<T>, which: impl Fn(&T) -> bool) -> Result<(), i32> {
    let before = from.len();
    from.retain(|item| !which(item));
    if from.len() == before { Err(libc::ENOENT) } else { Ok(()) }
}

fn flowtable_devices(table: &mut ObservedTable) -> Result<&mut BTreeSet<IfName>, i32> {
    let flowtable = table.flowtables.iter_mut().find(|f| f.name == FLOWTABLE).ok_or(libc::ENOENT)?;
    Ok(flowtable.devices.get_or_insert_with(BTreeSet::new))
}

fn set(table: &mut ObservedTable) -> Result<&mut ObservedSet, i32> {
    table.sets.iter_mut().find(|s| s.name == OwnSet::Devices.name()).ok_or(libc::ENOENT)
}

fn new_set(set: OwnSet, size: u32, handle: u64) -> ObservedSet {
    ObservedSet {
        name: set.name().into_owned(),
        handle,
        shape: SetShape { size, ..set.shape() },
        elements: BTreeSet::new(),
        keys: Vec::new(),
    }
}

/// Keys of a set, and how many it may have.
fn keyed(table: &mut ObservedTable, set: OwnSet) -> Result<(&mut Keys, usize), i32> {
    let name = set.name();
    let set = table.sets.iter_mut().find(|s| s.name == name).ok_or(libc::ENOENT)?;
    Ok((&mut set.keys, set.shape.size as usize))
}

impl Ruleset for FakeRuleset {
    fn observe(&mut self) -> Result<Observed, NftError> {
        let mut table = self.table.clone();
        for flowtable in table.iter_mut().flat_map(|table| &mut table.flowtables) {
            if flowtable.devices.as_ref().is_some_and(|devices| devices.len() > self.readable_devices) {
                let name = mem::take(&mut flowtable.name);
                *flowtable =
                    ObservedFlowtable { name, priority: 0, counter: false, hw_offload: false, devices: None };
            }
        }
        Ok(Observed { generation: Generation(self.generation), table })
    }

    fn commit(&mut self, ops: &[Op], expected: Generation) -> Result<Generation, CommitError> {
        if !self.script.is_empty()
            && let Some(error) = self.script.remove(0)
        {
            return Err(error);
        }
        if expected.0 != self.generation {
            return Err(CommitError::Stale);
        }
        let mut table = self.table.clone();
        let mut rejections = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if let Err(errno) = self.apply(&mut table, op, self.next_handle + index as u64) {
                rejections.push(Rejection {
                    index,
                    source: io::Error::from_raw_os_error(errno),
                    message: None,
                    device: None,
                });
            }
        }
        if !rejections.is_empty() {
            return Err(CommitError::Rejected(rejections));
        }
        self.next_handle += ops.len() as u64;
        self.table = table;
        self.generation += 1;
        self.commits.push(ops.to_vec());
        Ok(Generation(self.generation))
    }

    fn base_chains(&mut self) -> Result<BaseChains, NftError> {
        Ok(BaseChains::default())
    }
}
