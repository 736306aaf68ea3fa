//! Behaviour that needs no flowtable in the kernel.

mod conntrack;
mod ebpf;
mod errors;
mod harness;
mod nft;
