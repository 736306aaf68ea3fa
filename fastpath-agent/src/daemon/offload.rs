//! The half of the agent that concerns the ruleset: absent where the kernel has no flowtable.

use std::{collections::BTreeSet, sync::Arc};

use tracing::warn;

use super::{
    host::{Host, Linux},
    reconcile::Reconciler,
    revalidate::Revalidation,
};
use crate::{
    config::Config,
    core::{
        flow::{Node, left_out::LeftOut},
        link::table::LinkTable,
    },
    kernel::{
        RulesetMonitor,
        facts::KernelName,
        nft::{Event, Monitor, Nft, NftError},
        probe::Kernel,
    },
};

pub(super) struct Offload<H: Host> {
    pub(super) monitor: H::Monitor,
    pub(super) revalidation: Revalidation,
    pub(super) reconciler: Reconciler<H::Ruleset>,
    /// The bug of this kernel that offloading is switched off for.
    pub(super) bug: Option<&'static str>,
}

impl Offload<Linux> {
    /// Subscribes before anything is read, so that nothing is missed in between.
    pub(super) fn open(config: &Config, kernel: &Kernel) -> Result<Option<Self>, NftError> {
        if let Some(reason) = kernel.lacks_flowtable() {
            warn!("nothing is offloaded, flows are only watched: {reason}");
            return Ok(None);
        }
        let mut nft = Nft::open()?;
        let monitor = Monitor::open(&nft)?;
        let revalidation = Revalidation::start(config, &mut nft);
        let mut rules = config.rules.clone();
        let bug = rules.avoid_known_bugs(&KernelName::read().names());
        if let Some(bug) = bug {
            warn!(
                kernel = kernel.release,
                bug = bug.name,
                "nothing is offloaded, flows are only watched: this kernel has a known bug: {}. Use one with \
                 the fix (Linux {}), or start the agent with --ignore-known-bugs",
                bug.what,
                bug.fixed_in
            );
        }
        let policy = rules.policy(kernel.flowtable_counter.is_supported(), kernel.rt_ipsec.is_supported());
        let reconciler = Reconciler::new(nft, policy, config.foreign);
        Ok(Some(Self { monitor, revalidation, reconciler, bug: bug.map(|bug| bug.name) }))
    }
}

impl<H: Host> Offload<H> {
    /// The next change of the ruleset; never where there is none to follow.
    pub(super) async fn next(offload: &mut Option<Self>) -> Result<Event, NftError> {
        match offload {
            Some(offload) => offload.monitor.next().await,
            None => std::future::pending().await,
        }
    }
}

/// What flows are judged by, but for addresses and clocks.
pub(super) fn judges<H: Host>(links: &LinkTable, offload: Option<&Offload<H>>, config: &Config) -> Node {
    let (threshold, managed) = match offload.and_then(|o| o.reconciler.offloads()) {
        Some((threshold, managed)) => (Some(threshold), links.with_ports(&managed.collect())),
        None => (None, BTreeSet::new()),
    };
    let names = links.iter().map(|link| (link.index, link.name.clone())).collect();
    let exclusions = Arc::clone(&config.rules.exclusions);
    let rules = offload.map_or(&[][..], |offload| &offload.reconciler.surroundings().rules);
    let left_out = Arc::new(LeftOut::new(rules, |_| true));
    let unselected = config.rules.selection.left_out(links.iter());
    Node { threshold, exclusions, left_out, managed, unselected, names, ..Node::default() }
}
