//! Conditions that were copied from rules of others, instruction by instruction, and how nft writes them. Which may be
//! copied is `core::policy`'s to say.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::expr::{CmpOp, CtKey, Expr, MetaKey, PayloadBase};

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
const IIFNAME: MetaKey = MetaKey::Other(6);
const OIFNAME: MetaKey = MetaKey::Other(7);
const OIFTYPE: MetaKey = MetaKey::Other(9);

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
    /// The conditions that these instructions are; `None` for any that wouldn't be copied.
    pub fn recognise(exprs: &[Expr]) -> Option<Self> {
        let copied = |expr: &Expr| {
            matches!(
                expr,
                Expr::Meta { .. }
                    | Expr::Payload { .. }
                    | Expr::Ct { key: CtKey::Mark, .. }
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
    fn groups(&self) -> impl Iterator<Item = &[Expr]> {
        self.0.chunk_by(|_, next| !is_load(next))
    }
}

fn is_load(expr: &Expr) -> bool {
    matches!(expr, Expr::Meta { .. } | Expr::Payload { .. } | Expr::Ct { .. })
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ipv6 = false;
        let mut words = Vec::new();
        for group in self.groups() {
            if let [Expr::Meta { key: MetaKey::NfProto, .. }, Expr::Cmp { data, .. }] = group {
                ipv6 = *data == [10];
            }
            words.extend(written(group, ipv6));
        }
        f.write_str(&words.join(" "))
    }
}

/// A group, comparison by comparison.
fn written(group: &[Expr], ipv6: bool) -> Vec<String> {
    let Some((load, rest)) = group.split_first() else { return Vec::new() };
    let mut mask = None;
    let mut texts = Vec::new();
    for expr in rest {
        match expr {
            Expr::Bitwise { mask: bits, .. } => mask = Some(bits.as_slice()),
            Expr::Cmp { op, data, .. } => texts.push(comparison(load, mask, *op, data, ipv6)),
            _ => {}
        }
    }
    texts
}

fn comparison(load: &Expr, mask: Option<&[u8]>, op: CmpOp, data: &[u8], ipv6: bool) -> String {
    let op = match op {
        CmpOp::Eq if mask.is_some() => "== ",
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Lte => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Gte => ">= ",
    };
    let host = |bytes: &[u8]| {
        bytes.try_into().map_or_else(|_| hex(bytes), |four| u32::from_ne_bytes(four).to_string())
    };
    match load {
        Expr::Meta { key, .. } => match *key {
            MetaKey::InIfIndex => format!("iif {op}{}", host(data)),
            MetaKey::OutIfIndex => format!("oif {op}{}", host(data)),
            IIFNAME => format!("iifname {op}{}", name(data)),
            OIFNAME => format!("oifname {op}{}", name(data)),
            MetaKey::NfProto if op.is_empty() => {
                format!("meta nfproto {}", if data == [10] { "ipv6" } else { "ipv4" })
            }
            MetaKey::L4Proto => format!("meta l4proto {op}{}", data.first().copied().unwrap_or_default()),
            MetaKey::InIfType => format!("meta iiftype {op}{}", hex(data)),
            OIFTYPE => format!("meta oiftype {op}{}", hex(data)),
            key => format!("meta {key:?} {op}{}", hex(data)),
        },
        Expr::Ct { .. } => match mask {
            Some(mask) => format!("ct mark & {} {op}{}", host(mask), host(data)),
            None => format!("ct mark {op}{}", host(data)),
        },
        Expr::Payload { base, offset, len, .. } => payload(*base, *offset, *len, mask, op, data, ipv6),
        _ => String::new(),
    }
}

fn payload(
    base: PayloadBase,
    offset: u32,
    len: u32,
    mask: Option<&[u8]>,
    op: &str,
    data: &[u8],
    ipv6: bool,
) -> String {
    let prefix = match mask {
        Some(mask) => mask.iter().map(|byte| byte.count_ones()).sum(),
        None => 8 * len,
    };
    let op = if op == "== " { "" } else { op };
    let side = match (base, ipv6, offset) {
        (PayloadBase::Network, false, 12) if len <= 4 => "ip saddr",
        (PayloadBase::Network, false, 16) if len <= 4 => "ip daddr",
        (PayloadBase::Network, true, 8) if len <= 16 => "ip6 saddr",
        (PayloadBase::Network, true, 24) if len <= 16 => "ip6 daddr",
        (PayloadBase::Transport, _, 0 | 2) if len == 2 && mask.is_none() => {
            let port = data.try_into().map_or(0, u16::from_be_bytes);
            return format!("th {}port {op}{port}", if offset == 0 { "s" } else { "d" });
        }
        _ => {
            let word = if base == PayloadBase::Network { "nh" } else { "th" };
            let masked = mask.map_or_else(String::new, |mask| format!("& {} ", hex(mask)));
            return format!("@{word},{},{} {masked}{op}{}", 8 * offset, 8 * len, hex(data));
        }
    };
    let mut bytes = [0; 16];
    let length = data.len().min(16);
    bytes[..length].copy_from_slice(&data[..length]);
    let address = if ipv6 {
        Ipv6Addr::from(bytes).to_string()
    } else {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).to_string()
    };
    let whole = if ipv6 { 128 } else { 32 };
    if prefix == whole { format!("{side} {op}{address}") } else { format!("{side} {op}{address}/{prefix}") }
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
        Expr::Cmp { sreg: 1, op: CmpOp::Eq, data: data.to_vec() }
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
