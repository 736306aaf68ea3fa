//! Follows flows across the threshold: the programs signal each one, conntrack says what became of it. Only while
//! somebody listens (`--v=5`); otherwise the programs signal nothing and nothing wakes up.

use std::{collections::VecDeque, time::Duration};

use fastpath_common::FlowEvent;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, trace, warn};

use crate::{
    config::Config,
    core::connection::{Entry, Tuple},
    kernel::{
        bpf::EventStream,
        conntrack::{Conntrack, ConntrackError},
    },
};

/// Verbosity from which flows are logged.
const VERBOSITY: u8 = 5;
/// Time that the packet which crossed has to reach the rule, on a busy node.
const GRACE: Duration = Duration::from_millis(200);
/// Events handled at a time, so that a burst doesn't hold up links and ruleset.
const BATCH: usize = 256;

/// The flows that crossed and whose fate isn't known yet.
pub struct Crossings {
    events: EventStream,
    conntrack: Conntrack,
    /// Directions to look at again, in order of time.
    waiting: VecDeque<(Instant, Tuple)>,
}

impl Crossings {
    /// Whether flows are to be followed.
    pub fn wanted(config: &Config) -> bool {
        config.verbosity >= VERBOSITY
    }

    /// Opens the ring of events and conntrack; `None` if that doesn't work (which is said).
    pub fn open(config: &Config) -> Option<Self> {
        let failed =
            |error: &dyn std::error::Error| warn!(%error, "flows that cross the threshold are not followed");
        let events = EventStream::open(&config.pin_path).inspect_err(|e| failed(e)).ok()?;
        let conntrack = Conntrack::open().inspect_err(|e| failed(e)).ok()?;
        Some(Self { events, conntrack, waiting: VecDeque::new() })
    }

    /// Waits for the next events or the end of a grace, and handles them. Safe to cancel while it waits.
    pub async fn next(crossings: &mut Option<Self>) {
        let Some(this) = crossings else { return std::future::pending().await };
        let due = this.waiting.front().map(|(at, _)| *at);
        tokio::select! {
            events = this.events.next(BATCH) => match events {
                Ok(events) => events.iter().for_each(|event| this.crossed(event)),
                Err(error) => {
                    warn!(%error, "flows that cross the threshold are not followed any more");
                    *crossings = None;
                }
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => this.look_again(),
        }
    }

    fn crossed(&mut self, event: &FlowEvent) {
        let tuple = Tuple::from_flow_key(&event.key);
        match self.look_up(&tuple) {
            Ok(Some(entry)) if entry.status.offloaded() => {
                trace!(flow = %tuple, packets = event.packets, fate = "offloaded", "crossed the threshold")
            }
            Ok(_) => self.waiting.push_back((Instant::now() + GRACE, tuple)),
            Err(error) => {
                debug!(%error, flow = %tuple, "crossed the threshold, but conntrack can't be asked")
            }
        }
    }

    fn look_again(&mut self) {
        let now = Instant::now();
        while self.waiting.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, tuple)) = self.waiting.pop_front() else { break };
            let fate = match self.look_up(&tuple) {
                Ok(Some(entry)) if entry.status.offloaded() => "offloaded",
                Ok(Some(_)) => "not offloaded (`flows --state=stalled` says why)",
                Ok(None) => "gone",
                Err(_) => "unknown",
            };
            trace!(flow = %tuple, fate, "crossed the threshold");
        }
    }

    fn look_up(&mut self, tuple: &Tuple) -> Result<Option<Entry>, ConntrackError> {
        self.conntrack.get(tuple, 0)
    }
}
