//! Requests to the HTTP port: whatever comes in, what goes out is an answer of HTTP or nothing.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let answer = fastpath_agent::daemon::serve::exchange(bytes);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
    // The largest is the page's script.
    assert!(answer.len() < 32 * 1024, "answers are short where there are no metrics");
});
