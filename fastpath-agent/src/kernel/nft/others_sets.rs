//! Reads the sets of others: which of them change by themselves, and when their elements run out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    Nft, NftError, element,
    others::{number, text},
};
use crate::{
    core::policy::{
        others::{Chain, TableKey},
        traits::{SetKind, Traits},
    },
    kernel::nfnetlink::{Message, attributes},
};

/// Numbers of attributes (include/uapi/linux/netfilter/nf_tables.h).
mod nfta {
    pub(super) const SET_TABLE: u16 = 1;
    pub(super) const SET_NAME: u16 = 2;
    pub(super) const SET_FLAGS: u16 = 3;
    pub(super) const SET_EXPR: u16 = 17;
    pub(super) const SET_EXPRESSIONS: u16 = 18;
    pub(super) const ELEMENTS_TABLE: u16 = 1;
    pub(super) const ELEMENTS_SET: u16 = 2;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const DYNSET_SET_NAME: u16 = 1;
}

/// `NFT_SET_TIMEOUT` (enum nft_set_flags): elements run out.
const SET_EXPIRES: u32 = 0x10;
/// `NFT_SET_EVAL`: packets put some in.
const SET_FILLED: u32 = 0x20;
/// `NFT_SET_INTERVAL` and `NFT_SET_CONCAT`.
const SET_INTERVALS: u32 = 0x4 | 0x80;
/// In a table of more chains than these it isn't looked for rules that fill a set.
const MOST_CHAINS: usize = 256;
/// The elements of a larger set aren't followed.
const MOST_ELEMENTS: usize = 4096;
/// How often a set is read again after a change in the midst of it.
const ATTEMPTS: u32 = 4;

/// A table's sets by their names.
pub(super) type Sets = BTreeMap<String, Set>;

/// What matters of a set.
#[derive(Debug)]
pub(super) struct Set {
    kind: SetKind,
    /// Its elements are beginnings and ends.
    pub(super) intervals: bool,
}

impl Nft {
    /// Tells rules that ask sets which change by themselves from others. Sets can't become others as long as a rule asks them.
    pub(super) fn resolve_sets(
        &mut self,
        table: &TableKey,
        chains: &mut BTreeMap<String, Chain>,
        sets: &mut Option<Sets>,
    ) -> Result<bool, NftError> {
        let names: Vec<&String> = chains.keys().collect();
        let asked: BTreeSet<&str> =
            with_traits(chains).flat_map(|traits| &traits.sets).map(|asked| &*asked.set).collect();
        let mut complete = asked.is_empty() || self.read_sets(table, sets)?;
        let is_expiring = |set: &Set| set.kind == SetKind::Expiring;
        let get = |name: &str| sets.as_ref().and_then(|sets| sets.get(name));
        let mut filled = Some(BTreeSet::new());
        if asked.iter().any(|name| get(name).is_some_and(is_expiring)) {
            filled = match names.len() {
                ..=MOST_CHAINS => Some(self.filled(table, &names, &mut complete)?),
                _ => None,
            };
        }
        let kind = |name: &str| match get(name) {
            None => SetKind::Changing,
            Some(set) if is_expiring(set) && filled.as_ref().is_none_or(|all| all.contains(name)) => {
                SetKind::Changing
            }
            Some(set) => set.kind,
        };
        for chain in chains.values_mut() {
            for rule in &mut chain.rules {
                if let Some(traits) = &mut rule.traits
                    && !traits.resolve(kind)
                {
                    rule.traits = None;
                }
            }
            let expiring = chain.rules.iter().filter_map(|rule| rule.traits.as_ref());
            chain.expiring = expiring.flat_map(|traits| &traits.when.sets).cloned().collect();
        }
        Ok(complete)
    }

    /// Reads a table's sets, once.
    pub(super) fn read_sets(&mut self, table: &TableKey, sets: &mut Option<Sets>) -> Result<bool, NftError> {
        if sets.is_some() {
            return Ok(true);
        }
        let mut found = Sets::new();
        let names = [(nfta::SET_TABLE, table.1.as_str())];
        let complete =
            self.dump(libc::NFT_MSG_GETSET, table.0, &names, |message| found.extend(set(message)))?;
        *sets = Some(found);
        Ok(complete)
    }

    /// Sets that packets put elements into, by rules anywhere in the table: the kernel asks no flag of a set for that.
    fn filled(
        &mut self,
        table: &TableKey,
        chains: &[&String],
        complete: &mut bool,
    ) -> Result<BTreeSet<String>, NftError> {
        let mut filled = BTreeSet::new();
        for chain in chains {
            let names = [(nfta::RULE_TABLE, table.1.as_str()), (nfta::RULE_CHAIN, chain.as_str())];
            *complete &= self.dump(libc::NFT_MSG_GETRULE, table.0, &names, |message| {
                let lists = message.attributes().filter(|nla| nla.kind() == nfta::RULE_EXPRESSIONS);
                for list in lists {
                    filled.extend(attributes(list.value()).filter_map(|nla| fills(nla.value())));
                }
            })?;
        }
        Ok(filled)
    }

    /// When elements of a set run out, each in ms since `started`, in order; `None` if they are too many or keep changing.
    pub fn expiries(
        &mut self,
        (family, table): &TableKey,
        set: &str,
        started: Instant,
    ) -> Result<Option<Vec<u64>>, NftError> {
        let names = [(nfta::ELEMENTS_TABLE, table.as_str()), (nfta::ELEMENTS_SET, set)];
        for _ in 0..ATTEMPTS {
            let now = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let (mut elements, mut at) = (0, BTreeSet::new());
            let complete = self.dump_while(libc::NFT_MSG_GETSETELEM, *family, &names, |message| {
                for element in element::of(message) {
                    elements += 1;
                    at.extend(element.expires_ms.map(|in_ms| now.saturating_add(in_ms)));
                }
                elements <= MOST_ELEMENTS
            })?;
            if elements > MOST_ELEMENTS {
                // What is left of the dump is in the way of another one.
                *self = Self::open()?;
                return Ok(None);
            }
            if complete {
                return Ok(Some(at.into_iter().collect()));
            }
        }
        Ok(None)
    }
}

fn with_traits(chains: &BTreeMap<String, Chain>) -> impl Iterator<Item = &Traits> {
    chains.values().flat_map(|chain| &chain.rules).filter_map(|rule| rule.traits.as_deref())
}

fn set(message: &Message<'_>) -> Option<(String, Set)> {
    let (mut name, mut kind, mut intervals) = (None, SetKind::Static, false);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::SET_NAME => name = Some(text(&nla).to_owned()),
            nfta::SET_FLAGS => {
                let flags = number(&nla).unwrap_or(u32::MAX);
                intervals = flags & SET_INTERVALS != 0;
                kind = kind.max(match flags & (SET_EXPIRES | SET_FILLED) {
                    0 => SetKind::Static,
                    SET_EXPIRES => SetKind::Expiring,
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
    let name = attributes(element).find(|nla| nla.kind() == nfta::EXPR_NAME).map(|nla| text(&nla));
    !matches!(name, Some("counter" | "last"))
}

/// The set that an expression puts packets' elements into.
fn fills(expression: &[u8]) -> Option<String> {
    let find = |bytes, kind| attributes(bytes).find(|nla| nla.kind() == kind);
    let name = find(expression, nfta::EXPR_NAME).filter(|nla| text(nla) == "dynset");
    let data = name.and_then(|_| find(expression, nfta::EXPR_DATA))?;
    find(data.value(), nfta::DYNSET_SET_NAME).map(|nla| text(&nla).to_owned())
}
