//! Behaviour that needs no flowtable in the kernel.

mod conntrack;
mod ebpf;
mod errors;
mod events;
mod harness;
mod nft;
