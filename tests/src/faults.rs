//! What tests of faults share: how many rounds, drawn by which seed, and what the agent holds of the kernel and of memory.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::Value;

use crate::{agent::Agent, netns::Netns, topology::links};

/// How often: `full` in the tier of faults, `bounded` otherwise.
pub fn rounds(bounded: usize, full: usize) -> usize {
    match std::env::var_os("FASTPATH_FAULTS") {
        Some(word) if word == "full" => full,
        _ => bounded,
    }
}

/// Numbers by a seed, which is printed; the one in `FASTPATH_SEED`, if there is one.
pub struct Random(AtomicU64);

impl Random {
    /// By the seed of this run.
    pub fn seeded() -> Self {
        let seed = std::env::var("FASTPATH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        println!("seed {seed}");
        Self::of(seed)
    }

    /// By this seed.
    pub fn of(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number below `end` (splitmix64).
    pub fn below(&self, end: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Descriptors that a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count()
}

/// Memory of its own that a process has, in KiB: without code, which the kernel takes away and brings back as it likes.
pub fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("proc(5)");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// How many programs (`prog`), maps (`map`) or links (`link`) there are in the kernel.
#[track_caller]
pub fn objects(node: &Netns, kind: &str) -> usize {
    let listing = node.output("bpftool", &["-j", kind, "show"]);
    // Nothing at all where there is none.
    let list: Option<Value> = serde_json::from_str(&listing).ok();
    list.and_then(|list| Some(list.as_array()?.len())).unwrap_or(0)
}

/// What an agent holds of the system, as numbers that must not grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Descriptors of the process.
    pub descriptors: usize,
    /// Files below the agent's directory of pins.
    pub pins: usize,
    /// Programs, maps and links in the kernel, all of them.
    pub objects: [usize; 3],
    /// Filters of traffic control at the ingress of the node's links.
    pub filters: usize,
    /// Tables, chains, sets and flowtables in the ruleset.
    pub ruleset: usize,
    /// KiB.
    pub resident: u64,
}

/// So much memory may come and go: pages of the allocator, of a thread's stack.
const RESIDENT_SLACK_KIB: u64 = 4096;
/// A connection that is being closed, a thread that reads the kernel.
const DESCRIPTOR_SLACK: usize = 2;

impl Held {
    /// What it holds now.
    #[track_caller]
    pub fn by(agent: &Agent, node: &Netns) -> Self {
        let filters = |link: String| {
            let listing = node.try_run("tc", &["filter", "show", "dev", &link, "ingress"], "");
            String::from_utf8_lossy(&listing.stdout).lines().filter(|line| line.contains("handle")).count()
        };
        let ruleset = node.output("nft", &["-s", "-t", "list", "ruleset"]);
        Self {
            descriptors: descriptors(agent.pid()),
            pins: files_below(Path::new("/sys/fs/bpf/fastpath")),
            objects: ["prog", "map", "link"].map(|kind| objects(node, kind)),
            filters: links(node).into_iter().map(filters).sum(),
            ruleset: ruleset.lines().filter(|line| line.ends_with('{')).count(),
            resident: memory_kib(agent.pid()),
        }
    }

    /// Shows that it isn't more than before, but for what comes and goes.
    #[track_caller]
    pub fn assert_no_more_than(&self, before: &Self) {
        let more = self.descriptors > before.descriptors + DESCRIPTOR_SLACK
            || self.pins > before.pins
            || self.objects.iter().zip(before.objects).any(|(now, before)| *now > before)
            || self.filters > before.filters
            || self.ruleset > before.ruleset
            || self.resident > before.resident + RESIDENT_SLACK_KIB;
        assert!(!more, "it holds more than before:\n{self:?}\n{before:?}");
    }
}

fn files_below(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => files_below(&entry.path()),
            false => 1,
        })
        .sum()
}
