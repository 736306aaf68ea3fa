//! The guest's side of `cargo xtask bench`: lists the rows, or measures one.
//!
//! `bench list` prints names; `bench run NAME` prints a line `@@ROW` with JSON; `bench profile all|modules NAME` prints the
//! kernel's functions as lines `@@SYMBOL`, then `@@PROFILE`, and sends the row's packets until it is ended;
//! `bench native` measures on this machine's own clock, and prints a line `@@NATIVE`.

use std::process::ExitCode;

use fastpath_tests::bench::{self, Row};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["list"] => {
            for row in bench::rows() {
                println!("{}", row.name);
            }
        }
        ["run", name] => println!("@@ROW {}", row(name).measure().to_json(name)),
        ["profile", symbols, name] => row(name).send_forever(symbols == "modules"),
        ["native"] => println!("@@NATIVE {}", bench::native::measure()),
        _ => {
            eprintln!("usage: bench list | bench run NAME | bench profile all|modules NAME | bench native");
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}

fn row(name: &str) -> Row {
    let row = bench::rows().into_iter().find(|row| row.name == name);
    row.unwrap_or_else(|| panic!("there is no row {name}"))
}
