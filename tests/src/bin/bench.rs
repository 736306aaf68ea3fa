//! The guest's side of `cargo xtask bench`: lists the rows, or measures those that are named.
//!
//! `bench list` prints names; `bench run NAME…` prints a line `@@ROW` with JSON for each, or `@@FAILED` with the reason
//! and goes on with the next; `bench profile all|modules NAME` prints the kernel's functions as lines `@@SYMBOL`, then
//! `@@PROFILE`, and sends the row's packets until somebody ends it; `bench native` measures on this machine's own clock, and prints a line
//! `@@NATIVE`.

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

use fastpath_tests::bench;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rows = bench::rows();
    match words.split_first() {
        Some((command, [])) if command == "list" => {
            for row in rows {
                println!("{}", row.name);
            }
        }
        Some((command, names)) if command == "run" => {
            let mut kept = None;
            for name in names {
                let Some(row) = rows.iter().find(|row| row.name == *name) else {
                    println!("@@FAILED {name} there is no such row");
                    continue;
                };
                match panic::catch_unwind(AssertUnwindSafe(|| row.measure(&mut kept))) {
                    Ok(samples) => println!("@@ROW {}", samples.to_json(name)),
                    // What it panicked with stands above.
                    Err(_) => println!("@@FAILED {name}"),
                }
            }
        }
        Some((command, [symbols, name])) if command == "profile" => {
            match rows.iter().find(|row| row.name == *name) {
                Some(row) => row.send_forever(symbols == "modules"),
                None => println!("there is no row {name}"),
            }
        }
        Some((command, [])) if command == "native" => println!("@@NATIVE {}", bench::native::measure()),
        _ => {
            eprintln!(
                "usage: bench list | bench run NAME... | bench profile all|modules NAME | bench native"
            );
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}
