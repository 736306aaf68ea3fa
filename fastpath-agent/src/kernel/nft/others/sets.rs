//! Reads other programs' sets: which of them change by themselves, and when their elements time out.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    time::Instant,
};

use super::{decode, elements_of, failed, of_table, rules_of};
use crate::{
    core::policy::{
        chain::{Chain, TableKey},
        outcome::{Established, Outcome},
        rule::Rule,
        traits::{SetKind, Traits},
    },
    kernel::{
        netlink::{Dumped, Message, Socket, attribute::find, attributes},
        nft::{Nft, NftError, element, nfta},
    },
};

/// In a table of more chains than these it isn't looked for rules that fill a set.
const MOST_CHAINS: usize = 256;
/// The elements of a larger set aren't followed.
const MOST_ELEMENTS: usize = 4096;
/// How often a set is read again after a change in the midst of it.
const ATTEMPTS: u32 = 4;

/// A table's sets, as far as they have been read.
#[derive(Default)]
pub(super) struct Sets {
    by_name: Option<BTreeMap<String, Set>>,
    /// Those that packets put elements into, by the rules that were read.
    pub(super) filled: BTreeSet<String>,
}

impl Sets {
    pub(super) fn get(&self, name: &str) -> Option<&Set> {
        self.by_name.as_ref()?.get(name)
    }
}

/// What matters of a set.
#[derive(Debug)]
pub(super) struct Set {
    kind: SetKind,
    /// Its elements are beginnings and ends.
    pub(super) intervals: bool,
}

impl Nft {
    /// Tells rules that ask sets which change by themselves from others. Sets can't become others as long as a rule asks them.
    /// `read`: chains whose rules have been read.
    pub(super) fn resolve_sets(
        &mut self,
        table: &TableKey,
        chains: &mut BTreeMap<String, Chain>,
        read: &BTreeSet<String>,
        mut sets: Sets,
        interrupted: &mut bool,
    ) -> Result<(), NftError> {
        let asked: BTreeSet<&str> =
            with_traits(chains).flat_map(|traits| &traits.sets).map(|asked| &*asked.set).collect();
        if !asked.is_empty() {
            self.read_sets(table, &mut sets, interrupted)?;
        }
        let is_expiring = |set: &Set| set.kind == SetKind::Expiring;
        let follows = asked.iter().any(|name| sets.get(name).is_some_and(is_expiring));
        let known = chains.len() <= MOST_CHAINS;
        if follows && known {
            // The kernel asks no flag of a set for rules that fill it, and such a rule may be in any chain.
            for chain in chains.keys().filter(|name| !read.contains(*name)) {
                self.list(rules_of(table, chain), interrupted, |(): &mut (), message| {
                    decode::rule(message, &mut sets.filled);
                })?;
            }
        }
        let kind = |name: &str| match sets.get(name) {
            None => SetKind::Changing,
            Some(set) if is_expiring(set) && !known => SetKind::Changing,
            Some(set) if set.kind <= SetKind::Expiring && sets.filled.contains(name) => SetKind::Changing,
            Some(set) => set.kind,
        };
        let decide =
            |rule: &&Rule| rule.outcome != Outcome::Continue && rule.established != Established::None;
        let rules = chains.values().flat_map(|chain| &chain.rules).filter(decide);
        let decisive: BTreeSet<Box<str>> = rules
            .filter_map(|rule| rule.traits.as_ref())
            .flat_map(|traits| &traits.sets)
            .map(|asked| asked.set.clone())
            .collect();
        for chain in chains.values_mut() {
            for rule in &mut chain.rules {
                if let Some(traits) = &mut rule.traits {
                    traits.fills_asked = traits.fills.iter().any(|set| decisive.contains(set));
                    if !traits.resolve(kind) {
                        rule.traits = None;
                    }
                }
            }
            let expiring = chain.rules.iter().filter_map(|rule| rule.traits.as_ref());
            chain.expiring = expiring.flat_map(|traits| &traits.when.sets).cloned().collect();
        }
        Ok(())
    }

    /// Reads a table's sets, once.
    pub(super) fn read_sets(
        &mut self,
        table: &TableKey,
        sets: &mut Sets,
        interrupted: &mut bool,
    ) -> Result<(), NftError> {
        if sets.by_name.is_none() {
            let dump = of_table(libc::NFT_MSG_GETSET, table);
            let found = self.list(dump, interrupted, |found: &mut BTreeMap<_, _>, message| {
                found.extend(set(message));
            })?;
            sets.by_name = Some(found);
        }
        Ok(())
    }

    /// When elements of a set run out, each in ms since `started`, in order; `None` if they are too many or keep changing.
    pub fn expiries(table: &TableKey, set: &str, started: Instant) -> Result<Option<Vec<u64>>, NftError> {
        for _ in 0..ATTEMPTS {
            let now = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let each = |(elements, at): &mut (usize, BTreeSet<u64>), message: &Message<'_>| {
                for element in element::of(message) {
                    *elements += 1;
                    at.extend(element.expires_ms.map(|in_ms| now.saturating_add(in_ms)));
                }
                if *elements > MOST_ELEMENTS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let socket = Socket::open().map_err(failed)?;
            match socket.dump_until(elements_of(table, set), Default::default(), each) {
                Ok(Dumped::Complete((MOST_ELEMENTS.., _)) | Dumped::Interrupted((MOST_ELEMENTS.., _))) => {
                    return Ok(None);
                }
                Ok(Dumped::Complete((_, at))) => return Ok(Some(at.into_iter().collect())),
                Ok(Dumped::Interrupted(_)) => {}
                // The set went away meanwhile, which is announced.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(None)
    }
}

fn with_traits(chains: &BTreeMap<String, Chain>) -> impl Iterator<Item = &Traits> {
    chains.values().flat_map(|chain| &chain.rules).filter_map(|rule| rule.traits.as_deref())
}

pub(super) fn set(message: &Message<'_>) -> Option<(String, Set)> {
    let (mut name, mut kind, mut intervals) = (None, SetKind::Static, false);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::SET_NAME => name = Some(nla.string()),
            nfta::SET_FLAGS => {
                let flags = nla.be32().unwrap_or(u32::MAX);
                intervals = flags & nfta::SET_INTERVALS != 0;
                kind = kind.max(match flags & (nfta::SET_EXPIRES | nfta::SET_FILLED) {
                    0 => SetKind::Static,
                    nfta::SET_EXPIRES => SetKind::Expiring,
                    _ => SetKind::Changing,
                });
            }
            nfta::SET_EXPR if is_meter(nla.value()) => kind = SetKind::Meters,
            nfta::SET_EXPRESSIONS if attributes(nla.value()).any(|one| is_meter(one.value())) => {
                kind = SetKind::Meters;
            }
            _ => {}
        }
    }
    Some((name?, Set { kind, intervals }))
}

/// Whether an expression in a set's elements lets some packets pass only.
fn is_meter(element: &[u8]) -> bool {
    let name = find(element, nfta::EXPR_NAME).map(|nla| nla.text());
    !matches!(name.as_deref(), Some("counter" | "last"))
}
