//! Chains, rules and verdicts in the kernel's messages, as `core::policy` wants them. Decoded in place: a node may have 50,000
//! rules, and libnftnl gives up on a rule with an expression that it doesn't know.

use std::{borrow::Cow, collections::BTreeSet};

use crate::{
    core::{
        policy::{
            chain::{Base, Chain, Device},
            expr::{Expr, Verdict},
            rule::Rule,
            traits::ADDRESS,
        },
        printable::printable,
    },
    kernel::{
        netlink::{Attribute, Message, attribute::find, attributes},
        nft::{names::Names, nfta},
    },
};

/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;
/// `NFT_LOOKUP_F_INV`.
const LOOKUP_INVERTED: u32 = 1;
/// `NFT_META_MARK` and `NFT_CT_MARK`.
const MARK: u32 = 3;
/// `NFTNL_UDATA_RULE_COMMENT` (libnftnl's udata.h).
const COMMENT: u8 = 0;

/// Table, name and place of a chain.
pub(super) fn chain<'a>(message: &Message<'a>) -> Option<(Cow<'a, str>, Cow<'a, str>, Chain)> {
    let (mut table, mut name, mut kind, mut hook, mut accepts) = (None, None, Cow::default(), None, true);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::TABLE => table = Some(nla.text()),
            nfta::CHAIN_NAME => name = Some(nla.text()),
            nfta::CHAIN_TYPE => kind = nla.text(),
            nfta::CHAIN_HOOK => hook = Some(nla),
            nfta::CHAIN_POLICY => accepts = nla.be32() == Some(libc::NF_ACCEPT as u32),
            _ => {}
        }
    }
    let base = hook.and_then(|hook| base(&kind, accepts, &hook));
    Some((table?, name?, Chain { base, ..Chain::default() }))
}

fn base(kind: &str, accepts: bool, hook: &Attribute<'_>) -> Option<Base> {
    let (mut number, mut priority) = (None, 0);
    let mut devices = BTreeSet::new();
    for nla in attributes(hook.value()) {
        match nla.kind() {
            nfta::HOOK_HOOKNUM => number = nla.be32(),
            nfta::HOOK_PRIORITY => priority = nla.be32()?.cast_signed(),
            nfta::HOOK_DEV => drop(devices.insert(Device::Name(nla.string()))),
            nfta::HOOK_DEVS => devices.extend(attributes(nla.value()).filter_map(|device| {
                let name = device.string();
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
fn comment(mut userdata: &[u8]) -> Option<Cow<'_, str>> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return value.split(|byte| *byte == 0).next().map(printable);
        }
        userdata = &rest[value.len()..];
    }
    None
}

/// A rule; sets that it puts packets' elements into are added to `filled`.
pub(super) fn rule(message: &Message<'_>, filled: &mut BTreeSet<String>) -> Option<Rule> {
    let family = message.family()?;
    let (mut handle, mut list, mut userdata) = (0, &[][..], &[][..]);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::RULE_HANDLE => handle = u64::from_be_bytes(nla.value().try_into().ok()?),
            nfta::RULE_EXPRESSIONS => list = nla.value(),
            nfta::RULE_USERDATA => userdata = nla.value(),
            _ => {}
        }
    }
    let names = Names::default();
    let exprs = attributes(list).map(|nla| expr(nla.value(), &names)).inspect(|expr| {
        if let Expr::Fill { set, .. } = expr
            && !filled.contains(*set)
        {
            filled.insert((*set).to_owned());
        }
    });
    let mut rule = Rule::new(family, handle, exprs);
    if let Some(traits) = &mut rule.traits
        && let Some(comment) = comment(userdata)
    {
        traits.comment = Some(comment.into());
    }
    Some(rule)
}

fn expr<'a>(element: &'a [u8], names: &'a Names) -> Expr<'a> {
    let (mut name, mut data) = ("", &[][..]);
    for nla in attributes(element) {
        match nla.kind() {
            nfta::EXPR_NAME => name = names.of(&nla),
            nfta::EXPR_DATA => data = nla.value(),
            _ => {}
        }
    }
    known(name, data, names).unwrap_or(Expr::Other { name })
}

/// The expression if it is of a kind that matters in detail, and as we know that kind.
fn known<'a>(name: &str, data: &'a [u8], names: &'a Names) -> Option<Expr<'a>> {
    let find = |kind| find(data, kind);
    let number_of = |kind| find(kind).and_then(|nla| nla.be32());
    Some(match name {
        "immediate" if number_of(nfta::IMMEDIATE_DREG) == Some(VERDICT_REGISTER) => Expr::Verdict(
            find(nfta::IMMEDIATE_DATA).map_or(Verdict::Unknown, |data| verdict(data.value(), names)),
        ),
        "lookup" if number_of(nfta::LOOKUP_DREG) == Some(VERDICT_REGISTER) => {
            let map = find(nfta::LOOKUP_SET).map(|nla| names.of(&nla))?;
            Expr::VerdictMap { map, register: number_of(nfta::LOOKUP_SREG)? }
        }
        "lookup" => Expr::Lookup {
            set: find(nfta::LOOKUP_SET).map(|nla| names.of(&nla))?,
            register: number_of(nfta::LOOKUP_SREG)?,
            inverted: number_of(nfta::LOOKUP_FLAGS).is_some_and(|flags| flags & LOOKUP_INVERTED != 0),
        },
        "dynset" => Expr::Fill {
            set: find(nfta::DYNSET_SET_NAME).map(|nla| names.of(&nla))?,
            meters: attributes(data).find_map(|nla| match nla.kind() {
                nfta::DYNSET_EXPR => meter(nla.value(), names),
                nfta::DYNSET_EXPRESSIONS => attributes(nla.value()).find_map(|one| meter(one.value(), names)),
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
        "payload" if find(nfta::PAYLOAD_SREG).is_some() => {
            let place = [nfta::PAYLOAD_BASE, nfta::PAYLOAD_OFFSET, nfta::PAYLOAD_LEN].map(number_of);
            Expr::Edit { name: if is_address(place) { ADDRESS } else { "payload" } }
        }
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
            name: find(nfta::XT_NAME).map(|nla| names.of(&nla))?,
            info: find(nfta::XT_INFO).map_or(&[], |nla| nla.value()),
        },
        "target"
            if find(nfta::XT_NAME).is_some_and(|nla| nla.text() == "CT")
                && gives_timeout(find(nfta::XT_INFO)) =>
        {
            Expr::Object { kind: Some(nfta::CT_TIMEOUT) }
        }
        "target" => Expr::Target { name: find(nfta::XT_NAME).map(|nla| names.of(&nla))? },
        _ => return None,
    })
}

/// Whether base, offset and length are those of addresses (IPv4 from 12 on, IPv6 from 8 on) or ports; unknown ones may be.
fn is_address(place: [Option<u32>; 3]) -> bool {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match place {
        [Some(NETWORK), Some(offset), Some(length)] => offset >= 12 || offset == 8 && length == 16,
        [Some(TRANSPORT), Some(offset), _] => offset < 4,
        [Some(_), Some(_), _] => false,
        _ => true,
    }
}

/// Whether a target CT of xtables names a timeout (struct xt_ct_target_info_v1; the first revision has none).
fn gives_timeout(info: Option<Attribute<'_>>) -> bool {
    const NAME_AT: usize = 28;
    info.and_then(|info| info.value().get(NAME_AT).copied()).is_some_and(|byte| byte != 0)
}

/// What lets some packets pass only, of an element that packets put into a set.
fn meter<'a>(element: &'a [u8], names: &'a Names) -> Option<&'a str> {
    let name = names.of(&find(element, nfta::EXPR_NAME)?);
    (!matches!(name, "counter" | "last")).then_some(name)
}

fn bitwise(data: &[u8]) -> Option<Expr<'_>> {
    let find = |kind| find(data, kind);
    let source = find(nfta::BITWISE_SREG)?.be32()?;
    let destination = find(nfta::BITWISE_DREG)?.be32()?;
    // Shifts have none, and are another operation.
    let [mask, toggled] = [bytes(&find(nfta::BITWISE_MASK)?)?, bytes(&find(nfta::BITWISE_XOR)?)?];
    match (word(mask), word(toggled)) {
        (Some(mask), Some(0)) => Some(Expr::Mask { source, destination, mask }),
        _ if source == destination => Some(Expr::MaskBytes { register: source, mask, toggled }),
        _ => None,
    }
}

fn compare(data: &[u8]) -> Option<Expr<'_>> {
    let find = |kind| find(data, kind);
    let (register, op) = (find(nfta::CMP_SREG)?.be32()?, find(nfta::CMP_OP)?.be32()?);
    let data = bytes(&find(nfta::CMP_DATA)?)?;
    Some(match (word(data), op.cast_signed()) {
        (Some(value), libc::NFT_CMP_EQ) => Expr::Compare { register, equal: true, value },
        (Some(value), libc::NFT_CMP_NEQ) => Expr::Compare { register, equal: false, value },
        _ => Expr::CompareBytes { register, op, data },
    })
}

/// A packet's fate, by the data of an expression or of a map's element.
pub(super) fn verdict<'a>(data: &'a [u8], names: &'a Names) -> Verdict<'a> {
    let (mut code, mut chain) = (None, None);
    for nla in attributes(data).filter(|nla| nla.kind() == nfta::DATA_VERDICT) {
        for nla in attributes(nla.value()) {
            match nla.kind() {
                nfta::VERDICT_CODE => code = nla.be32().map(u32::cast_signed),
                nfta::VERDICT_CHAIN => chain = Some(names.of(&nla)),
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

/// A register's value, in the byte order that it has there.
fn bytes<'a>(data: &Attribute<'a>) -> Option<&'a [u8]> {
    find(data.value(), nfta::DATA_VALUE).map(|nla| nla.value())
}

/// A value of 32 bits, in host byte order.
fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}
