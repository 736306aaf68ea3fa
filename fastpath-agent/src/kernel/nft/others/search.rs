//! Searches all rules of all tables for what concerns the agent: `notrack`, and other programs' `flow add`. A node may have
//! a hundred thousand rules, so this is for commands, not for every reconcile; only what was found is kept.

use std::borrow::Cow;

use super::{decode, failed};
use crate::{
    core::policy::concern::family_name,
    kernel::{
        netlink::{Families, Message, attribute::find, attributes},
        nft::{Nft, NftError, list, nfta},
    },
};

/// `XT_CT_NOTRACK` (include/uapi/linux/netfilter/xt_CT.h), in the first two bytes of struct xt_ct_target_info.
const XT_CT_NOTRACK: u16 = 1;

/// Rules of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Chains with a rule that says `notrack` (or iptables' `-j CT --notrack`): family, table, chain.
    pub notrack: Vec<String>,
    /// Flowtables that a rule adds to: family and table, name of the flowtable.
    pub flow_add: Vec<(String, String)>,
}

impl Nft {
    /// Searches all rules, the agent's included. What changes meanwhile may be missed.
    pub fn search_rules(&mut self) -> Result<Found, NftError> {
        let rules = list(libc::NFT_MSG_GETRULE, Families::All);
        let found = self.socket.dump(rules, Found::default(), |found, message| rule(message, found));
        Ok(found.map_err(failed)?.passing())
    }

    /// Lowest priority of a chain in the forward hook, for each family and table that has one. What changes meanwhile may be
    /// missed.
    pub fn forward_priorities(&mut self) -> Result<Vec<(String, i32)>, NftError> {
        let chains = list(libc::NFT_MSG_GETCHAIN, Families::All);
        let found = self.socket.dump(chains, Vec::new(), |found: &mut Vec<(String, i32)>, message| {
            let Some((table, _, chain)) = decode::chain(message) else { return };
            let Some(base) = chain.base.filter(|base| base.hook == libc::NF_INET_FORWARD as u32) else {
                return;
            };
            let table = qualified(message, &table);
            match found.iter_mut().find(|(known, _)| *known == table) {
                Some((_, lowest)) => *lowest = base.priority.min(*lowest),
                None => found.push((table, base.priority)),
            }
        });
        Ok(found.map_err(failed)?.passing())
    }
}

pub(super) fn rule(message: &Message<'_>, found: &mut Found) {
    let (mut table, mut chain, mut list) = (Cow::default(), Cow::default(), &[][..]);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::TABLE => table = nla.text(),
            nfta::SECOND_NAME => chain = nla.text(),
            nfta::RULE_EXPRESSIONS => list = nla.value(),
            _ => {}
        }
    }
    for instruction in attributes(list) {
        look_at(instruction.value(), message, (&table, &chain), found);
    }
}

fn look_at(instruction: &[u8], message: &Message<'_>, (table, chain): (&str, &str), found: &mut Found) {
    let name = find(instruction, nfta::EXPR_NAME).map_or(Cow::default(), |nla| nla.text());
    let of = |kind| find(find(instruction, nfta::EXPR_DATA)?.value(), kind);
    match &*name {
        "notrack" => {}
        "target" if of(nfta::XT_NAME).is_some_and(|name| name.text() == "CT") => {
            let flags =
                of(nfta::XT_INFO).and_then(|info| Some(u16::from_ne_bytes(*info.value().first_chunk()?)));
            if flags.is_none_or(|flags| flags & XT_CT_NOTRACK == 0) {
                return;
            }
        }
        "flow_offload" => {
            let flowtable = of(nfta::FLOW_TABLE_NAME).map(|name| (qualified(message, table), name.string()));
            found.flow_add.extend(flowtable.filter(|added| !found.flow_add.contains(added)));
            return;
        }
        _ => return,
    }
    let place = format!("table {}, chain {chain}", qualified(message, table));
    if !found.notrack.contains(&place) {
        found.notrack.push(place);
    }
}

/// Family and name of a table, as nft writes them.
fn qualified(message: &Message<'_>, table: &str) -> String {
    format!("{} {table}", family_name(message.family().unwrap_or_default()))
}
