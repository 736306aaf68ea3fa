//! A short part of `cargo xtask test --tier=soak`, the same each time.

use std::time::Duration;

use fastpath_tests::soak::{self, Sample, growth};

#[test]
fn seed_1() {
    soak::run(1, Duration::from_secs(40), |line| println!("{line}"))
        .unwrap_or_else(|grown| panic!("{grown}"));
}

fn samples(grows_by: impl Fn(u64) -> (u64, usize)) -> Vec<Sample> {
    let sample = |number: u64| {
        let (memory, descriptors) = grows_by(number);
        Sample {
            second: number as f64,
            agent: 1,
            memory_kib: 9000 + memory,
            descriptors: 30 + descriptors,
            connections: number,
        }
    };
    (0..30).map(sample).collect()
}

#[test]
fn growth_is_told_from_coming_and_going() {
    assert_eq!(growth(&samples(|_| (0, 0))), Ok((0, 0)));
    assert_eq!(growth(&samples(|number| (number % 5 * 50, number as usize % 3))), Ok((0, 0)));
    assert_eq!(growth(&samples(|number| (1464 * u64::from(number > 20), 0))), Ok((1464, 0)), "one step");
    assert!(growth(&samples(|number| (5000 * u64::from(number > 20), 0))).is_err(), "a step too high");
    assert!(growth(&samples(|number| (number * 60, 0))).is_err());
    assert!(growth(&samples(|number| (0, number as usize / 5))).is_err());
    assert!(growth(&samples(|_| (0, 0))[..2]).is_err());
}
