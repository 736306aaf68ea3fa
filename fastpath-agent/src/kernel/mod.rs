//! The only place with I/O and `unsafe`: nftables, links, conntrack, eBPF, probes; each behind a narrow trait.

use crate::core::{
    observed::{Generation, Observed, ObservedSet},
    plan::Op,
};

pub mod bpf;
pub mod conntrack;
#[cfg(test)]
pub mod fake;
pub mod flows;
pub mod links;
mod nfnetlink;
pub mod nft;
pub mod probe;

/// The ruleset as far as it concerns us.
pub trait Ruleset {
    /// Reads all that stands under our table's name, at one generation (reads again when it changed meanwhile).
    fn observe(&mut self) -> Result<Observed, nft::NftError>;

    /// The same, but what is in those sets of exclusions that are still the `known` ones isn't read again.
    fn observe_but(&mut self, known: &[ObservedSet]) -> Result<Observed, nft::NftError> {
        let _ = known;
        self.observe()
    }

    /// Applies `ops` in one transaction, provided that the ruleset is still at `expected`; all or nothing.
    /// Returns the generation after the commit. Anything above `expected + 1` says that others changed something too.
    fn commit(&mut self, ops: &[Op], expected: Generation) -> Result<Generation, nft::CommitError>;
}
