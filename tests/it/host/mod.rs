//! Behaviour that needs no flowtable in the kernel.

mod ebpf;
mod harness;
