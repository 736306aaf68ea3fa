//! Behaviour that needs no flowtable in the kernel.

mod harness;
