//! What is read again while the agent runs: exclusions and the mode. Switched off, the table goes and its flows return to the
//! normal path with their next packets, while counting goes on.

use std::sync::Arc;

use tracing::{error, info};

use super::{Agent, DaemonError, host::Host, offload::Offload};
use crate::core::pace::Trigger;

impl<H: Host> Agent<H> {
    /// Reads the file of exclusions again, and that of the mode. One that is wrong is logged, and what it said before stays.
    pub(super) fn reload(&mut self) -> Result<(), DaemonError> {
        self.supervisor.reloading();
        match self.config.rules.exclude.load() {
            Ok(exclusions) => {
                info!(exclusions = exclusions.len(), "exclusions read again");
                self.config.rules.exclusions = Arc::new(exclusions);
                if let Some(offload) = &mut self.offload {
                    offload
                        .reconciler
                        .want(|policy| policy.exclusions = Arc::clone(&self.config.rules.exclusions));
                }
                // Old connections that were excluded may be helped now.
                if let Some(crossings) = &mut self.crossings {
                    crossings.judge_again();
                    crossings.arm_old();
                }
                // What is reconciled then ends the reloading.
                self.pace.trigger(Trigger::Exclusions, self.now());
            }
            Err(error) => {
                error!("exclusions unchanged: {error}");
                self.tell();
            }
        }
        self.follow_mode()
    }

    /// Reads the mode again. A wrong one is logged, and the old one stays.
    pub(super) fn follow_mode(&mut self) -> Result<(), DaemonError> {
        let mode = match self.config.mode.load() {
            Ok(mode) => mode,
            Err(_) if self.config.mode.is_blank() => return Ok(()),
            Err(error) => {
                error!("mode unchanged: {error}");
                return Ok(());
            }
        };
        let rules = &mut self.config.rules;
        let offloads = mode.offloads(&self.config.node);
        if offloads == rules.offloads {
            return Ok(());
        }
        rules.offloads = offloads;
        let threshold = rules.threshold_in_force();
        match offloads {
            true => info!(%mode, threshold, "switched on: flows are offloaded"),
            false => {
                info!(%mode, "switched off: flows are only watched, offloaded ones return to the normal path")
            }
        }
        // Nothing is signalled that no rule offloads.
        if threshold == 0 {
            self.signal_after(0);
        }
        if let Some(Offload { reconciler, bug: None, .. }) = &mut self.offload {
            reconciler.want(|policy| policy.threshold = threshold);
        }
        self.reconcile(Trigger::Threshold)?;
        if let Some(crossings) = &mut self.crossings {
            crossings.judge_again();
        }
        if threshold > 0 {
            self.signal_after(threshold);
            if let Some(crossings) = &mut self.crossings {
                crossings.arm_old();
            }
            self.look_at_lengths();
        }
        Ok(())
    }
}
