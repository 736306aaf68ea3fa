//! Entries of `--exclude` and of its file: what is taken can be written down and is taken again. And text of `/proc`.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|text: &str| {
    use fastpath_agent::{core::ruleset::exclude::Exclusions, kernel::fuzz};

    fuzz::proc(text);
    let Ok(exclusions) = Exclusions::new(&[], text) else { return };
    let keys = exclusions.sets().flat_map(|(set, keys)| keys.iter().map(move |key| set.describe(*key)));
    let written: Vec<String> = keys.chain(exclusions.marks().map(|mark| format!("mark/{mark}"))).collect();
    let again = Exclusions::new(&written, "").expect("what is written down is taken");
    assert!(exclusions.sets().eq(again.sets()) && exclusions.marks().eq(again.marks()), "{written:?}");
});
