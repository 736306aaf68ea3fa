//! Reads tables, chains and rules of others, of all families, as much of them as `core::policy` keeps. Messages are
//! decoded in place: a node may have 50,000 rules, and libnftnl gives up on a rule with an expression that it doesn't know.

use std::collections::{BTreeMap, BTreeSet};

use libc::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_core::{Emitable, NetlinkHeader};

use super::{Nft, NftError};
use crate::{
    core::policy::{
        expr::{Expr, Verdict},
        others::{Base, Chain, Device, Others, TableKey},
        rule::Rule,
    },
    kernel::nfnetlink::{Attribute, Completion, FAMILY_HEADER_BYTES, HEADER_BYTES, Message, attributes},
};

/// Numbers of attributes (include/uapi/linux/netfilter/nf_tables.h, nf_tables_compat.h).
mod nfta {
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_POLICY: u16 = 5;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_HOOKNUM: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    pub(super) const HOOK_DEV: u16 = 3;
    pub(super) const HOOK_DEVS: u16 = 4;
    pub(super) const DEVICE_NAME: u16 = 1;
    pub(super) const DEVICE_PREFIX: u16 = 2;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    pub(super) const IMMEDIATE_DREG: u16 = 1;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const LOOKUP_SET: u16 = 1;
    pub(super) const LOOKUP_DREG: u16 = 3;
    pub(super) const CT_DREG: u16 = 1;
    pub(super) const CT_KEY: u16 = 2;
    pub(super) const BITWISE_SREG: u16 = 1;
    pub(super) const BITWISE_DREG: u16 = 2;
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const CMP_SREG: u16 = 1;
    pub(super) const CMP_OP: u16 = 2;
    pub(super) const CMP_DATA: u16 = 3;
    /// Of matches and targets alike.
    pub(super) const XT_NAME: u16 = 1;
    pub(super) const XT_INFO: u16 = 3;
}

/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;
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
    pub fn read_others(&mut self, others: &mut Others, which: Which<'_>) -> Result<bool, NftError> {
        let mut settled = false;
        for _ in 0..ATTEMPTS {
            let (mut now, chains_complete) = self.chains_of_others()?;
            settled = chains_complete;
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
                            chain.rules = known
                                .get_mut(name)
                                .map(|chain| std::mem::take(&mut chain.rules))
                                .unwrap_or_default();
                        }
                    }
                    None => settled &= self.reachable_rules(key, chains)?,
                }
            }
            *others = now;
            if settled {
                break;
            }
        }
        Ok(settled)
    }

    /// Reads rules of the chains that packets reach from those base chains of a table whose rules matter, chain by chain:
    /// when it dumps a table, the kernel walks through all rules again for each datagram that it fills.
    fn reachable_rules(
        &mut self,
        table: &TableKey,
        chains: &mut BTreeMap<String, Chain>,
    ) -> Result<bool, NftError> {
        let mut complete = true;
        let mut to_read: Vec<String> = chains
            .iter()
            .filter(|(_, chain)| Others::counts(table.0, chain))
            .map(|(name, _)| name.clone())
            .collect();
        let mut read = BTreeSet::new();
        while let Some(name) = to_read.pop() {
            let Some(chain) = chains.get_mut(&name).filter(|_| read.insert(name.clone())) else { continue };
            let names = [(nfta::RULE_TABLE, table.1.as_str()), (nfta::RULE_CHAIN, name.as_str())];
            complete &= self
                .dump(libc::NFT_MSG_GETRULE, table.0, &names, |message| chain.rules.extend(rule(message)))?;
            to_read.extend(chain.rules.iter().filter_map(Rule::leads_to).map(str::to_owned));
        }
        Ok(complete)
    }

    fn chains_of_others(&mut self) -> Result<(Others, bool), NftError> {
        let mut others = Others::default();
        let complete = self.dump(libc::NFT_MSG_GETCHAIN, libc::NFPROTO_UNSPEC as u8, &[], |message| {
            let Some(family) = message.payload().first() else { return };
            if let Some((table, name, chain)) = chain(message)
                && !Others::is_ours(*family, table)
            {
                others.0.entry((*family, table.to_owned())).or_default().insert(name.to_owned(), chain);
            }
        })?;
        Ok((others, complete))
    }

    /// A dump of one family or of all, of what is in the objects that are named by attributes; true if nothing changed
    /// meanwhile.
    fn dump(
        &mut self,
        kind: i32,
        family: u8,
        names: &[(u16, &str)],
        each: impl FnMut(&Message<'_>),
    ) -> Result<bool, NftError> {
        const ATTRIBUTE_HEADER: usize = 4;
        let mut request = vec![0; HEADER_BYTES + FAMILY_HEADER_BYTES];
        request[HEADER_BYTES] = family;
        for (kind, name) in names {
            let length = ATTRIBUTE_HEADER + name.len() + 1;
            request.extend((length as u16).to_ne_bytes());
            request.extend(kind.to_ne_bytes());
            request.extend(name.as_bytes());
            request.push(0);
            request.resize(request.len().next_multiple_of(4), 0);
        }
        let mut header = NetlinkHeader::default();
        header.length = request.len() as u32;
        header.message_type = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        header.flags = (NLM_F_REQUEST | NLM_F_DUMP) as u16;
        header.sequence_number = self.socket.reserve_sequence(1);
        header.emit(&mut request[..HEADER_BYTES]);
        match self.socket.request(&request, each) {
            Ok(completion) => Ok(completion == Completion::Consistent),
            // The table went away meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(NftError::new("reading", "the chains and rules of others", error)),
        }
    }
}

/// Table, name and place of a chain.
fn chain<'a>(message: &Message<'a>) -> Option<(&'a str, &'a str, Chain)> {
    let (mut table, mut name, mut kind, mut hook, mut accepts) = (None, None, "", None, true);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::CHAIN_TABLE => table = Some(text(&nla)),
            nfta::CHAIN_NAME => name = Some(text(&nla)),
            nfta::CHAIN_TYPE => kind = text(&nla),
            nfta::CHAIN_HOOK => hook = Some(nla),
            nfta::CHAIN_POLICY => accepts = number(&nla) == Some(libc::NF_ACCEPT as u32),
            _ => {}
        }
    }
    let base = hook.and_then(|hook| base(kind, accepts, &hook));
    Some((table?, name?, Chain { base, rules: Vec::new() }))
}

fn base(kind: &str, accepts: bool, hook: &Attribute<'_>) -> Option<Base> {
    let (mut number, mut priority) = (None, 0);
    let mut devices = BTreeSet::new();
    for nla in attributes(hook.value()) {
        match nla.kind() {
            nfta::HOOK_HOOKNUM => number = self::number(&nla),
            nfta::HOOK_PRIORITY => priority = self::number(&nla)?.cast_signed(),
            nfta::HOOK_DEV => drop(devices.insert(Device::Name(text(&nla).to_owned()))),
            nfta::HOOK_DEVS => devices.extend(attributes(nla.value()).filter_map(|device| {
                let name = text(&device).to_owned();
                match device.kind() {
                    nfta::DEVICE_NAME => Some(Device::Name(name)),
                    nfta::DEVICE_PREFIX => Some(Device::Prefix(name)),
                    _ => None,
                }
            })),
            _ => {}
        }
    }
    let devices = devices.into_iter().collect();
    Some(Base { kind: kind.to_owned(), hook: number?, priority, accepts, devices })
}

fn rule(message: &Message<'_>) -> Option<Rule> {
    let (mut handle, mut list) = (0, &[][..]);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::RULE_HANDLE => handle = u64::from_be_bytes(nla.value().try_into().ok()?),
            nfta::RULE_EXPRESSIONS => list = nla.value(),
            _ => {}
        }
    }
    Some(Rule::new(handle, attributes(list).map(|nla| expr(nla.value()))))
}

fn expr(element: &[u8]) -> Expr<'_> {
    let (mut name, mut data) = ("", &[][..]);
    for nla in attributes(element) {
        match nla.kind() {
            nfta::EXPR_NAME => name = text(&nla),
            nfta::EXPR_DATA => data = nla.value(),
            _ => {}
        }
    }
    known(name, data).unwrap_or(Expr::Other { name })
}

/// The expression if it is of a kind that matters in detail, and as we know that kind.
fn known<'a>(name: &str, data: &'a [u8]) -> Option<Expr<'a>> {
    let find = |kind| attributes(data).find(|nla| nla.kind() == kind);
    let number_of = |kind| find(kind).and_then(|nla| number(&nla));
    Some(match name {
        "immediate" if number_of(nfta::IMMEDIATE_DREG) == Some(VERDICT_REGISTER) => {
            Expr::Verdict(find(nfta::IMMEDIATE_DATA).map_or(Verdict::Unknown, |data| verdict(&data)))
        }
        "lookup" if number_of(nfta::LOOKUP_DREG) == Some(VERDICT_REGISTER) => {
            Expr::VerdictMap { map: find(nfta::LOOKUP_SET).map(|nla| text(&nla))? }
        }
        "ct" => Expr::Ct { key: number_of(nfta::CT_KEY)?, register: number_of(nfta::CT_DREG)? },
        "bitwise" => {
            let [mask, toggled] =
                [nfta::BITWISE_MASK, nfta::BITWISE_XOR].map(|kind| find(kind).and_then(|nla| value(&nla)));
            Expr::Mask {
                source: number_of(nfta::BITWISE_SREG)?,
                destination: number_of(nfta::BITWISE_DREG)?,
                mask: mask.filter(|_| toggled == Some(0))?,
            }
        }
        "cmp" => Expr::Compare {
            register: number_of(nfta::CMP_SREG)?,
            equal: match number_of(nfta::CMP_OP)? as i32 {
                libc::NFT_CMP_EQ => true,
                libc::NFT_CMP_NEQ => false,
                _ => return None,
            },
            value: find(nfta::CMP_DATA).and_then(|nla| value(&nla))?,
        },
        "match" => Expr::Match {
            name: find(nfta::XT_NAME).map(|nla| text(&nla))?,
            info: find(nfta::XT_INFO).map_or(&[], |nla| nla.value()),
        },
        "target" => Expr::Target { name: find(nfta::XT_NAME).map(|nla| text(&nla))? },
        _ => return None,
    })
}

fn verdict<'a>(data: &Attribute<'a>) -> Verdict<'a> {
    let (mut code, mut chain) = (None, None);
    for nla in attributes(data.value()).filter(|nla| nla.kind() == nfta::DATA_VERDICT) {
        for nla in attributes(nla.value()) {
            match nla.kind() {
                nfta::VERDICT_CODE => code = number(&nla).map(u32::cast_signed),
                nfta::VERDICT_CHAIN => chain = Some(text(&nla)),
                _ => {}
            }
        }
    }
    match (code, chain) {
        (Some(libc::NF_ACCEPT), _) => Verdict::Accept,
        (Some(libc::NF_DROP), _) => Verdict::Drop,
        (Some(libc::NF_QUEUE), _) => Verdict::Queue,
        (Some(libc::NFT_CONTINUE), _) => Verdict::Continue,
        (Some(libc::NFT_RETURN), _) => Verdict::Return,
        (Some(libc::NFT_JUMP), Some(chain)) => Verdict::Jump(chain),
        (Some(libc::NFT_GOTO), Some(chain)) => Verdict::Goto(chain),
        _ => Verdict::Unknown,
    }
}

/// A number as nf_tables has them: 32 bits in network byte order.
fn number(nla: &Attribute<'_>) -> Option<u32> {
    Some(u32::from_be_bytes(nla.value().try_into().ok()?))
}

/// A register's value of 32 bits, in host byte order.
fn value(data: &Attribute<'_>) -> Option<u32> {
    let value = attributes(data.value()).find(|nla| nla.kind() == nfta::DATA_VALUE)?;
    Some(u32::from_ne_bytes(value.value().try_into().ok()?))
}

/// A name, without its closing NUL; one that isn't UTF-8 is no name that anybody here knows.
fn text<'a>(nla: &Attribute<'a>) -> &'a str {
    let bytes = nla.value();
    str::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).unwrap_or("?")
}
