//! The rules of our chains: what each says in nft's words and in the kernel's instructions.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    exclude::Mark,
    expr::{CmpOp, CtKey, Direction, Expr, MetaKey, RtKey, TuplePart},
    sets::{ExcludeSet, OwnSet},
};
use crate::core::model::{FLOWTABLE, OFFLOAD_CHAIN};

/// Register that our rules use (`NFT_REG_1`).
const REG: u32 = 1;
/// Value of `ct state established` (`NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`); a packet has one state.
const CT_STATE_ESTABLISHED: u32 = 1 << 1;

/// Bit of `ct status snat` (`IPS_SRC_NAT`): the reply's destination isn't the original's source.
const STATUS_SNAT: u32 = 1 << 4;
/// Bit of `ct status dnat` (`IPS_DST_NAT`): the reply's source isn't the original's destination.
const STATUS_DNAT: u32 = 1 << 5;

/// One of the four ends that a connection has: two before and two after NAT. The same for packets of either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who opened it.
    OriginalSource,
    /// Whom it was opened to.
    OriginalDestination,
    /// Who answers, if that is somebody else.
    ReplySource,
    /// Whom the answers go to, if that is somebody else.
    ReplyDestination,
}

/// Whose mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The packet's (`meta mark`).
    Packet,
    /// The connection's (`ct mark`).
    Connection,
}

/// A rule of our chains. Printed as `nft` writes it.
///
/// The first two stand in the base chain, so that packets of short flows end at one comparison; all others in the
/// chain behind it, in the order in which they are listed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Takes up connections that the agent has listed. Only those that are older than the first rule with `ct packets`
    /// have no packet counters: any other flow ends at the comparison with 0, also one that got the conntrack id of a
    /// listed one.
    Assist,
    /// Takes up flows that have had more than `threshold` packets, both directions counted.
    Threshold {
        /// Packets of both directions.
        threshold: u32,
    },
    /// Flows that were revoked stay on the normal path. Each packet counts as a reason to remember that, so that it is
    /// forgotten only when the flow is gone.
    Revoked,
    /// One-way and half-open flows stay on the normal path.
    OnlyEstablished,
    /// Flows to an IPsec policy stay on the normal path, where the policy is enforced; the flowtable doesn't ask it.
    /// Only kernels built with IPsec (`CONFIG_XFRM`) know the question, and only they need it.
    SpareIpsec,
    /// Packets that come in elsewhere than on a managed interface stay on the normal path.
    OnlyManagedInput,
    /// So do those that leave elsewhere.
    OnlyManagedOutput,
    /// Flows with a key of this set at this end stay on the normal path.
    Excluded {
        /// A set of networks or of ports.
        set: ExcludeSet,
        /// Where the key is looked for.
        end: End,
    },
    /// So do flows of the listed protocols.
    ExcludedProtocol,
    /// So do flows with this firewall mark.
    ExcludedMark {
        /// The mark.
        mark: Mark,
        /// Whose.
        of: Marked,
    },
    /// Offloads the flow. `flow add` ends the rule where the flow can't be offloaded or is already, so the counter
    /// counts offloads, and what comes after sees the other packets only.
    Offload,
    /// Counts packets that are here all the same, flow by flow.
    Meter,
}

impl Rule {
    /// The kernel's instructions.
    pub fn exprs(&self) -> Vec<Expr> {
        let packets = Expr::Ct { key: CtKey::Packets, dreg: REG };
        let id = Expr::Ct { key: CtKey::Id, dreg: REG };
        let cmp = |op, data: &[u8]| Expr::Cmp { sreg: REG, op, data: data.to_vec() };
        let goto = Expr::Goto { chain: OFFLOAD_CHAIN.to_owned() };
        let lookup =
            |set: OwnSet, inverted| Expr::Lookup { set: set.name().into_owned(), sreg: REG, inverted };
        match self {
            Self::Assist => {
                vec![packets, cmp(CmpOp::Eq, &[0; 8]), id, lookup(OwnSet::Assist, false), goto]
            }
            Self::Threshold { threshold } => vec![
                packets,
                // Greater-than compares bytes in order, so the value has to be big-endian first.
                Expr::HostToNet { reg: REG, size: 8, len: 8 },
                cmp(CmpOp::Gt, &u64::from(*threshold).to_be_bytes()),
                goto,
            ],
            Self::Revoked => {
                let set = OwnSet::Revoked.name().into_owned();
                let again = Expr::UpdateCounter { set, sreg: REG };
                // nft loads the id twice.
                vec![id.clone(), lookup(OwnSet::Revoked, false), id, again, Expr::Return]
            }
            Self::OnlyEstablished => vec![
                Expr::Ct { key: CtKey::State, dreg: REG },
                cmp(CmpOp::Neq, &CT_STATE_ESTABLISHED.to_ne_bytes()),
                Expr::Return,
            ],
            Self::SpareIpsec => {
                vec![Expr::Rt { key: RtKey::Ipsec, dreg: REG }, cmp(CmpOp::Eq, &[1]), Expr::Return]
            }
            Self::OnlyManagedInput => vec![
                Expr::Meta { key: MetaKey::InIfIndex, dreg: REG },
                lookup(OwnSet::Devices, true),
                Expr::Return,
            ],
            Self::OnlyManagedOutput => vec![
                Expr::Meta { key: MetaKey::OutIfIndex, dreg: REG },
                lookup(OwnSet::Devices, true),
                Expr::Return,
            ],
            Self::Excluded { set, end } => excluded(*set, *end),
            Self::ExcludedProtocol => vec![
                Expr::Meta { key: MetaKey::L4Proto, dreg: REG },
                lookup(OwnSet::Exclude(ExcludeSet::Protocols), false),
                Expr::Return,
            ],
            Self::ExcludedMark { mark: Mark { value, mask }, of } => {
                let mut exprs = vec![match of {
                    Marked::Packet => Expr::Meta { key: MetaKey::Mark, dreg: REG },
                    Marked::Connection => Expr::Ct { key: CtKey::Mark, dreg: REG },
                }];
                exprs.extend((*mask != u32::MAX).then(|| masked(&mask.to_ne_bytes())));
                exprs.extend([cmp(CmpOp::Eq, &value.to_ne_bytes()), Expr::Return]);
                exprs
            }
            Self::Offload => {
                vec![Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() }, Expr::Counter, Expr::Return]
            }
            Self::Meter => {
                vec![id, Expr::UpdateCounter { set: OwnSet::SlowPath.name().into_owned(), sreg: REG }]
            }
        }
    }

    /// The rule that these instructions are; `None` for any that we wouldn't write.
    pub fn recognise(exprs: &[Expr]) -> Option<Self> {
        let candidates = match exprs {
            [_, Expr::HostToNet { .. }, Expr::Cmp { data, .. }, ..] => {
                let packets = u64::from_be_bytes(data.as_slice().try_into().ok()?);
                vec![Self::Threshold { threshold: u32::try_from(packets).ok()? }]
            }
            [.., Expr::Lookup { set, .. }, Expr::Return] => match OwnSet::named(set)? {
                OwnSet::Exclude(ExcludeSet::Protocols) => vec![Self::ExcludedProtocol],
                OwnSet::Exclude(set) => End::ALL.map(|end| Self::Excluded { set, end }).into(),
                _ => vec![Self::OnlyManagedInput, Self::OnlyManagedOutput],
            },
            [load, between @ .., Expr::Cmp { data, .. }, Expr::Return] if is_mark(load) => {
                let value = u32::from_ne_bytes(data.as_slice().try_into().ok()?);
                let mask = match between {
                    [Expr::Bitwise { mask, .. }] => u32::from_ne_bytes(mask.as_slice().try_into().ok()?),
                    _ => u32::MAX,
                };
                [Marked::Packet, Marked::Connection]
                    .map(|of| Self::ExcludedMark { mark: Mark { value, mask }, of })
                    .into()
            }
            _ => {
                vec![
                    Self::Assist,
                    Self::Revoked,
                    Self::OnlyEstablished,
                    Self::SpareIpsec,
                    Self::Offload,
                    Self::Meter,
                ]
            }
        };
        candidates.into_iter().find(|rule| rule.exprs() == exprs)
    }

    /// Takes flows out that aren't to be offloaded, whatever else they are.
    pub fn is_exclusion(&self) -> bool {
        matches!(self, Self::Excluded { .. } | Self::ExcludedProtocol | Self::ExcludedMark { .. })
    }
}

impl End {
    /// All four.
    pub const ALL: [Self; 4] =
        [Self::OriginalSource, Self::OriginalDestination, Self::ReplySource, Self::ReplyDestination];

    /// The bit of `ct status` without which it is another end's twin.
    fn nat(self) -> Option<u32> {
        match self {
            Self::OriginalSource | Self::OriginalDestination => None,
            Self::ReplySource => Some(STATUS_DNAT),
            Self::ReplyDestination => Some(STATUS_SNAT),
        }
    }

    fn direction(self) -> Direction {
        match self {
            Self::OriginalSource | Self::OriginalDestination => Direction::Original,
            Self::ReplySource | Self::ReplyDestination => Direction::Reply,
        }
    }

    fn is_source(self) -> bool {
        matches!(self, Self::OriginalSource | Self::ReplySource)
    }
}

fn is_mark(expr: &Expr) -> bool {
    matches!(expr, Expr::Meta { key: MetaKey::Mark, .. } | Expr::Ct { key: CtKey::Mark, .. })
}

fn masked(mask: &[u8]) -> Expr {
    Expr::Bitwise { reg: REG, mask: mask.to_vec(), xor: vec![0; mask.len()] }
}

/// Mask of a prefix of `length` bits in so many bytes.
fn prefix_mask(length: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|byte| {
            u8::MAX.checked_shl(8 - u32::from(length).saturating_sub(8 * byte as u32).min(8)).unwrap_or(0)
        })
        .collect()
}

fn excluded(set: ExcludeSet, end: End) -> Vec<Expr> {
    let cmp = |op, data: &[u8]| Expr::Cmp { sreg: REG, op, data: data.to_vec() };
    let mut exprs = Vec::new();
    let protocol = match set {
        ExcludeSet::TcpPorts => Some(crate::core::flow::connection::TCP),
        ExcludeSet::UdpPorts => Some(crate::core::flow::connection::UDP),
        _ => None,
    };
    if let Some(protocol) = protocol {
        exprs.extend([Expr::Meta { key: MetaKey::L4Proto, dreg: REG }, cmp(CmpOp::Eq, &[protocol])]);
    }
    if let Some(bit) = end.nat() {
        exprs.extend([
            Expr::Ct { key: CtKey::Status, dreg: REG },
            masked(&bit.to_ne_bytes()),
            cmp(CmpOp::Neq, &[0; 4]),
        ]);
    }
    let (part, mask) = match (set, end.is_source()) {
        (ExcludeSet::V4(length), true) => (TuplePart::SourceV4, prefix_mask(length, 4)),
        (ExcludeSet::V4(length), false) => (TuplePart::DestinationV4, prefix_mask(length, 4)),
        (ExcludeSet::V6(length), true) => (TuplePart::SourceV6, prefix_mask(length, 16)),
        (ExcludeSet::V6(length), false) => (TuplePart::DestinationV6, prefix_mask(length, 16)),
        (_, true) => (TuplePart::SourcePort, Vec::new()),
        (_, false) => (TuplePart::DestinationPort, Vec::new()),
    };
    exprs.push(Expr::Ct { key: CtKey::Tuple(end.direction(), part), dreg: REG });
    if mask.iter().any(|byte| *byte != u8::MAX) {
        exprs.push(masked(&mask));
    }
    let set = OwnSet::Exclude(set).name().into_owned();
    exprs.extend([Expr::Lookup { set, sreg: REG, inverted: false }, Expr::Return]);
    exprs
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (devices, slow_path) = (OwnSet::Devices, OwnSet::SlowPath);
        match self {
            Self::Assist => write!(f, "ct packets 0 ct id @{} goto {OFFLOAD_CHAIN}", OwnSet::Assist),
            Self::Threshold { threshold } => write!(f, "ct packets > {threshold} goto {OFFLOAD_CHAIN}"),
            Self::Revoked => {
                let set = OwnSet::Revoked;
                write!(f, "ct id @{set} update @{set} {{ ct id counter }} return")
            }
            Self::OnlyEstablished => write!(f, "ct state != established return"),
            Self::SpareIpsec => write!(f, "rt ipsec exists return"),
            Self::OnlyManagedInput => write!(f, "iif != @{devices} return"),
            Self::OnlyManagedOutput => write!(f, "oif != @{devices} return"),
            Self::Excluded { set, end } => write_excluded(f, *set, *end),
            Self::ExcludedProtocol => {
                write!(f, "meta l4proto @{} return", OwnSet::Exclude(ExcludeSet::Protocols))
            }
            Self::ExcludedMark { mark: Mark { value, mask }, of } => {
                let of = match of {
                    Marked::Packet => "meta",
                    Marked::Connection => "ct",
                };
                match *mask {
                    u32::MAX => write!(f, "{of} mark {value:#010x} return"),
                    mask => write!(f, "{of} mark & {mask:#010x} == {value:#010x} return"),
                }
            }
            Self::Offload => write!(f, "flow add @{FLOWTABLE} counter return"),
            Self::Meter => write!(f, "update @{slow_path} {{ ct id counter }}"),
        }
    }
}

fn write_excluded(f: &mut fmt::Formatter<'_>, set: ExcludeSet, end: End) -> fmt::Result {
    match set {
        ExcludeSet::TcpPorts => write!(f, "meta l4proto tcp ")?,
        ExcludeSet::UdpPorts => write!(f, "meta l4proto udp ")?,
        _ => {}
    }
    match end.nat() {
        Some(STATUS_SNAT) => write!(f, "ct status snat ")?,
        Some(_) => write!(f, "ct status dnat ")?,
        None => {}
    }
    let direction = match end.direction() {
        Direction::Original => "original",
        Direction::Reply => "reply",
    };
    let side = if end.is_source() { "s" } else { "d" };
    match set {
        ExcludeSet::V4(length) => {
            write!(f, "ct {direction} ip {side}addr ")?;
            if length < 32 {
                let mask: [u8; 4] = prefix_mask(length, 4).try_into().expect("as long as asked for");
                write!(f, "& {} == ", Ipv4Addr::from(mask))?;
            }
        }
        ExcludeSet::V6(length) => {
            write!(f, "ct {direction} ip6 {side}addr ")?;
            if length < 128 {
                let mask: [u8; 16] = prefix_mask(length, 16).try_into().expect("as long as asked for");
                write!(f, "& {} == ", Ipv6Addr::from(mask))?;
            }
        }
        _ => write!(f, "ct {direction} proto-{} ", if end.is_source() { "src" } else { "dst" })?,
    }
    write!(f, "@{} return", OwnSet::Exclude(set))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_recognised_by_its_instructions() {
        let mut rules = vec![
            Rule::Assist,
            Rule::Threshold { threshold: 1 },
            Rule::Threshold { threshold: u32::MAX },
            Rule::OnlyEstablished,
            Rule::SpareIpsec,
            Rule::OnlyManagedInput,
            Rule::OnlyManagedOutput,
            Rule::ExcludedProtocol,
            Rule::Offload,
            Rule::Meter,
        ];
        for set in [
            ExcludeSet::V4(0),
            ExcludeSet::V4(32),
            ExcludeSet::V6(61),
            ExcludeSet::TcpPorts,
            ExcludeSet::UdpPorts,
        ] {
            rules.extend(End::ALL.map(|end| Rule::Excluded { set, end }));
        }
        for mark in [Mark { value: 1, mask: u32::MAX }, Mark { value: 0x10, mask: 0xff }] {
            rules.extend([Marked::Packet, Marked::Connection].map(|of| Rule::ExcludedMark { mark, of }));
        }
        for rule in rules {
            assert_eq!(Rule::recognise(&rule.exprs()), Some(rule.clone()));
            let mut changed = rule.exprs();
            changed.pop();
            assert_eq!(Rule::recognise(&changed), None, "{rule}");
        }
        assert_eq!(Rule::recognise(&[Expr::Counter]), None);
    }

    #[test]
    fn masks_of_prefixes() {
        assert_eq!(prefix_mask(0, 4), [0, 0, 0, 0]);
        assert_eq!(prefix_mask(9, 4), [255, 128, 0, 0]);
        assert_eq!(prefix_mask(24, 4), [255, 255, 255, 0]);
        assert_eq!(prefix_mask(32, 4), [255; 4]);
        assert_eq!(prefix_mask(128, 16), [255; 16]);
    }
}
