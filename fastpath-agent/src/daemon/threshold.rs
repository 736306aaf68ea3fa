//! `--fastpath-threshold=auto`: checks now and then how long this node's flows are, and takes the threshold that pays.

use tokio::sync::oneshot;
use tracing::{debug, info};

use super::{Agent, DaemonError, host::Host, offload::Offload};
use crate::{
    core::{
        pace::Trigger,
        ruleset::observed::Owner,
        threshold::{Advice, DEFAULT, LADDER, Lengths},
    },
    kernel::{LinkSource, Ruleset, nft::Nft},
};

/// Least time from one change to the next, and from one look to the next.
const EVERY_MS: u64 = 600_000;

/// When it checks.
pub(super) struct Chooser {
    due_ms: u64,
    counting: Option<oneshot::Receiver<Lengths>>,
}

impl Chooser {
    /// Checks for the first time once the threshold is old enough; it is `age_ms` old now.
    pub(super) fn new(age_ms: Option<u64>, now_ms: u64) -> Self {
        let wait = age_ms.map_or(0, |age| EVERY_MS.saturating_sub(age));
        Self { due_ms: now_ms.saturating_add(wait), counting: None }
    }

    /// What was counted; never without a check. `None` if it failed. Cancelling it loses nothing.
    pub(super) async fn next(chooser: &mut Option<Self>) -> Option<Lengths> {
        let counting = chooser.as_mut().and_then(|chooser| chooser.counting.as_mut());
        let Some(counting) = counting else { return std::future::pending().await };
        let lengths = counting.await.ok();
        if let Some(chooser) = chooser {
            chooser.counting = None;
        }
        lengths
    }
}

/// The threshold to begin with: the one that an earlier agent chose, if its rules are still installed.
pub(super) fn standing() -> u32 {
    let table = Nft::open().and_then(|mut nft| nft.observe()).ok().and_then(|observed| observed.table);
    let own = table.filter(|table| table.owner == Owner::Agent);
    own.and_then(|table| table.threshold()).filter(|chosen| LADDER.contains(chosen)).unwrap_or(DEFAULT)
}

impl<H: Host> Agent<H> {
    /// Begins a check if one is due.
    pub(super) fn look_at_lengths(&mut self) {
        let now = self.now();
        let offloads = self.config.rules.offloads;
        let Some(chooser) = self.chooser.as_mut().filter(|chooser| offloads && now >= chooser.due_ms) else {
            return;
        };
        match self.links_source.addresses() {
            Ok(addresses) => {
                chooser.due_ms = now + EVERY_MS;
                chooser.counting = Some(self.host.lengths(&self.config, addresses));
            }
            Err(error) => debug!(%error, "the lengths of flows can't be read yet"),
        }
    }

    /// Takes another threshold, if the lengths are for one.
    pub(super) fn choose_threshold(&mut self, lengths: Option<&Lengths>) -> Result<(), DaemonError> {
        let standing = self.config.rules.threshold;
        let Some(advice) = lengths.and_then(|lengths| lengths.advise(standing)) else { return Ok(()) };
        debug!(?advice, "checked the lengths of flows");
        // It may have been switched off while they were counted.
        if !advice.is_to_change() || !self.config.rules.offloads {
            return Ok(());
        }
        let Advice { directions, now, best } = advice;
        info!(
            from = now.threshold,
            to = best.threshold,
            directions,
            fast_percent_before = now.fast_percent,
            fast_percent = best.fast_percent,
            "threshold changed, by the lengths of this node's connections"
        );
        let threshold = best.threshold;
        self.config.rules.threshold = threshold;
        // What the programs signal has to be what the rules offload: those follow first where more flows are offloaded.
        if threshold > standing {
            self.signal_after(threshold);
        }
        if let Some(Offload { reconciler, .. }) = &mut self.offload {
            reconciler.want(|policy| policy.threshold = threshold);
        }
        self.reconcile(Trigger::Threshold)?;
        if threshold < standing {
            self.signal_after(threshold);
        }
        if let Some(crossings) = &mut self.crossings {
            crossings.judge_again();
        }
        Ok(())
    }

    pub(super) fn signal_after(&mut self, threshold: u32) {
        let Some(watch) = &mut self.watch else { return };
        if let Err(error) = watch.eyes().set_threshold(threshold) {
            debug!(%error, "flows are signalled as before");
        }
    }
}
