//! What other programs' rules do to forwarded packets: their tables, chains and rules as compact data, and what follows for
//! our rules. Reads nothing itself; what it doesn't know counts as a rule that may deny.

mod blind;
pub mod chain;
pub mod concern;
mod copy;
pub mod deny;
pub mod expr;
pub mod ignore;
pub mod known;
pub mod lookups;
pub mod moments;
pub mod others;
pub mod outcome;
pub mod rule;
pub mod traits;
pub mod varying;
pub mod walk;
