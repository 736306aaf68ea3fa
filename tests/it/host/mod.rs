//! Behaviour that needs no flowtable in the kernel.

mod conntrack;
mod ebpf;
mod harness;
mod nft;
