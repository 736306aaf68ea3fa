//! The table: what it should be, what it is, and the operations from one to the other.

pub mod alternatives;
pub mod by_tuple;
pub mod chain;
pub mod conditions;
pub mod desired;
pub mod diff;
pub mod empty;
mod evidence;
pub mod exclude;
pub mod expr;
pub mod observed;
pub mod packet;
pub mod plan;
pub mod rule;
pub mod sets;
pub mod wanted;
