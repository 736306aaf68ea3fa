//! The rules of our chains: what each says in nft's words and in the kernel's instructions.

use std::fmt;

use super::{
    chain::OwnChain,
    conditions::Conditions,
    expr::{CmpOp, CtKey, Direction, Expr, MetaKey, RtKey},
    sets::{ExcludeSet, OwnSet},
};

mod evidence;
mod excluded;

pub use evidence::{Input, Traced};
pub use excluded::MaskedMark;
use excluded::{excluded, masked, write_excluded};

/// Register that our rules use (`NFT_REG_1`).
const REG: u32 = 1;
/// Value of `ct state established` (`NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`); a packet has one state.
const CT_STATE_ESTABLISHED: u32 = 1 << 1;

/// Bit of `ct status` that the flowtable sets (`IPS_OFFLOAD`), which nft has no word for.
const STATUS_OFFLOAD: u32 = 1 << 14;
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
    /// Who answers, if that isn't the destination.
    ReplySource,
    /// Whom the answers go to, if that isn't the source.
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
/// The first two are in the base chains, so that packets of short flows end at one comparison; those after them in the
/// chain behind it, in the order in which they are listed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Takes up connections that the agent has listed. Only those that are older than the first rule with `ct packets`
    /// have no packet counters: any other flow ends at the comparison with 0, also one that got the conntrack id of a
    /// listed one.
    Assist {
        /// Where their packets go.
        to: OwnChain,
    },
    /// Takes up flows from their last packet before the threshold is passed on: that one leaves its trace.
    Threshold {
        /// Packets of both directions, at least 1.
        threshold: u32,
        /// Where their packets go.
        to: OwnChain,
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
    /// So do packets that a bridge forwards within itself and shows to the forward hook (br_netfilter): in and out are the
    /// bridge, and the Ethernet destination isn't an address of a bridge.
    Bridged,
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
        mark: MaskedMark,
        /// Whose.
        of: Marked,
    },
    /// Flows that another program's rule wants every packet of stay on the normal path: its conditions, those that can be copied.
    EveryPacket {
        /// What packets of one direction meet.
        conditions: Conditions,
    },
    /// Counts packets of offloaded flows that are still on the forward path, flow by flow.
    MeterOffloaded,
    /// Sends packets on by their direction.
    ByDirection(Direction),
    /// A packet that leaves by an interface which policy rules name as input leaves its trace only: the kernel doesn't
    /// evaluate those rules when it guesses the other direction's route.
    RuleInput {
        /// Where traces are left.
        traced: Traced,
    },
    /// So does a packet whose other direction a policy rule could decide by what the guess doesn't have.
    Unguessed {
        /// The rule's conditions, turned round.
        matches: Conditions,
        /// Where traces are left.
        traced: Traced,
    },
    /// Offloads the flow if a packet of the other direction was accepted over the mirrored interfaces, and if the route back
    /// to this packet's source leads out where it came in. `flow add` ends the rule where the flow can't be offloaded, so
    /// the counter counts offloads, and other packets leave their trace.
    Seen {
        /// This packet's direction.
        direction: Direction,
        /// Where the input interface is read.
        input: Input,
        /// Where traces are left.
        traced: Traced,
    },
    /// Leaves the packet's trace. A packet that can't leave it, since the set is full, goes on to the next rule.
    Trace {
        /// Its direction.
        direction: Direction,
        /// Where the input interface is read.
        input: Input,
    },
    /// The same for packets of this direction, where those of both come by.
    TraceOf(Direction),
    /// Counts packets that couldn't leave their trace.
    Untraced,
}

impl Rule {
    /// The kernel's instructions.
    pub fn exprs(&self) -> Vec<Expr> {
        let packets = Expr::Ct { key: CtKey::Packets, dreg: REG };
        let id = Expr::Ct { key: CtKey::Id, dreg: REG };
        let cmp = |op, data: &[u8]| Expr::Cmp { sreg: REG, op, data: data.to_vec() };
        let goto = |chain: &OwnChain| Expr::Goto { chain: chain.name().to_owned() };
        let count = || Expr::UpdateCounter { set: OwnSet::SlowPath.name().into_owned(), sreg: REG };
        let lookup =
            |set: OwnSet, inverted| Expr::Lookup { set: set.name().into_owned(), sreg: REG, inverted };
        match self {
            Self::Assist { to } => {
                vec![packets, cmp(CmpOp::Eq, &[0; 8]), id, lookup(OwnSet::Assist, false), goto(to)]
            }
            Self::Threshold { threshold, to } => vec![
                packets,
                // Greater-than compares bytes in order, so the value has to be big-endian first.
                Expr::HostToNet { reg: REG, size: 8, len: 8 },
                cmp(CmpOp::Gt, &u64::from(threshold.saturating_sub(1)).to_be_bytes()),
                goto(to),
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
            Self::ExcludedMark { mark: MaskedMark { value, mask }, of } => {
                let mut exprs = vec![match of {
                    Marked::Packet => Expr::Meta { key: MetaKey::Mark, dreg: REG },
                    Marked::Connection => Expr::Ct { key: CtKey::Mark, dreg: REG },
                }];
                exprs.extend((*mask != u32::MAX).then(|| masked(&mask.to_ne_bytes())));
                exprs.extend([cmp(CmpOp::Eq, &value.to_ne_bytes()), Expr::Return]);
                exprs
            }
            Self::MeterOffloaded => vec![
                Expr::Ct { key: CtKey::Status, dreg: REG },
                masked(&STATUS_OFFLOAD.to_ne_bytes()),
                cmp(CmpOp::Neq, &[0; 4]),
                id,
                count(),
                Expr::Return,
            ],
            Self::EveryPacket { conditions } => [&conditions.0[..], &[Expr::Return]].concat(),
            Self::Bridged => evidence::bridged(),
            Self::ByDirection(direction) => evidence::by_direction(*direction),
            Self::RuleInput { traced } => evidence::rule_input(*traced),
            Self::Unguessed { matches, traced } => evidence::unguessed(matches, *traced),
            Self::Seen { direction, input, traced } => evidence::seen(*direction, *input, *traced),
            Self::Trace { direction, input } => evidence::trace(*direction, *input),
            Self::TraceOf(direction) => evidence::trace_of(*direction),
            Self::Untraced => vec![Expr::Counter],
        }
    }

    /// The rule that these instructions are; `None` for any that we wouldn't write.
    pub fn recognise(exprs: &[Expr]) -> Option<Self> {
        let candidates = match exprs {
            [_, Expr::HostToNet { .. }, Expr::Cmp { data, .. }, Expr::Goto { chain }] => {
                let packets = u64::from_be_bytes(data.as_slice().try_into().ok()?);
                let threshold = u32::try_from(packets.checked_add(1)?).ok()?;
                vec![Self::Threshold { threshold, to: OwnChain::named(chain)? }]
            }
            [.., Expr::Lookup { set, .. }, Expr::Return] => match OwnSet::named(set)? {
                OwnSet::BridgeAddresses | OwnSet::RuleInputs => evidence::candidates(exprs),
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
                    .map(|of| Self::ExcludedMark { mark: MaskedMark { value, mask }, of })
                    .into()
            }
            _ => {
                let mut rules = vec![
                    Self::Assist { to: OwnChain::Offload },
                    Self::Assist { to: OwnChain::Trace },
                    Self::Revoked,
                    Self::OnlyEstablished,
                    Self::SpareIpsec,
                    Self::MeterOffloaded,
                ];
                rules.extend(evidence::candidates(exprs));
                rules
            }
        };
        candidates.into_iter().find(|rule| rule.exprs() == exprs).or_else(|| {
            let (Expr::Return, conditions) = exprs.split_last()? else { return None };
            Some(Self::EveryPacket { conditions: Conditions::recognise(conditions)? })
        })
    }

    /// Takes flows out that aren't to be offloaded, whatever else they are.
    pub fn is_exclusion(&self) -> bool {
        matches!(self, Self::Excluded { .. } | Self::ExcludedProtocol | Self::ExcludedMark { .. })
    }

    /// Keeps packets from offloading their flow: flows that are in the flowtable when it comes have to leave it.
    pub fn is_guard(&self) -> bool {
        self.is_exclusion()
            || matches!(
                self,
                Self::EveryPacket { .. }
                    | Self::RuleInput { .. }
                    | Self::Unguessed { .. }
                    | Self::Seen { traced: Traced::Postrouting, .. }
            )
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

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (devices, slow_path) = (OwnSet::Devices, OwnSet::SlowPath);
        match self {
            Self::Assist { to } => write!(f, "ct packets 0 ct id @{} goto {to}", OwnSet::Assist),
            Self::Threshold { threshold, to } => {
                write!(f, "ct packets > {} goto {to}", threshold.saturating_sub(1))
            }
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
            Self::ExcludedMark { mark: MaskedMark { value, mask }, of } => {
                let of = match of {
                    Marked::Packet => "meta",
                    Marked::Connection => "ct",
                };
                match *mask {
                    u32::MAX => write!(f, "{of} mark {value:#010x} return"),
                    mask => write!(f, "{of} mark & {mask:#010x} == {value:#010x} return"),
                }
            }
            Self::MeterOffloaded => {
                write!(f, "ct status {STATUS_OFFLOAD:#x} update @{slow_path} {{ ct id counter }} return")
            }
            Self::EveryPacket { conditions } if conditions.0.is_empty() => f.write_str("return"),
            Self::EveryPacket { conditions } => write!(f, "{conditions} return"),
            evidence => f.write_str(&evidence::text(evidence).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_recognised_by_its_instructions() {
        let mut rules = vec![
            Rule::Assist { to: OwnChain::Offload },
            Rule::Assist { to: OwnChain::Trace },
            Rule::Threshold { threshold: 1, to: OwnChain::Offload },
            Rule::Threshold { threshold: u32::MAX, to: OwnChain::Trace },
            Rule::MeterOffloaded,
            Rule::OnlyEstablished,
            Rule::SpareIpsec,
            Rule::OnlyManagedInput,
            Rule::OnlyManagedOutput,
            Rule::ExcludedProtocol,
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
        for mark in [MaskedMark { value: 1, mask: u32::MAX }, MaskedMark { value: 0x10, mask: 0xff }] {
            rules.extend([Marked::Packet, Marked::Connection].map(|of| Rule::ExcludedMark { mark, of }));
        }
        rules.extend(evidence::candidates(&[]));
        let matches = Conditions::of_family(10);
        for traced in [Traced::Forward, Traced::Postrouting] {
            let matches = matches.clone();
            rules.push(Rule::Unguessed { matches, traced });
        }
        // Those of which a part is one of our rules too.
        let whole = |rule: &Rule| !matches!(rule, Rule::ByDirection(_));
        for rule in rules {
            let recognised = Rule::recognise(&rule.exprs());
            assert_eq!(recognised.as_ref().map(Rule::exprs), Some(rule.exprs()), "{rule}: {recognised:?}");
            let mut changed = rule.exprs();
            changed.pop();
            if whole(&rule) {
                assert_ne!(Rule::recognise(&changed), Some(rule.clone()), "{rule}");
            }
        }
        assert_eq!(Rule::recognise(&[Expr::Counter, Expr::Counter]), None);
    }
}
