//! The fate of packets that a rule matches, and which packets of established connections it matches.

use super::expr::Verdict;
use crate::core::ruleset::conditions::Conditions;

/// State bit of established connections, of nft and of xt_conntrack (`NF_CT_STATE_BIT`, `XT_CONNTRACK_STATE_BIT`).
pub(super) const ESTABLISHED: u32 = 1 << 1;

/// Packets that meet these conditions go to that chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    /// The chain's name.
    pub to: Box<str>,
    /// All of them.
    pub conditions: Conditions,
}

/// What a rule does with a packet that matches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The next rule sees it.
    Continue,
    /// No further rule of this base chain sees it.
    Accept,
    /// It may be dropped, rejected, stolen or queued; or the rule holds something that we don't know.
    Deny,
    /// Back to the chain that jumped here.
    Return,
    /// Another chain, and back.
    Jump(Box<str>),
    /// Another chain.
    Goto(Box<str>),
    /// One of these, as a map says, or the next rule sees it.
    Choose(Box<[Self]>),
}

impl Outcome {
    /// All that may come of it.
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Choose(outcomes) => outcomes,
            one => std::slice::from_ref(one),
        }
    }
}

/// Which packets of established connections match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Established {
    /// None: the rule asks for another state.
    None,
    /// Those that meet conditions.
    Some,
    /// Every one.
    All,
}

pub(super) fn outcome(verdict: Verdict<'_>) -> Outcome {
    match verdict {
        Verdict::Accept => Outcome::Accept,
        Verdict::Continue => Outcome::Continue,
        Verdict::Return => Outcome::Return,
        Verdict::Jump(chain) => Outcome::Jump(chain.into()),
        Verdict::Goto(chain) => Outcome::Goto(chain.into()),
        Verdict::Drop | Verdict::Queue | Verdict::Unknown => Outcome::Deny,
    }
}
