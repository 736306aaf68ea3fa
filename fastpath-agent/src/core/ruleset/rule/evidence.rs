//! Evidence of both directions: the rules by which a packet offloads its flow only if a packet of the other direction was
//! accepted over the mirrored interfaces, and leaves a trace for that one otherwise.
//!
//! The flowtable takes both directions at once and guesses the other one's route from this packet. Without evidence a
//! deny of one direction is never enforced, and asymmetric routes become black holes.

use super::{REG, Rule};
use crate::core::{
    model::FLOWTABLE,
    ruleset::{
        chain::OwnChain,
        conditions::Conditions,
        expr::{CmpOp, CtKey, Direction, Expr, MetaKey},
        sets::OwnSet,
    },
};

/// Registers of a key's second and third part (`NFT_REG32_01` and `_02`: 4 bytes each behind [`REG`]).
const SECOND: u32 = 9;
const THIRD: u32 = 10;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// Where a packet's input interface is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// `iif`.
    Link,
    /// `meta sdif`, of a link in a VRF: there `iif` is the VRF's device.
    VrfLink,
}

/// Where traces are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traced {
    /// In the forward hook.
    Forward,
    /// In the postrouting hook, by packets that leave the node: then a flow needs a trace of this packet's direction too.
    Postrouting,
}

/// Both.
const TRACED: [Traced; 2] = [Traced::Forward, Traced::Postrouting];

impl Input {
    fn key(self) -> MetaKey {
        match self {
            Self::Link => MetaKey::InIfIndex,
            Self::VrfLink => MetaKey::SlaveIfIndex,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Link => "iif",
            Self::VrfLink => "meta sdif",
        }
    }

    /// The condition that the packet has such an input interface.
    fn condition(self) -> Vec<Expr> {
        match self {
            Self::Link => Vec::new(),
            Self::VrfLink => vec![
                Expr::Meta { key: MetaKey::SlaveIfIndex, dreg: REG },
                Expr::Cmp { sreg: REG, op: CmpOp::Neq, data: vec![0; 4] },
            ],
        }
    }

    fn condition_text(self) -> &'static str {
        match self {
            Self::Link => "",
            Self::VrfLink => "meta sdif != 0 ",
        }
    }

    /// `ct id . iif . oif`.
    fn own(self) -> Vec<Expr> {
        key(self.key(), MetaKey::OutIfIndex)
    }

    /// `ct id . oif . iif`.
    fn mirrored(self) -> Vec<Expr> {
        key(MetaKey::OutIfIndex, self.key())
    }
}

impl Input {
    /// In the postrouting hook there is no `meta sdif`. Where traces are left there the VRF replaces its links, so
    /// that the other direction is known by the VRF and by the link that it left by.
    fn mirrored_behind_postrouting(self) -> Vec<Expr> {
        match self {
            Self::Link => self.mirrored(),
            Self::VrfLink => key(MetaKey::InIfIndex, MetaKey::SlaveIfIndex),
        }
    }

    fn mirrored_text(self, traced: Traced) -> &'static str {
        match (self, traced) {
            (Self::Link, _) => "ct id . oif . iif",
            (Self::VrfLink, Traced::Forward) => "ct id . oif . meta sdif",
            (Self::VrfLink, Traced::Postrouting) => "ct id . iif . meta sdif",
        }
    }
}

fn key(second: MetaKey, third: MetaKey) -> Vec<Expr> {
    vec![
        Expr::Ct { key: CtKey::Id, dreg: REG },
        Expr::Meta { key: second, dreg: SECOND },
        Expr::Meta { key: third, dreg: THIRD },
    ]
}

fn lookup(set: OwnSet, inverted: bool) -> Expr {
    Expr::Lookup { set: set.name().into_owned(), sreg: REG, inverted }
}

fn goto(chain: OwnChain) -> Expr {
    Expr::Goto { chain: chain.name().to_owned() }
}

/// See [`Rule::Seen`].
pub(super) fn seen(direction: Direction, input: Input, traced: Traced) -> Vec<Expr> {
    let mut exprs = input.condition();
    match traced {
        Traced::Forward => {
            exprs.extend(input.mirrored());
            exprs.push(lookup(OwnSet::Seen(direction.other()), false));
        }
        Traced::Postrouting => {
            exprs.extend(input.mirrored_behind_postrouting());
            exprs.push(lookup(OwnSet::Seen(direction.other()), false));
            exprs.extend(Input::Link.own());
            exprs.push(lookup(OwnSet::Seen(direction), false));
        }
    }
    exprs.extend([
        Expr::RouteBack { dreg: REG },
        Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: 1_u32.to_ne_bytes().to_vec() },
        Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() },
        Expr::Counter,
        Expr::Return,
    ]);
    exprs
}

/// See [`Rule::Trace`].
pub(super) fn trace(direction: Direction, input: Input) -> Vec<Expr> {
    let mut exprs = input.condition();
    exprs.extend(input.own());
    exprs.push(Expr::Update { set: OwnSet::Seen(direction).name().into_owned(), sreg: REG });
    exprs.push(Expr::Return);
    exprs
}

/// What keeps a packet from offloading its flow but lets it leave its trace. It goes there for good: a rule that
/// left the trace itself would end where the set is full, and the next one could offload the flow.
fn spared(traced: Traced) -> Expr {
    match traced {
        Traced::Forward => goto(OwnChain::Trace),
        Traced::Postrouting => Expr::Return,
    }
}

/// See [`Rule::RuleInput`].
pub(super) fn rule_input(traced: Traced) -> Vec<Expr> {
    let leaves_by = Expr::Meta { key: MetaKey::OutIfIndex, dreg: REG };
    vec![leaves_by, lookup(OwnSet::RuleInputs, false), spared(traced)]
}

/// See [`Rule::Unguessed`].
pub(super) fn unguessed(matches: &Conditions, traced: Traced) -> Vec<Expr> {
    [&matches.0[..], &[spared(traced)]].concat()
}

/// See [`Rule::ByDirection`].
pub(super) fn by_direction(direction: Direction) -> Vec<Expr> {
    match direction {
        Direction::Original => {
            let mut exprs = is_of(direction);
            exprs.push(goto(OwnChain::Original));
            exprs
        }
        Direction::Reply => vec![goto(OwnChain::Reply)],
    }
}

/// See [`Rule::TraceOf`].
pub(super) fn trace_of(direction: Direction) -> Vec<Expr> {
    let mut exprs = is_of(direction);
    exprs.extend(trace(direction, Input::Link));
    exprs
}

/// `ct direction` (`IP_CT_DIR_ORIGINAL` is 0, `IP_CT_DIR_REPLY` 1).
fn is_of(direction: Direction) -> Vec<Expr> {
    let number = match direction {
        Direction::Original => 0,
        Direction::Reply => 1,
    };
    let load = Expr::Ct { key: CtKey::Direction, dreg: REG };
    vec![load, Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: vec![number] }]
}

/// See [`Rule::Bridged`].
pub(super) fn bridged() -> Vec<Expr> {
    vec![
        Expr::Meta { key: MetaKey::InIfIndex, dreg: REG },
        Expr::Meta { key: MetaKey::OutIfIndex, dreg: SECOND },
        lookup(OwnSet::Bridges, false),
        Expr::Meta { key: MetaKey::InIfType, dreg: REG },
        Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: ETHERNET.to_ne_bytes().to_vec() },
        Expr::Payload { base: crate::core::ruleset::expr::PayloadBase::Link, offset: 0, len: 6, dreg: REG },
        lookup(OwnSet::BridgeAddresses, true),
        Expr::Return,
    ]
}

/// Rules of this kind that these instructions could be, each to be compared with them.
pub(super) fn candidates(exprs: &[Expr]) -> Vec<Rule> {
    let mut rules = vec![Rule::Bridged, Rule::Untraced];
    for direction in Direction::ALL {
        rules.extend([Rule::ByDirection(direction), Rule::TraceOf(direction)]);
        for input in [Input::Link, Input::VrfLink] {
            rules.push(Rule::Trace { direction, input });
            rules.extend(TRACED.map(|traced| Rule::Seen { direction, input, traced }));
        }
    }
    rules.extend(TRACED.map(|traced| Rule::RuleInput { traced }));
    let matches = exprs.split_last().and_then(|(_, conditions)| Conditions::recognise(conditions));
    rules.extend(
        matches
            .into_iter()
            .flat_map(|matches| TRACED.map(|traced| Rule::Unguessed { matches: matches.clone(), traced })),
    );
    rules
}

/// The rule as `nft` writes it.
pub(super) fn text(rule: &Rule) -> Option<String> {
    let seen = |direction| OwnSet::Seen(direction);
    let spared = |traced| match traced {
        Traced::Forward => format!("goto {}", OwnChain::Trace),
        Traced::Postrouting => "return".to_owned(),
    };
    Some(match rule {
        Rule::Seen { direction, input, traced } => {
            let own = match traced {
                Traced::Forward => String::new(),
                Traced::Postrouting => format!("ct id . iif . oif @{} ", seen(*direction)),
            };
            format!(
                "{}{} @{} {own}fib saddr . mark . iif oif exists flow add @{FLOWTABLE} counter return",
                input.condition_text(),
                input.mirrored_text(*traced),
                seen(direction.other()),
            )
        }
        Rule::Trace { direction, input } => format!(
            "{}update @{} {{ ct id . {} . oif }} return",
            input.condition_text(),
            seen(*direction),
            input.word(),
        ),
        Rule::TraceOf(direction) => {
            format!("ct direction {direction} update @{} {{ ct id . iif . oif }} return", seen(*direction))
        }
        Rule::Untraced => "counter".to_owned(),
        Rule::RuleInput { traced } => format!("oif @{} {}", OwnSet::RuleInputs, spared(*traced)),
        Rule::Unguessed { matches, traced } => format!("{matches} {}", spared(*traced)),
        Rule::ByDirection(Direction::Original) => {
            format!("ct direction original goto {}", OwnChain::Original)
        }
        Rule::ByDirection(Direction::Reply) => format!("goto {}", OwnChain::Reply),
        Rule::Bridged => {
            format!("iif . oif @{} ether daddr != @{} return", OwnSet::Bridges, OwnSet::BridgeAddresses)
        }
        _ => return None,
    })
}
