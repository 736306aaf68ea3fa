//! The guest's side of `cargo xtask test --tier=soak`: `soak SEED SECONDS` prints samples, and at last what there was. Exits with 0
//! or 1.

use std::{process::ExitCode, time::Duration};

use fastpath_tests::soak;

fn main() -> ExitCode {
    let words: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [seed, seconds] = words[..] else {
        eprintln!("usage: soak SEED SECONDS");
        return ExitCode::from(64);
    };
    match soak::run(seed, Duration::from_secs(seconds), |line| println!("{line}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(grown) => {
            println!("{grown}");
            ExitCode::FAILURE
        }
    }
}
