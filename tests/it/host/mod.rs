//! Behaviour that needs no flowtable in the kernel.

mod config_file;
mod conntrack;
pub(crate) mod crowd;
mod doctor;
pub(crate) mod ebpf;
mod errors;
mod events;
mod flows;
mod harness;
mod logs;
mod metrics;
pub(crate) mod names;
mod nft;
mod node_monitor;
mod others;
mod sandbox;
mod service_manager;
