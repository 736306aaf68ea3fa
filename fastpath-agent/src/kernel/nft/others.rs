//! Reads tables, chains and rules of others, of all families, as much of them as `core::policy` keeps. Messages are
//! decoded in place: a node may have 50,000 rules, and libnftnl gives up on a rule with an expression that it doesn't know.

use std::collections::{BTreeMap, BTreeSet};

use libc::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_core::{Emitable, NetlinkHeader};

use super::{Nft, NftError, element, others_sets::Sets};
use crate::{
    core::policy::{
        expr::{Expr, Verdict},
        lookups::Elements,
        others::{Base, Chain, Device, Others, TableKey},
        rule::Rule,
        walk::forget_leads,
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
    pub(super) const RULE_USERDATA: u16 = 7;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    pub(super) const IMMEDIATE_DREG: u16 = 1;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const LOOKUP_SET: u16 = 1;
    pub(super) const LOOKUP_SREG: u16 = 2;
    pub(super) const LOOKUP_DREG: u16 = 3;
    pub(super) const LOOKUP_FLAGS: u16 = 5;
    pub(super) const OBJECT_TABLE: u16 = 1;
    pub(super) const OBJECT_TYPE: u16 = 3;
    pub(super) const ELEMENTS_TABLE: u16 = 1;
    pub(super) const ELEMENTS_SET: u16 = 2;
    pub(super) const DYNSET_SET_NAME: u16 = 1;
    pub(super) const DYNSET_EXPR: u16 = 7;
    pub(super) const DYNSET_EXPRESSIONS: u16 = 10;
    pub(super) const OBJREF_IMM_TYPE: u16 = 1;
    pub(super) const CT_DREG: u16 = 1;
    pub(super) const CT_KEY: u16 = 2;
    pub(super) const CT_SREG: u16 = 4;
    pub(super) const META_DREG: u16 = 1;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const META_SREG: u16 = 3;
    pub(super) const RT_KEY: u16 = 2;
    pub(super) const PAYLOAD_DREG: u16 = 1;
    pub(super) const PAYLOAD_BASE: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const PAYLOAD_LEN: u16 = 4;
    pub(super) const PAYLOAD_SREG: u16 = 5;
    pub(super) const EXTHDR_DREG: u16 = 1;
    pub(super) const EXTHDR_OP: u16 = 6;
    pub(super) const EXTHDR_SREG: u16 = 7;
    pub(super) const BITWISE_SREG: u16 = 1;
    pub(super) const BITWISE_DREG: u16 = 2;
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const CMP_SREG: u16 = 1;
    pub(super) const CMP_OP: u16 = 2;
    pub(super) const CMP_DATA: u16 = 3;
    pub(super) const RANGE_SREG: u16 = 1;
    pub(super) const RANGE_FROM: u16 = 3;
    pub(super) const RANGE_TO: u16 = 4;
    pub(super) const BYTEORDER_SREG: u16 = 1;
    pub(super) const BYTEORDER_DREG: u16 = 2;
    pub(super) const BYTEORDER_LEN: u16 = 4;
    pub(super) const BYTEORDER_SIZE: u16 = 5;
    /// Of matches and targets alike.
    pub(super) const XT_NAME: u16 = 1;
    pub(super) const XT_INFO: u16 = 3;
}

/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;
/// `NFT_LOOKUP_F_INV`.
const LOOKUP_INVERTED: u32 = 1;
/// `NFT_META_MARK` and `NFT_CT_MARK`.
const MARK: u32 = 3;
/// `NFTNL_UDATA_RULE_COMMENT` (libnftnl's udata.h).
const COMMENT: u8 = 0;
/// `NFT_OBJECT_CT_TIMEOUT`.
const CT_TIMEOUT: u32 = 7;
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
                            let known = known.get_mut(name).map(std::mem::take).unwrap_or_default();
                            let Chain { base, sees_first, .. } = std::mem::take(chain);
                            *chain = Chain { base, sees_first, ..known };
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
            .filter(|(_, chain)| Others::is_read(table.0, chain))
            .map(|(name, _)| name.clone())
            .collect();
        let mut read = BTreeSet::new();
        let mut elements = BTreeMap::new();
        let mut sets = None;
        while let Some(name) = to_read.pop() {
            let Some(chain) = chains.get_mut(&name).filter(|_| read.insert(name.clone())) else { continue };
            let names = [(nfta::RULE_TABLE, table.1.as_str()), (nfta::RULE_CHAIN, name.as_str())];
            complete &= self
                .dump(libc::NFT_MSG_GETRULE, table.0, &names, |message| chain.rules.extend(rule(message)))?;
            complete &= self.look_up(table, chain, &mut sets, &mut elements)?;
            to_read.extend(chain.rules.iter().flat_map(Rule::leads_to).map(str::to_owned));
        }
        complete &= self.resolve_sets(table, chains, &mut sets)?;
        forget_leads(chains);
        Ok(complete)
    }

    /// Reads the sets and maps without which the rules of a chain aren't understood.
    fn look_up(
        &mut self,
        table: &TableKey,
        chain: &mut Chain,
        sets: &mut Option<Sets>,
        elements: &mut BTreeMap<String, Elements>,
    ) -> Result<bool, NftError> {
        let mut complete = true;
        let lookups = chain.rules.iter().filter_map(|rule| rule.lookups.as_ref());
        for (name, own) in lookups.flat_map(|one| one.names()) {
            if own && elements.len() >= MOST_OWN_SETS {
                continue;
            }
            if !elements.contains_key(name) {
                let request = [(nfta::ELEMENTS_TABLE, table.1.as_str()), (nfta::ELEMENTS_SET, name)];
                complete &= self.read_sets(table, sets)?;
                let intervals = sets.as_ref().and_then(|sets| sets.get(name)).is_none_or(|set| set.intervals);
                let mut found = Elements::new(intervals);
                complete &= self.dump(libc::NFT_MSG_GETSETELEM, table.0, &request, |message| {
                    for element in element::of(message) {
                        found.add(element.key, element.data.map(|data| verdict(data)), element.ends);
                    }
                })?;
                elements.insert(name.to_owned(), found);
            }
        }
        let maps = chain.rules.iter_mut().filter_map(|rule| rule.look_up(|name| elements.get(name)));
        chain.maps = maps.collect();
        Ok(complete)
    }

    fn chains_of_others(&mut self) -> Result<(Others, bool), NftError> {
        let mut others = Others::default();
        let mut complete = self.dump(libc::NFT_MSG_GETCHAIN, libc::NFPROTO_UNSPEC as u8, &[], |message| {
            let Some(family) = message.payload().first() else { return };
            if let Some((table, name, chain)) = chain(message)
                && !Others::is_ours(*family, table)
            {
                others.0.entry((*family, table.to_owned())).or_default().insert(name.to_owned(), chain);
            }
        })?;
        let timeouts = [(nfta::OBJECT_TYPE, &CT_TIMEOUT.to_be_bytes()[..])];
        complete &= self.dump_by(libc::NFT_MSG_GETOBJ, libc::NFPROTO_UNSPEC as u8, &timeouts, |message| {
            let table = message.attributes().find(|nla| nla.kind() == nfta::OBJECT_TABLE);
            if let (Some(family), Some(table)) = (message.payload().first(), table)
                && let Some(chains) = others.0.get_mut(&(*family, text(&table).to_owned()))
            {
                chains.values_mut().for_each(|chain| chain.sees_first = true);
            }
            true
        })?;
        Ok((others, complete))
    }

    /// A dump of one family or of all, of what is in the objects that are named by attributes; true if nothing changed
    /// meanwhile.
    pub(super) fn dump(
        &mut self,
        kind: i32,
        family: u8,
        names: &[(u16, &str)],
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<bool, NftError> {
        self.dump_while(kind, family, names, |message| {
            each(message);
            true
        })
    }

    /// The same, as long as `each` says so. If it says no, no other dump can be asked for here any more.
    pub(super) fn dump_while(
        &mut self,
        kind: i32,
        family: u8,
        names: &[(u16, &str)],
        each: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<bool, NftError> {
        let names: Vec<_> =
            names.iter().map(|(kind, name)| (*kind, [name.as_bytes(), &[0]].concat())).collect();
        let names: Vec<_> = names.iter().map(|(kind, name)| (*kind, &name[..])).collect();
        self.dump_by(kind, family, &names, each)
    }

    /// The same by attributes of any kind.
    fn dump_by(
        &mut self,
        kind: i32,
        family: u8,
        by: &[(u16, &[u8])],
        each: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<bool, NftError> {
        const ATTRIBUTE_HEADER: usize = 4;
        let mut request = vec![0; HEADER_BYTES + FAMILY_HEADER_BYTES];
        request[HEADER_BYTES] = family;
        for (kind, value) in by {
            let length = ATTRIBUTE_HEADER + value.len();
            request.extend((length as u16).to_ne_bytes());
            request.extend(kind.to_ne_bytes());
            request.extend(*value);
            request.resize(request.len().next_multiple_of(4), 0);
        }
        let mut header = NetlinkHeader::default();
        header.length = request.len() as u32;
        header.message_type = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        header.flags = (NLM_F_REQUEST | NLM_F_DUMP) as u16;
        header.sequence_number = self.socket.reserve_sequence(1);
        header.emit(&mut request[..HEADER_BYTES]);
        match self.socket.request_while(&request, each) {
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
    Some((table?, name?, Chain { base, ..Chain::default() }))
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

/// The comment in what `nft` keeps with a rule: type, length and value, each of the first two a byte.
fn comment(mut userdata: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return str::from_utf8(value.split(|byte| *byte == 0).next()?).ok();
        }
        userdata = &rest[value.len()..];
    }
    None
}

fn rule(message: &Message<'_>) -> Option<Rule> {
    let family = *message.payload().first()?;
    let (mut handle, mut list, mut userdata) = (0, &[][..], &[][..]);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::RULE_HANDLE => handle = u64::from_be_bytes(nla.value().try_into().ok()?),
            nfta::RULE_EXPRESSIONS => list = nla.value(),
            nfta::RULE_USERDATA => userdata = nla.value(),
            _ => {}
        }
    }
    let mut rule = Rule::new(family, handle, attributes(list).map(|nla| expr(nla.value())));
    if let Some(traits) = &mut rule.traits
        && let Some(comment) = comment(userdata)
    {
        traits.comment = Some(comment.into());
    }
    Some(rule)
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
            Expr::Verdict(find(nfta::IMMEDIATE_DATA).map_or(Verdict::Unknown, |data| verdict(data.value())))
        }
        "lookup" if number_of(nfta::LOOKUP_DREG) == Some(VERDICT_REGISTER) => {
            let map = find(nfta::LOOKUP_SET).map(|nla| text(&nla))?;
            Expr::VerdictMap { map, register: number_of(nfta::LOOKUP_SREG)? }
        }
        "lookup" => Expr::Lookup {
            set: find(nfta::LOOKUP_SET).map(|nla| text(&nla))?,
            register: number_of(nfta::LOOKUP_SREG)?,
            inverted: number_of(nfta::LOOKUP_FLAGS).is_some_and(|flags| flags & LOOKUP_INVERTED != 0),
        },
        "dynset" => Expr::Fill {
            set: find(nfta::DYNSET_SET_NAME).map(|nla| text(&nla))?,
            meters: attributes(data).find_map(|nla| match nla.kind() {
                nfta::DYNSET_EXPR => meter(nla.value()),
                nfta::DYNSET_EXPRESSIONS => attributes(nla.value()).find_map(|one| meter(one.value())),
                _ => None,
            }),
        },
        "objref" => Expr::Object { kind: number_of(nfta::OBJREF_IMM_TYPE) },
        "ct" if find(nfta::CT_SREG).is_some() => {
            Expr::Edit { name: if number_of(nfta::CT_KEY) == Some(MARK) { "ct mark" } else { "ct" } }
        }
        "meta" if find(nfta::META_SREG).is_some() => {
            Expr::Edit { name: if number_of(nfta::META_KEY) == Some(MARK) { "meta mark" } else { "meta" } }
        }
        "payload" if find(nfta::PAYLOAD_SREG).is_some() => Expr::Edit { name: "payload" },
        "exthdr" if find(nfta::EXTHDR_SREG).is_some() => Expr::Edit { name: "exthdr" },
        "meta" => Expr::Meta { key: number_of(nfta::META_KEY)?, register: number_of(nfta::META_DREG)? },
        "exthdr" if find(nfta::EXTHDR_DREG).is_some() => Expr::Option {
            kind: number_of(nfta::EXTHDR_OP).unwrap_or_default(),
            register: number_of(nfta::EXTHDR_DREG)?,
        },
        "rt" => Expr::Route { key: number_of(nfta::RT_KEY)? },
        "payload" => Expr::Payload {
            base: number_of(nfta::PAYLOAD_BASE)?,
            offset: number_of(nfta::PAYLOAD_OFFSET)?,
            length: number_of(nfta::PAYLOAD_LEN)?,
            register: number_of(nfta::PAYLOAD_DREG)?,
        },
        "ct" => Expr::Ct { key: number_of(nfta::CT_KEY)?, register: number_of(nfta::CT_DREG)? },
        "bitwise" => bitwise(data)?,
        "cmp" => compare(data)?,
        "range" => Expr::Range {
            register: number_of(nfta::RANGE_SREG)?,
            from: bytes(&find(nfta::RANGE_FROM)?)?,
            to: bytes(&find(nfta::RANGE_TO)?)?,
        },
        // One value, not several side by side.
        "byteorder" if number_of(nfta::BYTEORDER_LEN) == number_of(nfta::BYTEORDER_SIZE) => {
            let [source, target] = [nfta::BYTEORDER_SREG, nfta::BYTEORDER_DREG].map(number_of);
            Expr::Swap { register: source.filter(|_| source == target)? }
        }
        "match" => Expr::Match {
            name: find(nfta::XT_NAME).map(|nla| text(&nla))?,
            info: find(nfta::XT_INFO).map_or(&[], |nla| nla.value()),
        },
        "target"
            if find(nfta::XT_NAME).is_some_and(|nla| text(&nla) == "CT")
                && gives_timeout(find(nfta::XT_INFO)) =>
        {
            Expr::Object { kind: Some(CT_TIMEOUT) }
        }
        "target" => Expr::Target { name: find(nfta::XT_NAME).map(|nla| text(&nla))? },
        _ => return None,
    })
}

/// Whether a target CT of xtables names a timeout (struct xt_ct_target_info_v1; the first revision has none).
fn gives_timeout(info: Option<Attribute<'_>>) -> bool {
    const NAME_AT: usize = 28;
    info.and_then(|info| info.value().get(NAME_AT).copied()).is_some_and(|byte| byte != 0)
}

/// What lets some packets pass only, of an element that packets put into a set.
fn meter(element: &[u8]) -> Option<&str> {
    let name = attributes(element).find(|nla| nla.kind() == nfta::EXPR_NAME).map(|nla| text(&nla))?;
    (!matches!(name, "counter" | "last")).then_some(name)
}

fn bitwise(data: &[u8]) -> Option<Expr<'_>> {
    let find = |kind| attributes(data).find(|nla| nla.kind() == kind);
    let source = number(&find(nfta::BITWISE_SREG)?)?;
    let destination = number(&find(nfta::BITWISE_DREG)?)?;
    // Shifts have none, and are another operation.
    let [mask, toggled] = [bytes(&find(nfta::BITWISE_MASK)?)?, bytes(&find(nfta::BITWISE_XOR)?)?];
    match (word(mask), word(toggled)) {
        (Some(mask), Some(0)) => Some(Expr::Mask { source, destination, mask }),
        _ if source == destination => Some(Expr::MaskBytes { register: source, mask, toggled }),
        _ => None,
    }
}

fn compare(data: &[u8]) -> Option<Expr<'_>> {
    let find = |kind| attributes(data).find(|nla| nla.kind() == kind);
    let (register, op) = (number(&find(nfta::CMP_SREG)?)?, number(&find(nfta::CMP_OP)?)?);
    let data = bytes(&find(nfta::CMP_DATA)?)?;
    Some(match (word(data), op.cast_signed()) {
        (Some(value), libc::NFT_CMP_EQ) => Expr::Compare { register, equal: true, value },
        (Some(value), libc::NFT_CMP_NEQ) => Expr::Compare { register, equal: false, value },
        _ => Expr::CompareBytes { register, op, data },
    })
}

fn verdict(data: &[u8]) -> Verdict<'_> {
    let (mut code, mut chain) = (None, None);
    for nla in attributes(data).filter(|nla| nla.kind() == nfta::DATA_VERDICT) {
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
pub(super) fn number(nla: &Attribute<'_>) -> Option<u32> {
    Some(u32::from_be_bytes(nla.value().try_into().ok()?))
}

/// A register's value, in the byte order that it has there.
fn bytes<'a>(data: &Attribute<'a>) -> Option<&'a [u8]> {
    attributes(data.value()).find(|nla| nla.kind() == nfta::DATA_VALUE).map(|nla| nla.value())
}

/// A value of 32 bits, in host byte order.
fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A name, without its closing NUL; one that isn't UTF-8 is no name that anybody here knows.
pub(super) fn text<'a>(nla: &Attribute<'a>) -> &'a str {
    let bytes = nla.value();
    str::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).unwrap_or("?")
}
