//! What the agent shows to people and programs.

pub mod render;
pub mod status;
