//! Whether what was sampled is flat. Pure: no I/O.

use std::fmt;

/// What an agent took at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Seconds since the beginning.
    pub second: f64,
    /// Which agent, counted from 1.
    pub agent: usize,
    /// Resident memory in KiB.
    pub memory_kib: u64,
    /// Descriptors that are open.
    pub descriptors: usize,
    /// Connections so far, by all agents.
    pub connections: u64,
}

impl Sample {
    /// Names of the columns.
    pub const COLUMNS: &str = "second,agent,memory_kib,descriptors,connections";
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { second, agent, memory_kib, descriptors, connections } = self;
        write!(f, "{second:.1},{agent},{memory_kib},{descriptors},{connections}")
    }
}

/// What memory may grow by from one third to the next, in KiB: pages that the allocator needs once.
const MEMORY_SLACK_KIB: u64 = 256;
/// The most that memory may grow by at once, in KiB: a batch larger than any before, another thread's arena.
const MEMORY_STEP_KIB: u64 = 4096;
/// A connection that is being served.
const DESCRIPTOR_SLACK: usize = 2;

/// Growth of one agent's memory and descriptors, from the first third of its samples to the last: the most in each.
///
/// A leak grows on, from the first third to the second and again to the last. What is needed once is one step.
///
/// # Errors
///
/// It is more than comes and goes.
pub fn growth(samples: &[Sample]) -> Result<(i64, i64), String> {
    let third = samples.len() / 3;
    if third == 0 {
        return Err(format!("{} samples say nothing", samples.len()));
    }
    let most = |samples: &[Sample]| {
        let memory = samples.iter().map(|sample| sample.memory_kib).max().unwrap_or(0);
        (memory, samples.iter().map(|sample| sample.descriptors).max().unwrap_or(0))
    };
    let (memory, descriptors) = most(&samples[..third]);
    let (memory_between, _) = most(&samples[third..samples.len() - third]);
    let (memory_then, descriptors_then) = most(&samples[samples.len() - third..]);
    let grows_on =
        memory_between > memory + MEMORY_SLACK_KIB && memory_then > memory_between + MEMORY_SLACK_KIB;
    if grows_on || memory_then > memory + MEMORY_STEP_KIB || descriptors_then > descriptors + DESCRIPTOR_SLACK
    {
        return Err(format!(
            "it grew from {memory} KiB and {descriptors} descriptors by way of {memory_between} KiB to {memory_then} KiB and {descriptors_then}"
        ));
    }
    Ok((memory_then as i64 - memory as i64, descriptors_then as i64 - descriptors as i64))
}
