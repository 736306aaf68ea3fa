//! What the eBPF programs and the agent share: map keys, map values and limits, and nothing else.
#![no_std]
