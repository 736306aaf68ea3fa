//! The pure half: configuration and observed state in, plan out. No I/O, no clock, no async.

pub mod capability;
pub mod doctor;
pub mod export;
pub mod flow;
pub mod forwarding;
pub mod history;
pub mod known_bugs;
pub mod link;
pub mod memory_budget;
pub mod mode;
pub mod model;
pub mod names;
pub mod pace;
pub mod peer;
pub mod policy;
pub mod printable;
pub mod recurring;
pub mod revalidate;
pub mod route_rule;
pub mod ruleset;
pub mod surroundings;
pub mod threshold;
pub mod why;
pub mod why_not;
