//! The running agent.

pub mod reconcile;
