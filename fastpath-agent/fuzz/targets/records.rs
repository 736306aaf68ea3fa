//! Records of the ring of events, and values of pinned maps.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fastpath_agent::kernel::fuzz::records(bytes));
