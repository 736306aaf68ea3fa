//! Behaviour that needs no flowtable in the kernel.

mod errors;
mod harness;
