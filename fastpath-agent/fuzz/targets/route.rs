//! Messages of rtnetlink and of IPsec policies.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fastpath_agent::kernel::fuzz::route(bytes));
