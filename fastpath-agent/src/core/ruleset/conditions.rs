//! Conditions of our rules that come from elsewhere: copied from other programs' rules instruction by instruction
//! (`core::policy` says which), or made of a policy rule's selectors. And how nft writes them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;

use super::expr::{CmpOp, CtKey, Direction, Expr, MetaKey, PayloadBase, TuplePart};
use crate::core::{
    model::{IfIndex, IfName},
    route_rule::RouteRule,
};

/// Register of conditions that aren't copied with theirs (`NFT_REG_1`).
const REG: u32 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;
/// Offsets of source and destination address in the headers of IPv4 and IPv6, in bytes.
const ADDRESSES: [(u8, u32, u32); 2] = [(IPV4, 12, 16), (IPV6, 8, 24)];
/// Offsets of source and destination port.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

/// `NFT_META_*` that our own rules use.
const KNOWN_META: [(u32, MetaKey); 7] = [
    (3, MetaKey::Mark),
    (4, MetaKey::InIfIndex),
    (5, MetaKey::OutIfIndex),
    (8, MetaKey::InIfType),
    (15, MetaKey::NfProto),
    (16, MetaKey::L4Proto),
    (33, MetaKey::SlaveIfIndex),
];
pub(super) const IIFNAME: MetaKey = MetaKey::Other(6);
pub(super) const OIFNAME: MetaKey = MetaKey::Other(7);
const OIFTYPE: MetaKey = MetaKey::Other(9);
/// `NFT_CT_LABELS`: 128 bits, host byte order of 64 each.
const LABELS: CtKey = CtKey::Other(13);

/// Conditions that a packet must meet together; none: every packet does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions(pub Vec<Expr>);

/// The key of enum nft_meta_keys with this number.
pub fn meta_key(number: u32) -> MetaKey {
    KNOWN_META.iter().find(|(known, _)| *known == number).map_or(MetaKey::Other(number), |(_, key)| *key)
}

/// The key of enum nft_ct_keys with this number; only that of marks has a name here.
pub fn ct_key(number: u32) -> CtKey {
    if number == 3 { CtKey::Mark } else { CtKey::Other(number) }
}

/// The base of enum nft_payload_bases with this number.
pub fn payload_base(number: u32) -> Option<PayloadBase> {
    [PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport].get(number as usize).copied()
}

/// The comparison of enum nft_cmp_ops with this number.
pub fn cmp_op(number: u32) -> Option<CmpOp> {
    [CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Lte, CmpOp::Gt, CmpOp::Gte].get(number as usize).copied()
}

impl Conditions {
    /// For packets whose connection's other direction the policy rule could decide: the rule's selectors turned round.
    /// In the forward hook a packet's addresses are those that a packet of the other direction has when it is routed,
    /// whatever NAT does. `index` finds interfaces by name; `None` if no packet comes in on the rule's.
    pub fn reverse_of(rule: &RouteRule, index: impl Fn(&IfName) -> Option<IfIndex>) -> Option<Self> {
        let RouteRule { input, from, to, protocol, source_ports, destination_ports, ipv6 } = rule;
        let mut conditions = Self::default();
        if let Some(input) = input {
            conditions.add_meta(MetaKey::OutIfIndex, &index(input)?.0.to_ne_bytes());
        }
        let (family, source, destination) = ADDRESSES[usize::from(*ipv6)];
        conditions.add_meta(MetaKey::NfProto, &[family]);
        for (net, offset) in [(to, source), (from, destination)] {
            conditions.0.extend(net.iter().flat_map(|net| address(net, offset)));
        }
        if let Some(protocol) = protocol {
            conditions.add_meta(MetaKey::L4Proto, &[*protocol]);
        }
        for (ports, offset) in [(destination_ports, SOURCE_PORT), (source_ports, DESTINATION_PORT)] {
            if let Some(ports) = ports {
                conditions.add_ports(offset, ports.first..=ports.last);
            }
        }
        Some(conditions)
    }

    /// That of a table's family, if it is `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub fn of_family(family: u8) -> Self {
        let mut conditions = Self::default();
        if [IPV4, IPV6].contains(&family) {
            conditions.add_meta(MetaKey::NfProto, &[family]);
        }
        conditions
    }

    fn add_meta(&mut self, key: MetaKey, data: &[u8]) {
        self.0.extend([Expr::Meta { key, dreg: REG }, cmp(CmpOp::Eq, data)]);
    }

    /// Adds one on ports in host byte order: the source's (`offset` 0) or the destination's (2).
    pub fn add_ports(&mut self, offset: u32, ports: RangeInclusive<u16>) {
        let cmp = |op, port: &u16| cmp(op, &port.to_be_bytes());
        let (first, last) = (ports.start(), ports.end());
        self.0.push(Expr::Payload { base: PayloadBase::Transport, offset, len: 2, dreg: REG });
        if first == last {
            self.0.push(cmp(CmpOp::Eq, first));
        } else {
            self.0.extend([cmp(CmpOp::Gte, first), cmp(CmpOp::Lte, last)]);
        }
    }

    /// The conditions that these instructions are; `None` for any that wouldn't be copied.
    pub fn recognise(exprs: &[Expr]) -> Option<Self> {
        let copied = |expr: &Expr| {
            matches!(
                expr,
                Expr::Meta { .. }
                    | Expr::Payload { .. }
                    | Expr::Ct { key: CtKey::Mark | CtKey::Direction | CtKey::Tuple(..) | LABELS, .. }
                    | Expr::Bitwise { .. }
                    | Expr::Cmp { .. }
            )
        };
        let whole = exprs.is_empty()
            || exprs.first().is_some_and(is_load) && matches!(exprs.last(), Some(Expr::Cmp { .. }));
        (whole && exprs.iter().all(copied)).then(|| Self(exprs.to_vec()))
    }

    /// Those of them that don't depend on what `drops` says; every load goes with what is done with it.
    pub fn without(&self, drops: impl Fn(&Expr) -> bool) -> Self {
        Self(self.groups().filter(|group| !drops(&group[0])).flatten().cloned().collect())
    }

    /// For packets that meet `first` (with which these begin) and not the rest; `None` if the rest isn't one comparison.
    pub fn inverse(&self, first: &Self) -> Option<Self> {
        let mut rest = Self(self.0.strip_prefix(first.0.as_slice())?.to_vec());
        let loads = rest.groups().count();
        let (op, before) = match rest.0.split_last_mut()? {
            (Expr::Cmp { op, .. }, before) => (op, before),
            _ => return None,
        };
        if loads != 1 || before.iter().any(|expr| matches!(expr, Expr::Cmp { .. })) {
            return None;
        }
        *op = match op {
            CmpOp::Eq => CmpOp::Neq,
            CmpOp::Neq => CmpOp::Eq,
            _ => return None,
        };
        Some(rest)
    }

    /// For packets that meet these and those, each once.
    pub fn and(&self, others: &Self) -> Self {
        let mut all = self.clone();
        for group in others.groups().filter(|group| !self.has(group)) {
            all.0.extend_from_slice(group);
        }
        all
    }

    pub(super) fn has(&self, group: &[Expr]) -> bool {
        self.groups().any(|own| own == group)
    }

    /// Those of them that others are, too.
    pub(super) fn common(&self, others: &Self) -> Self {
        let common = Self(self.groups().filter(|group| others.has(group)).flatten().cloned().collect());
        // What a header's bytes mean hangs on the family.
        let has_family = common.0.iter().any(|expr| matches!(expr, Expr::Meta { key: MetaKey::NfProto, .. }));
        if has_family { common } else { common.without_addresses() }
    }

    /// Without addresses and ports, which NAT changes on the way.
    pub fn without_addresses(&self) -> Self {
        self.without(|load| matches!(load, Expr::Payload { .. }))
    }

    /// Without input interfaces.
    pub fn without_input(&self) -> Self {
        let input = [MetaKey::InIfIndex, IIFNAME, MetaKey::InIfType];
        self.without(|load| matches!(load, Expr::Meta { key, .. } if input.contains(key)))
    }

    /// A load and what is done with it.
    pub(super) fn groups(&self) -> impl Iterator<Item = &[Expr]> {
        self.0.chunk_by(|_, next| !is_load(next))
    }
}

pub(super) fn is_load(expr: &Expr) -> bool {
    matches!(expr, Expr::Meta { .. } | Expr::Payload { .. } | Expr::Ct { .. })
}

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp { sreg: REG, op, data: data.to_vec() }
}

/// That on the address at `offset`. As nft has it: whole bytes are compared without a mask; all addresses need no condition.
fn address(net: &IpNet, offset: u32) -> Vec<Expr> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (mask, network) = (bytes(net.netmask()), bytes(net.network()));
    let load = |len: usize| Expr::Payload { base: PayloadBase::Network, offset, len: len as u32, dreg: REG };
    let whole = usize::from(net.prefix_len() / 8);
    match net.prefix_len() {
        0 => Vec::new(),
        length if length.is_multiple_of(8) => vec![load(whole), cmp(CmpOp::Eq, &network[..whole])],
        _ => {
            let xor = vec![0; mask.len()];
            vec![load(mask.len()), Expr::Bitwise { reg: REG, mask, xor }, cmp(CmpOp::Eq, &network)]
        }
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ipv6 = false;
        let mut words = Vec::new();
        for group in self.groups() {
            if let [Expr::Meta { key: MetaKey::NfProto, .. }, Expr::Cmp { data, .. }] = group {
                ipv6 = *data == [IPV6];
            }
            words.extend(written(group, ipv6));
        }
        f.write_str(&words.join(" "))
    }
}

/// A group: comparison by comparison, or as a range.
fn written(group: &[Expr], ipv6: bool) -> Vec<String> {
    let Some((load, mut rest)) = group.split_first() else { return Vec::new() };
    let mut mask = None;
    if let [Expr::Bitwise { mask: bits, .. }, behind @ ..] = rest {
        mask = Some(bits.as_slice());
        rest = behind;
    }
    if let (
        None,
        [Expr::Cmp { op: CmpOp::Gte, data: first, .. }, Expr::Cmp { op: CmpOp::Lte, data: last, .. }],
    ) = (mask, rest)
        && let (Some(left), Some(right)) = (is_of(load, first, ipv6), is_of(load, last, ipv6))
    {
        return vec![format!("{} {}-{}", left.0, left.1, right.1)];
    }
    let compared = rest.iter().filter_map(|expr| match expr {
        Expr::Cmp { op, data, .. } => Some(comparison(load, mask, *op, data, ipv6)),
        _ => None,
    });
    compared.collect()
}

fn comparison(load: &Expr, mask: Option<&[u8]>, op: CmpOp, data: &[u8], ipv6: bool) -> String {
    let word = match op {
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Lte => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Gte => ">= ",
    };
    let equals = matches!(op, CmpOp::Eq | CmpOp::Neq);
    match (load, mask) {
        (Expr::Payload { base: PayloadBase::Network, offset, len, .. }, mask)
            if equals
                && let Some(side) = side(*offset, ipv6)
                && let Some(prefix) = prefix(mask, *len, ipv6) =>
        {
            format!("{side} {word}{}", network(data, prefix, ipv6))
        }
        (Expr::Payload { base, offset, len, .. }, Some(mask)) => {
            let word = if word.is_empty() { "== " } else { word };
            format!("{} & {} {word}{}", raw(*base, *offset, *len), hex(mask), hex(data))
        }
        (Expr::Ct { key: CtKey::Tuple(direction, part), .. }, Some(mask))
            if equals && let Some(prefix) = prefix(Some(mask), mask.len() as u32, ipv6) =>
        {
            format!("{} {word}{}", of_tuple(*direction, *part), network(data, prefix, ipv6))
        }
        (Expr::Ct { key: CtKey::Tuple(direction, part), .. }, Some(mask)) => {
            let word = if word.is_empty() { "== " } else { word };
            format!(
                "{} & {} {word}{}",
                of_tuple(*direction, *part),
                network(mask, whole(ipv6), ipv6),
                network(data, whole(ipv6), ipv6)
            )
        }
        (Expr::Ct { key, .. }, Some(mask)) => {
            let word = if word.is_empty() { "== " } else { word };
            let what = if *key == LABELS { "ct label" } else { "ct mark" };
            format!("{what} & {} {word}{}", host(mask), host(data))
        }
        _ => match is_of(load, data, ipv6) {
            Some((what, value)) => format!("{what} {word}{value}"),
            None => String::new(),
        },
    }
}

/// What is loaded and the value that it is compared with, neither masked.
fn is_of(load: &Expr, data: &[u8], ipv6: bool) -> Option<(String, String)> {
    let (what, value) = match load {
        Expr::Meta { key, .. } => match *key {
            MetaKey::InIfIndex => ("iif", host(data)),
            MetaKey::OutIfIndex => ("oif", host(data)),
            IIFNAME => ("iifname", name(data)),
            OIFNAME => ("oifname", name(data)),
            MetaKey::NfProto => ("meta nfproto", if data == [IPV6] { "ipv6" } else { "ipv4" }.to_owned()),
            MetaKey::L4Proto => ("meta l4proto", data.first()?.to_string()),
            MetaKey::InIfType => ("meta iiftype", host(data)),
            OIFTYPE => ("meta oiftype", host(data)),
            _ => return None,
        },
        Expr::Ct { key: CtKey::Direction, .. } => {
            ("ct direction", if data == [0] { "original" } else { "reply" }.to_owned())
        }
        Expr::Ct { key: CtKey::Tuple(direction, part), .. } => {
            let value = if data.len() == 2 { port(data) } else { network(data, whole(ipv6), ipv6) };
            return Some((of_tuple(*direction, *part), value));
        }
        Expr::Ct { key: LABELS, .. } => ("ct label", host(data)),
        Expr::Ct { .. } => ("ct mark", host(data)),
        Expr::Payload { base: PayloadBase::Transport, offset: SOURCE_PORT, len: 2, .. } => {
            ("th sport", port(data))
        }
        Expr::Payload { base: PayloadBase::Transport, offset: DESTINATION_PORT, len: 2, .. } => {
            ("th dport", port(data))
        }
        Expr::Payload { base: PayloadBase::Network, offset, len, .. }
            if let Some(side) = side(*offset, ipv6)
                && prefix(None, *len, ipv6) == Some(whole(ipv6)) =>
        {
            (side, network(data, whole(ipv6), ipv6))
        }
        Expr::Payload { base, offset, len, .. } => return Some((raw(*base, *offset, *len), hex(data))),
        _ => return None,
    };
    Some((what.to_owned(), value))
}

/// True for the source's address at this offset, false for the destination's.
pub(super) fn side_of(offset: u32, ipv6: bool) -> Option<bool> {
    let (_, source, destination) = ADDRESSES[usize::from(ipv6)];
    (offset == source || offset == destination).then_some(offset == source)
}

fn side(offset: u32, ipv6: bool) -> Option<&'static str> {
    Some(match (side_of(offset, ipv6)?, ipv6) {
        (true, false) => "ip saddr",
        (false, false) => "ip daddr",
        (true, true) => "ip6 saddr",
        (false, true) => "ip6 daddr",
    })
}

/// A part of a connection's tuple, as nft names it.
fn of_tuple(direction: Direction, part: TuplePart) -> String {
    let part = match part {
        TuplePart::SourceV4 => "ip saddr",
        TuplePart::DestinationV4 => "ip daddr",
        TuplePart::SourceV6 => "ip6 saddr",
        TuplePart::DestinationV6 => "ip6 daddr",
        TuplePart::SourcePort => "proto-src",
        TuplePart::DestinationPort => "proto-dst",
    };
    format!("ct {direction} {part}")
}

/// Bits of an address.
fn whole(ipv6: bool) -> u32 {
    if ipv6 { 128 } else { 32 }
}

/// Length of the prefix that is compared: by a mask of the whole address, or by loading so many bytes of it.
fn prefix(mask: Option<&[u8]>, len: u32, ipv6: bool) -> Option<u32> {
    let bits = 8 * len;
    match mask {
        None => Some(bits).filter(|bits| *bits <= whole(ipv6)),
        Some(mask) => {
            let ones = mask.iter().take_while(|byte| **byte == 0xff).count();
            let (next, rest) =
                mask[ones..].split_first().map_or((0, [].as_slice()), |(next, rest)| (*next, rest));
            let whole_prefix = next.leading_ones() == next.count_ones() && rest.iter().all(|byte| *byte == 0);
            (bits == whole(ipv6) && whole_prefix).then_some(8 * ones as u32 + next.leading_ones())
        }
    }
}

/// An address from its first bytes, with its prefix where that isn't all of it.
fn network(data: &[u8], prefix: u32, ipv6: bool) -> String {
    let mut bytes = [0; 16];
    let length = data.len().min(16);
    bytes[..length].copy_from_slice(&data[..length]);
    let address = if ipv6 {
        Ipv6Addr::from(bytes).to_string()
    } else {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).to_string()
    };
    if prefix == whole(ipv6) { address } else { format!("{address}/{prefix}") }
}

fn raw(base: PayloadBase, offset: u32, len: u32) -> String {
    let base = match base {
        PayloadBase::Link => "ll",
        PayloadBase::Network => "nh",
        PayloadBase::Transport => "th",
    };
    format!("@{base},{},{}", 8 * offset, 8 * len)
}

/// A number in host byte order.
fn host(data: &[u8]) -> String {
    match *data {
        [one] => one.to_string(),
        [a, b] => u16::from_ne_bytes([a, b]).to_string(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).to_string(),
        _ => hex(data),
    }
}

fn port(data: &[u8]) -> String {
    data.try_into().map_or_else(|_| hex(data), |two| u16::from_be_bytes(two).to_string())
}

/// A name up to its NUL; without one it is the beginning of names.
fn name(data: &[u8]) -> String {
    let end = data.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&data[..end.unwrap_or(data.len())]);
    if end.is_some() { format!("\"{text}\"") } else { format!("\"{text}*\"") }
}

fn hex(data: &[u8]) -> String {
    data.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(offset: u32, len: u32) -> Expr {
        Expr::Payload { base: PayloadBase::Network, offset, len, dreg: 1 }
    }

    fn cmp(data: &[u8]) -> Expr {
        super::cmp(CmpOp::Eq, data)
    }

    #[test]
    fn a_policy_rule_is_turned_round() {
        let rule = RouteRule {
            input: IfName::new("lan"),
            from: Some("10.1.0.0/16".parse().unwrap()),
            to: Some("0.0.0.0/0".parse().unwrap()),
            protocol: Some(6),
            source_ports: None,
            destination_ports: Some((443..=444).into()),
            ipv6: false,
        };
        let conditions =
            Conditions::reverse_of(&rule, |name| (name.as_str() == "lan").then_some(IfIndex(4))).unwrap();
        assert_eq!(
            conditions.to_string(),
            "oif 4 meta nfproto ipv4 ip daddr 10.1.0.0/16 meta l4proto 6 th sport 443-444"
        );
        assert_eq!(Conditions::recognise(&conditions.0), Some(conditions));
        assert_eq!(Conditions::reverse_of(&rule, |_| None), None, "nothing comes in there");
        let ipv6 = RouteRule { ipv6: true, to: Some("fd00::/9".parse().unwrap()), ..RouteRule::default() };
        let conditions = Conditions::reverse_of(&ipv6, |_| None).unwrap();
        assert_eq!(conditions.to_string(), "meta nfproto ipv6 ip6 saddr fd00::/9");
    }

    #[test]
    fn conditions_are_written_as_nft_has_them() {
        let family = |family| vec![Expr::Meta { key: MetaKey::NfProto, dreg: 1 }, cmp(&[family])];
        let th = |offset| Expr::Payload { base: PayloadBase::Transport, offset, len: 2, dreg: 1 };
        let mask = |mask: &[u8]| Expr::Bitwise { reg: 1, mask: mask.to_vec(), xor: vec![0; mask.len()] };
        for (exprs, text) in [
            (vec![], ""),
            (
                [family(2), vec![load(12, 4), cmp(&[10, 1, 0, 2])]].concat(),
                "meta nfproto ipv4 ip saddr 10.1.0.2",
            ),
            (
                [family(2), vec![load(16, 2), cmp(&[10, 1])]].concat(),
                "meta nfproto ipv4 ip daddr 10.1.0.0/16",
            ),
            (vec![load(12, 4), mask(&[255, 128, 0, 0]), cmp(&[10, 0, 0, 0])], "ip saddr 10.0.0.0/9"),
            (
                [family(10), vec![load(8, 2), cmp(&[0xfd, 0])]].concat(),
                "meta nfproto ipv6 ip6 saddr fd00::/16",
            ),
            (vec![th(2), cmp(&[1, 187])], "th dport 443"),
            (
                vec![load(12, 4), mask(&[0, 0, 0, 255]), cmp(&[0, 0, 0, 5])],
                "@nh,96,32 & 0x000000ff == 0x00000005",
            ),
            (
                vec![Expr::Meta { key: MetaKey::InIfType, dreg: 1 }, cmp(&1_u16.to_ne_bytes())],
                "meta iiftype 1",
            ),
            (
                vec![Expr::Meta { key: MetaKey::NfProto, dreg: 1 }, super::cmp(CmpOp::Neq, &[2])],
                "meta nfproto != ipv4",
            ),
            (vec![load(9, 1), cmp(&[6])], "@nh,72,8 0x06"),
            (vec![Expr::Meta { key: IIFNAME, dreg: 1 }, cmp(b"eth0\0\0")], "iifname \"eth0\""),
            (vec![Expr::Meta { key: IIFNAME, dreg: 1 }, cmp(b"eth")], "iifname \"eth*\""),
            (
                vec![
                    Expr::Ct { key: CtKey::Mark, dreg: 1 },
                    mask(&7_u32.to_ne_bytes()),
                    cmp(&1_u32.to_ne_bytes()),
                ],
                "ct mark & 7 == 1",
            ),
        ] {
            let conditions = Conditions(exprs);
            assert_eq!(conditions.to_string(), text);
            assert_eq!(Conditions::recognise(&conditions.0), Some(conditions));
        }
        assert_eq!(Conditions::recognise(&[Expr::Counter]), None);
        assert_eq!(Conditions::recognise(&[load(12, 4)]), None);
    }

    #[test]
    fn conditions_are_left_out_with_all_that_belongs_to_them() {
        let input = vec![Expr::Meta { key: MetaKey::InIfIndex, dreg: 1 }, cmp(&[1, 0, 0, 0])];
        let all = Conditions([input.clone(), vec![load(12, 4), cmp(&[10, 1, 0, 2])]].concat());
        assert_eq!(all.without_addresses(), Conditions(input));
        assert_eq!(all.without_input().to_string(), "ip saddr 10.1.0.2");
    }
}
