//! Says when the loop was away for long: meanwhile nothing that happened was answered.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    task::Poll,
    time::{Duration, Instant},
};

use tracing::debug;

/// What counts as long.
const LONG: Duration = Duration::from_millis(10);

/// The turns of the loop.
pub(super) struct Turns(Cell<Instant>);

impl Turns {
    /// Before the first one.
    pub(super) fn new() -> Self {
        Self(Cell::new(Instant::now()))
    }

    /// A turn has ended, and the loop goes on to the next.
    pub(super) fn ended(&self) {
        let away = self.0.get().elapsed();
        if away >= LONG {
            debug!(?away, "the loop was away");
        }
    }

    /// Never ready. A turn begins when this was polled last.
    pub(super) fn woken(&self) -> impl Future<Output = ()> {
        poll_fn(|_| {
            self.0.set(Instant::now());
            Poll::Pending
        })
    }
}
