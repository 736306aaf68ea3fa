//! `cargo xtask`: set-up, build, test and demonstration.
fn main() {}
