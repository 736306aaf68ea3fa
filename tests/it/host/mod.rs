//! Behaviour that needs no flowtable in the kernel.

mod conntrack;
mod harness;
mod nft;
