//! Behaviour that needs no flowtable in the kernel.

mod conntrack;
mod crowd;
mod doctor;
pub(crate) mod ebpf;
mod errors;
mod events;
mod flows;
mod harness;
mod logs;
mod metrics;
mod nft;
