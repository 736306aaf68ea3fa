//! What the agent shows to people and programs.

pub mod doctor;
pub mod flow_writer;
pub mod flows;
pub mod follow;
pub mod metrics;
pub mod render;
pub mod rules;
pub mod status;
pub mod top;
pub mod why;
