//! The eBPF programs on a real kernel: what they count, and how they come and go.
#![expect(clippy::unwrap_used, reason = "a test whose scene can't be set fails")]

mod attach;
mod bpftool;
mod bulk;
mod chatter;
mod count;
mod events;
pub(crate) mod frames;
mod parser;
pub(crate) mod setup;
mod xdp;
