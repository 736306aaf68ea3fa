//! Random operations on two nodes alike, one of which has the agent: some seeds, the same ones each time, and sequences that failed
//! once. `cargo xtask test --tier=twin` runs as many others as one likes.

use fastpath_tests::twin::random::Sequence;

/// Sequences of these seeds, one after the other, of which each must hold.
#[track_caller]
fn assert_same_fates(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let sequence = Sequence::of(seed);
        match sequence.run(true) {
            Ok(summary) => println!("seed {seed}: {summary}"),
            Err(failure) => panic!("seed {seed} fails {failure}\n{sequence}"),
        }
    }
}

#[test]
fn seeds_1_and_2() {
    assert_same_fates(1..3);
}

#[test]
fn seeds_3_and_4() {
    assert_same_fates(3..5);
}

#[test]
fn seeds_5_and_6() {
    assert_same_fates(5..7);
}

#[test]
fn seeds_7_and_8() {
    assert_same_fates(7..9);
}

/// With an agent on neither node nothing differs, or the comparison would say nothing.
#[test]
fn seeds_1_to_3_without_an_agent() {
    for seed in 1..4 {
        let sequence = Sequence::of(seed);
        if let Err(failure) = sequence.run(false) {
            panic!("seed {seed} fails {failure}\n{sequence}");
        }
    }
}
