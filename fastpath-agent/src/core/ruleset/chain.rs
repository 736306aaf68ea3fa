//! The chains of our table: their names and what each is for.

use std::fmt;

use crate::core::model::CHAIN;

/// One of our chains. In the order in which they can be made: a chain comes after those that its rules go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnChain {
    /// Leaves the trace of a packet of either direction: of packets that may not offload their flow, and of all where traces
    /// are left in the postrouting hook.
    Trace,
    /// For packets of the original direction: offloads the flow if the reply direction was seen, else leaves a trace.
    Original,
    /// The same for packets of the reply direction.
    Reply,
    /// For packets past the threshold: which flows are eligible.
    Offload,
    /// The base chain in the postrouting hook, there only while others may deny packets in it.
    Postrouting,
    /// The base chain in the forward hook.
    Base,
}

impl OwnChain {
    /// All of them, in the order in which they can be made.
    pub const ALL: [Self; 6] =
        [Self::Trace, Self::Original, Self::Reply, Self::Offload, Self::Postrouting, Self::Base];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "kindnet-original-chain",
            Self::Reply => "kindnet-reply-chain",
            Self::Trace => "kindnet-trace-chain",
            Self::Offload => "kindnet-offload-chain",
            Self::Postrouting => "kindnet-postrouting-chain",
            Self::Base => CHAIN,
        }
    }

    /// The chain of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|chain| chain.name() == name)
    }

    /// Number of its hook (enum nf_inet_hooks); `None` for a chain that other chains go to.
    pub fn hook(self) -> Option<u32> {
        match self {
            Self::Base => Some(2),
            Self::Postrouting => Some(4),
            _ => None,
        }
    }
}

impl fmt::Display for OwnChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
