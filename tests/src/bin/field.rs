//! Tries the agent beside real software: `field NAME` runs a trial, `field --list` prints their names. Runs in the guest, as root, and
//! takes the guest's own system for the node; `cargo xtask test --tier=field` starts it.

use std::process::ExitCode;

use fastpath_tests::field::{self, TRIALS};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => {
            TRIALS.iter().for_each(|trial| println!("{}", trial.name));
            ExitCode::SUCCESS
        }
        [name] if TRIALS.iter().any(|trial| trial.name == name) => {
            TRIALS.iter().filter(|trial| trial.name == name).for_each(field::run);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: field NAME|--list");
            ExitCode::from(64)
        }
    }
}
