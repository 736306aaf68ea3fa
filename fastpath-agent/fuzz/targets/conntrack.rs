//! Messages of ctnetlink.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fastpath_agent::kernel::fuzz::conntrack(bytes));
