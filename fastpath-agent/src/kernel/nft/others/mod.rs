//! Reads other programs' tables, chains and rules of all families, as much of them as `core::policy` keeps.

use std::collections::{BTreeMap, BTreeSet};

use super::{Nft, NftError, element, list, names::Names, nfta, notice::is_timeout};
use crate::{
    core::policy::{
        chain::{Chain, TableKey},
        lookups::Elements,
        others::Others,
        rule::Rule,
        walk::{forget_leads, leading},
    },
    kernel::netlink::{Dump, Families, Message},
};

mod decode;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
mod search;
mod sets;
mod survey;

use sets::Sets;

/// So many sets are read that belong to one rule each, of a table.
const MOST_OWN_SETS: usize = 256;
/// How often it is read again after a change in the midst of it.
const ATTEMPTS: u32 = 4;

/// Which rules are read; chains are read in any case.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those of all tables.
    All,
    /// Those of these tables, and of tables whose rules weren't read yet.
    Tables(&'a BTreeSet<TableKey>),
}

impl Nft {
    /// Brings `others` up to date. False if something kept changing meanwhile: then what was read may not be whole, and
    /// the change is announced.
    #[must_use = "what was read may not be whole"]
    pub fn read_others(&mut self, others: &mut Others, which: Which<'_>) -> Result<bool, NftError> {
        for _ in 0..ATTEMPTS {
            let mut interrupted = false;
            let mut now = self.chains_of_others(&mut interrupted)?;
            let to_read = now.to_read();
            let read_before = others.to_read();
            for (key, chains) in &mut now.0 {
                if !to_read.contains(key) {
                    chains.retain(|_, chain| chain.base.is_some());
                    continue;
                }
                let known = match which {
                    Which::Tables(changed) if !changed.contains(key) && read_before.contains(key) => {
                        others.0.get_mut(key)
                    }
                    _ => None,
                };
                match known {
                    Some(known) => {
                        for (name, chain) in chains {
                            let known = known.get_mut(name).map(std::mem::take).unwrap_or_default();
                            let Chain { base, sees_first, .. } = std::mem::take(chain);
                            *chain = Chain { base, sees_first, ..known };
                        }
                    }
                    None => self.reachable_rules(key, chains, &mut interrupted)?,
                }
            }
            *others = now;
            if !interrupted {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads rules of the chains that packets reach from those base chains of a table whose rules matter, chain by chain:
    /// when it dumps a table, the kernel walks through all rules again for each datagram that it fills.
    fn reachable_rules(
        &mut self,
        table: &TableKey,
        chains: &mut BTreeMap<String, Chain>,
        interrupted: &mut bool,
    ) -> Result<(), NftError> {
        let mut to_read: Vec<String> = chains
            .iter()
            .filter(|(_, chain)| Others::is_read(table.0, chain))
            .map(|(name, _)| name.clone())
            .collect();
        let mut read = BTreeSet::new();
        let mut elements = BTreeMap::new();
        let mut sets = Sets::default();
        while let Some(name) = to_read.pop() {
            let Some(chain) = chains.get_mut(&name).filter(|_| read.insert(name.clone())) else { continue };
            // What packets meet that a rule sends on is most of what is known of it, and is seldom asked for.
            chain.rules = self.list(rules_of(table, &name), interrupted, |rules: &mut Vec<_>, message| {
                rules.extend(decode::rule(message, &mut sets.filled).map(Rule::without_leads));
            })?;
            chain.rules.shrink_to_fit();
            self.look_up(table, chain, &mut sets, &mut elements, interrupted)?;
            to_read.extend(chain.rules.iter().flat_map(Rule::leads_to).map(str::to_owned));
        }
        for name in leading(chains) {
            let Some(chain) = chains.get_mut(&name) else { continue };
            chain.rules = self.list(rules_of(table, &name), interrupted, |rules: &mut Vec<_>, message| {
                rules.extend(decode::rule(message, &mut sets.filled));
            })?;
            self.look_up(table, chain, &mut sets, &mut elements, interrupted)?;
        }
        self.resolve_sets(table, chains, &read, sets, interrupted)?;
        forget_leads(chains);
        Ok(())
    }

    /// Reads the sets and maps without which the rules of a chain aren't understood.
    fn look_up(
        &mut self,
        table: &TableKey,
        chain: &mut Chain,
        sets: &mut Sets,
        elements: &mut BTreeMap<String, Elements>,
        interrupted: &mut bool,
    ) -> Result<(), NftError> {
        let lookups = chain.rules.iter().filter_map(|rule| rule.lookups.as_ref());
        for (name, own) in lookups.flat_map(|one| one.names()) {
            if elements.contains_key(name) || own && elements.len() >= MOST_OWN_SETS {
                continue;
            }
            self.read_sets(table, sets, interrupted)?;
            let intervals = sets.get(name).is_none_or(|set| set.intervals);
            let mut found = Elements::new(intervals);
            self.list(elements_of(table, name), interrupted, |(): &mut (), message| {
                for element in element::of(message) {
                    let names = Names::default();
                    let verdict = element.data.map(|data| decode::verdict(data, &names));
                    found.add(element.key, verdict, element.ends);
                }
            })?;
            elements.insert(name.to_owned(), found);
        }
        let maps = chain.rules.iter_mut().filter_map(|rule| rule.look_up(|name| elements.get(name)));
        chain.maps = maps.collect();
        Ok(())
    }

    /// All chains but the agent's, without rules.
    fn chains_of_others(&mut self, interrupted: &mut bool) -> Result<Others, NftError> {
        let chains = list(libc::NFT_MSG_GETCHAIN, Families::All);
        let mut others = self.list(chains, interrupted, |others: &mut Others, message| {
            if let Some(family) = message.family()
                && let Some((table, name, chain)) = decode::chain(message)
                && !Others::is_ours(family, &table)
            {
                others.0.entry((family, table.into_owned())).or_default().insert(name.into_owned(), chain);
            }
        })?;
        let timeouts = list(libc::NFT_MSG_GETOBJ, Families::All)
            .with(nfta::OBJECT_TYPE, &nfta::CT_TIMEOUT.to_be_bytes());
        self.list(timeouts, interrupted, |(): &mut (), message| {
            let table = message.attributes().find(|nla| nla.kind() == nfta::TABLE);
            if is_timeout(message)
                && let (Some(family), Some(table)) = (message.family(), table)
                && let Some(chains) = others.0.get_mut(&(family, table.string()))
            {
                chains.values_mut().for_each(|chain| chain.sees_first = true);
            }
        })?;
        Ok(others)
    }

    /// Lists objects. `interrupted` is set if something changed meanwhile; what lay in a table that went away is none.
    fn list<T: Default>(
        &mut self,
        dump: Dump,
        interrupted: &mut bool,
        each: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<T, NftError> {
        match self.socket.dump(dump, T::default(), each) {
            Ok(dumped) => Ok(dumped.noting(interrupted)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                *interrupted = true;
                Ok(T::default())
            }
            Err(error) => Err(failed(error)),
        }
    }
}

fn failed(error: std::io::Error) -> NftError {
    NftError::new("reading", "other programs' rulesets", error)
}

fn rules_of(table: &TableKey, chain: &str) -> Dump {
    of_table(libc::NFT_MSG_GETRULE, table).named(nfta::SECOND_NAME, chain)
}

fn elements_of(table: &TableKey, set: &str) -> Dump {
    of_table(libc::NFT_MSG_GETSETELEM, table).named(nfta::SECOND_NAME, set)
}

fn of_table(kind: i32, (family, table): &TableKey) -> Dump {
    list(kind, Families::One(*family)).named(nfta::TABLE, table)
}
