//! A node in memory, for tests of the core and of the daemon. What it says about the real kernel is shown by the tests that run
//! on one.

mod connection;
mod flows;
mod node;
mod ruleset;

pub use connection::Connection;
pub use node::{Fault, Moment, Node, World, nothing_of_others};
pub use ruleset::FakeRuleset;
