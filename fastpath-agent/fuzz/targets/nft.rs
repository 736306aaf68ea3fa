//! Messages of nftables: rules, chains, sets and their elements, flowtables, transactions.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fastpath_agent::kernel::fuzz::nft(bytes));
