//! What the loop has counted of its own work since it started.

use std::{collections::BTreeMap, time::Duration};

use prometheus_client::metrics::histogram::Histogram;

use super::reconcile::Report;
use crate::core::pace::{Outcome, Trigger};

/// Upper bounds of how long a reconcile takes, in s.
const SECONDS: [f64; 10] = [0.0001, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Reconciles.
pub struct Reconciles {
    /// By what triggered them.
    pub by_trigger: BTreeMap<Trigger, u64>,
    /// How long they took, in s.
    pub seconds: Histogram,
    /// Those that failed and are tried again.
    pub failures: u64,
    /// Transactions that were committed.
    pub commits: u64,
    /// Those that undid another program's change.
    pub repairs: u64,
}

impl Default for Reconciles {
    fn default() -> Self {
        Self {
            by_trigger: BTreeMap::new(),
            seconds: Histogram::new(SECONDS),
            failures: 0,
            commits: 0,
            repairs: 0,
        }
    }
}

impl Reconciles {
    /// One more.
    pub fn ran(&mut self, trigger: Trigger, report: &Report, took: Duration) {
        *self.by_trigger.entry(trigger).or_default() += 1;
        self.seconds.observe(took.as_secs_f64());
        self.failures += u64::from(report.outcome == Outcome::Failed);
        self.repairs += u64::from(report.outcome == Outcome::Repaired);
        self.commits += u64::from(report.commits);
    }
}

/// Connections that crossed the threshold, offloaded or not; counted while metrics are served.
#[derive(Clone, Debug, Default)]
pub struct Crossed {
    /// All.
    pub crossed: u64,
    /// Those that were offloaded.
    pub offloaded: u64,
    /// The others, by the name of the cause.
    pub not_offloaded: BTreeMap<&'static str, u64>,
}
