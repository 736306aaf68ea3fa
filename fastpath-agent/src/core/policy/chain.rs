//! Chains of other programs, as much of them as is kept.

use std::collections::BTreeSet;

use super::rule::Rule;

/// A table: its family (`NFPROTO_*`) and name.
pub type TableKey = (u8, String);

/// A set, by its table and name.
pub type SetKey = (TableKey, Box<str>);

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where it is hooked; `None` for one that is only jumped to.
    pub base: Option<Base>,
    /// Its rules in order; empty where what they do doesn't matter.
    pub rules: Vec<Rule>,
    /// Maps that say where packets of established connections go from here.
    pub maps: BTreeSet<Box<str>>,
    /// Its table has timeouts for connections, so the fate of a connection's first packet matters.
    pub sees_first: bool,
    /// Sets that its rules ask and whose elements run out; only netlink puts them in.
    pub expiring: BTreeSet<Box<str>>,
}

/// A base chain's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// "filter", "nat" or "route".
    pub kind: String,
    /// Number of the hook in its family.
    pub hook: u32,
    /// Priority in the hook.
    pub priority: i32,
    /// Its policy is to accept.
    pub accepts: bool,
    /// Devices, where the hook is one of theirs.
    pub devices: Vec<Device>,
}

/// Which devices a chain is hooked to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// The one of this name.
    Name(String),
    /// All whose names begin so (Linux 6.16).
    Prefix(String),
}

impl Device {
    /// Whether a device of this name is meant.
    pub fn is(&self, name: &str) -> bool {
        match self {
            Self::Name(device) => device == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}
