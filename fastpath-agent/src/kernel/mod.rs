//! The only place with I/O and `unsafe`: nftables, links, conntrack, eBPF, probes; each behind a narrow trait.

use crate::core::ruleset::{
    observed::{Generation, Observed, ObservedSet},
    plan::Op,
};

pub mod alarm;
pub mod bpf;
pub mod canary;
pub mod conntrack;
mod ethtool;
pub mod event_socket;
pub mod facts;
#[cfg(test)]
pub mod fake;
pub mod flows;
pub mod ipvs;
pub mod links;
pub mod lock;
pub mod memory;
pub mod module_monitor;
pub mod netconf;
mod nfnetlink;
pub mod nft;
pub mod node_monitor;
pub mod probe;
pub mod route;
pub mod route_rules;
mod rtnetlink;
mod socket_filter;
pub mod surroundings;
pub mod tap;
pub mod why;
pub mod xfrm;

/// Keys of exclusions that needn't be read.
#[derive(Clone, Copy, Debug)]
pub enum Unread<'k> {
    /// None of them: the sets are shown without keys.
    Exclusions,
    /// Those of sets that are still these.
    Known(&'k [ObservedSet]),
}

/// The ruleset as far as it concerns us.
pub trait Ruleset {
    /// Reads all that stands under our table's name, at one generation (reads again when it changed meanwhile).
    fn observe(&mut self) -> Result<Observed, nft::NftError>;

    /// The same without reading keys of exclusions, of which there may be very many.
    fn observe_but(&mut self, unread: Unread<'_>) -> Result<Observed, nft::NftError> {
        let _ = unread;
        self.observe()
    }

    /// Applies `ops` in one transaction, provided that the ruleset is still at `expected`; all or nothing.
    /// Returns the generation after the commit. Anything above `expected + 1` says that others changed something too.
    fn commit(&mut self, ops: &[Op], expected: Generation) -> Result<Generation, nft::CommitError>;
}
