//! The only place with I/O and `unsafe`: nftables, links, conntrack, eBPF, probes; each behind a narrow trait.

use std::{collections::BTreeSet, io, net::IpAddr};

use crate::core::{
    forwarding::Announced,
    link::table::LinkEvent,
    model::Link,
    policy::known::Known,
    revalidate::{BaseChains, Notice},
    ruleset::{
        observed::{Generation, Observed, ObservedSet},
        plan::Op,
    },
};

pub mod alarm;
pub mod bpf;
pub mod canary;
mod capabilities;
pub mod clock;
pub mod confine;
pub mod conntrack;
pub mod conntrack_ends;
mod ethtool;
pub mod event_socket;
pub mod export_file;
pub mod facts;
#[cfg(test)]
pub mod fake;
pub mod file_watch;
pub mod flow_source;
pub mod flows;
pub mod forward_monitor;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod ipvs;
pub mod lengths;
pub mod links;
pub mod lock;
pub mod log_output;
pub mod memory;
pub mod misread_routes;
pub mod module_monitor;
pub mod names;
pub mod netconf;
mod netlink;
pub mod nft;
pub mod node_monitor;
pub mod old_connections;
pub mod probe;
pub mod route;
pub mod route_rules;
mod rtnetlink;
pub mod surface;
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
    /// Reads the table of our name, at one generation (reads again when it changed meanwhile).
    fn observe(&mut self) -> Result<Observed, nft::NftError>;

    /// The same without reading keys of exclusions, which may be very many.
    fn observe_but(&mut self, unread: Unread<'_>) -> Result<Observed, nft::NftError> {
        let _ = unread;
        self.observe()
    }

    /// Applies `ops` in one transaction, provided that the ruleset is still at `expected`; all or nothing.
    /// Returns the generation after the commit. Anything above `expected + 1` says that another program changed something too.
    fn commit(&mut self, ops: &[Op], expected: Generation) -> Result<Generation, nft::CommitError>;

    /// The base chains of all tables of all families.
    fn base_chains(&mut self) -> Result<BaseChains, nft::NftError>;
}

/// Follows changes of the ruleset.
pub trait RulesetMonitor {
    /// The next one. Cancelling it loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<nft::Event, nft::NftError>>;

    /// Calls `each` for all that other programs changed since the last call. The notices of a transaction are there when its
    /// [`nft::Event::Generation`] is, and those of the next ones may be.
    fn changes(&mut self, each: impl FnMut(&Notice<'_>)) -> Result<Result<(), nft::Lost>, nft::NftError>;
}

/// The links of a network namespace.
pub trait LinkSource {
    /// The next change. Cancelling it loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<LinkEvent, links::LinkError>>;

    /// A change that is there already, without waiting.
    fn try_next(&mut self) -> Option<LinkEvent>;

    /// All links. Where they keep changing, what is missing is announced.
    fn list(&mut self) -> Result<Vec<Link>, links::LinkError>;

    /// All addresses of this node.
    fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, links::LinkError>;
}

/// What else decides over forwarded packets: other programs' rulesets, policy rules, settings, eBPF programs.
pub trait Neighbourhood {
    /// Waits until something is announced, and gives all that waits. Cancelling it loses nothing.
    fn next(&mut self) -> impl Future<Output = io::Result<Vec<node_monitor::NodeEvent>>>;

    /// Settings of forwarding of all interfaces.
    fn settings(&mut self) -> io::Result<Vec<Announced>>;

    /// Names of iptables-legacy's tables; `None` where there can't be any.
    fn legacy_tables(&self) -> Option<io::Result<BTreeSet<String>>>;

    /// What brings up to date what is known, on any thread.
    fn reader(&self) -> fn(&mut Known, &surroundings::Ask) -> surroundings::Report;
}
