//! The guest's side of `cargo xtask test --tier=twin`: runs the sequence of one seed, and makes it shorter if it fails.
//!
//! `twin SEED` prints what came out and exits with 0 or 1; `twin SEED without-agent` runs it with an agent on neither node, where
//! no sequence may fail; `twin SEED forward` with one that forwards packets in eBPF; `twin SEED show` only prints the sequence.

use std::process::ExitCode;

use fastpath_tests::{
    attach::Attach,
    twin::random::{Sequence, With},
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (seed, with, show) = match words[..] {
        [seed] => (seed, With::Agent, false),
        [seed, "without-agent"] => (seed, With::NoAgent, false),
        [seed, "forward"] => (seed, With::Forwarding, false),
        [seed, "show"] => (seed, With::Agent, true),
        _ => return usage(),
    };
    let Ok(seed) = seed.parse::<u64>() else { return usage() };
    let mut sequence = Sequence::of(seed);
    if with == With::Forwarding {
        sequence.programs = true;
        // Elsewhere than to pods nothing is forwarded.
        sequence.attach = if seed % 4 == 0 { sequence.attach } else { Attach::Veth };
    }
    if show {
        println!("{sequence}");
        return ExitCode::SUCCESS;
    }
    match sequence.run(with) {
        Ok(summary) => {
            println!("seed {seed}: {summary}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("seed {seed} fails {failure}\n{sequence}");
            let (shorter, failure, tries) = sequence.shrink(failure, with);
            println!("seed {seed}, made shorter by {tries} runs, fails {failure}\n{shorter}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: twin SEED [without-agent|forward|show]");
    ExitCode::from(64)
}
