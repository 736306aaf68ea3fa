//! Harness of the tests that need a real kernel: network namespaces, topologies, traffic, and which path it took.
//!
//! A set-up that fails is a failed test, so the functions here panic with what was tried and what came out of it.
//! They decide nothing about what is right: that is in the tests under `it/`.

pub mod agent;
pub mod attach;
pub mod bench;
pub mod browser;
pub mod config_map;
pub mod dashboard;
pub mod document;
pub mod duplex;
pub mod faults;
pub mod field;
mod forwarded;
pub mod http;
mod kernel;
pub mod link_up;
pub mod memory_limit;
pub mod monitor;
pub mod netns;
pub mod path;
pub mod pktgen;
pub mod program;
pub mod prometheus;
pub mod reference;
pub mod service;
pub mod service_manager;
pub mod soak;
pub mod table;
pub mod terminal;
pub mod topology;
pub mod traffic;
pub mod twin;
pub mod why;

use std::time::{Duration, Instant};

pub use kernel::map_executable;

/// Whether this is the test guest, whose emulated processor is many times slower.
#[must_use]
pub fn emulated() -> bool {
    std::env::var_os("FASTPATH_GUEST").is_some()
}

/// Waits until `condition` holds, looking every 20 ms.
///
/// Returns how long it took; panics with `what` when it doesn't hold within `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}
