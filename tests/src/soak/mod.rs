//! Hours of a node's life in minutes: pods come and go, connections of all lengths by NAT and without, policy that changes, agents
//! that are restarted with other flags, or replaced by one whose maps have another layout. All that is sent must arrive unaltered,
//! what the agent has counted must be what was sent, and what the agent takes must not grow. What is drawn follows from a seed.

mod judge;
mod life;

use std::time::Duration;

pub use judge::{Sample, growth};
use life::Life;

/// The part of the time in which agents are restarted; for the rest there is one, whose memory and descriptors must be flat.
const RESTARTS: f64 = 0.35;

/// Lives for so long, saying each sample and, at last, what there was.
///
/// # Errors
///
/// What grew.
pub fn run(seed: u64, lasts: Duration, say: impl FnMut(&str)) -> Result<(), String> {
    let mut life = Life::begin(seed, say);
    life.live(lasts.mul_f64(RESTARTS), true);
    // At least once each.
    life.upgrade_or_downgrade();
    life.upgrade_or_downgrade();
    life.settle_on_one_agent();
    life.live(lasts, false);
    life.end()
}
