//! The kernel's description of its types (BTF).
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fastpath_agent::kernel::fuzz::types(bytes));
