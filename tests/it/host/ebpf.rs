//! The eBPF programs on a real kernel: what they count, and how they come and go.

mod attach;
mod bpftool;
mod count;
mod events;
mod frames;
mod setup;
