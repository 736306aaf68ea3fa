//! A short part of `cargo xtask test --tier=soak`, the same each time.

use std::time::Duration;

use fastpath_tests::soak;

#[test]
fn seed_1() {
    soak::run(1, Duration::from_secs(40), |line| println!("{line}"))
        .unwrap_or_else(|grown| panic!("{grown}"));
}
