//! A node in memory, for tests of the core and of the daemon. What it says about the real kernel is shown by the tests that run
//! on one.

mod node;
mod ruleset;

pub use node::{Fault, Node, World};
pub use ruleset::FakeRuleset;
