//! Names of the guest kernel's functions. Printing all of them takes a guest longer than all else, so those of a kernel are
//! kept in the target directory, by their distance from its beginning, which differs from boot to boot.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use anyhow::Result;
use fs_err as fs;

use crate::guest;

/// The first symbol of the kernel itself.
const BEGIN: &str = "_text";

/// What is known of a kernel's functions.
#[derive(Default)]
pub(super) struct Symbols {
    /// By distance from [`BEGIN`], those of the kernel itself; nothing if they have to be asked for.
    pub(super) of_kernel: BTreeMap<u64, String>,
    /// By address, those that the guest named in this run.
    seen: BTreeMap<u64, String>,
}

fn path(release: &str) -> PathBuf {
    guest::directory().join(format!("symbols-{release}"))
}

impl Symbols {
    /// What was kept of this kernel.
    pub(super) fn known(release: &str) -> Self {
        let text = fs::read_to_string(path(release)).unwrap_or_default();
        Self { of_kernel: parse(&text), seen: BTreeMap::new() }
    }

    /// The guest named a function.
    pub(super) fn add(&mut self, address: u64, name: &str) {
        let name = plain(name);
        // Several may begin there, of which this one is needed.
        if name == BEGIN || !self.seen.contains_key(&address) {
            self.seen.insert(address, name.to_owned());
        }
    }

    /// Where the kernel begins in this run.
    fn begin(&self) -> Option<u64> {
        self.seen.iter().find(|(_, name)| *name == BEGIN).map(|(address, _)| *address)
    }

    /// All by their address in this run.
    pub(super) fn complete(&mut self) -> &BTreeMap<u64, String> {
        if let Some(begin) = self.begin() {
            for (distance, name) in &self.of_kernel {
                self.seen.entry(begin + distance).or_insert_with(|| name.clone());
            }
        }
        &self.seen
    }

    /// Keeps those of the kernel for the next run, if they weren't known.
    pub(super) fn remember(&self, release: &str) -> Result<()> {
        let (true, Some(begin)) = (self.of_kernel.is_empty(), self.begin()) else { return Ok(()) };
        let mut text = String::new();
        for (address, name) in self.seen.range(begin..) {
            // Modules are a gigabyte above it, or below.
            if address - begin < 1 << 28 {
                writeln!(text, "{:x} {name}", address - begin).expect("string");
            }
        }
        let path = path(release);
        Ok(fs::write(&path, text)?)
    }
}

/// A program's name without its hash, which each build changes: `bpf_prog_204339b6b91f0e40_fastpath_tc`.
fn plain(name: &str) -> &str {
    let program = name.strip_prefix("bpf_prog_").and_then(|rest| rest.split_once('_'));
    match program {
        Some((hash, program)) if hash.len() == 16 => program,
        _ => name,
    }
}

fn parse(text: &str) -> BTreeMap<u64, String> {
    let line = |line: &str| {
        let (distance, name) = line.split_once(' ')?;
        Some((u64::from_str_radix(distance, 16).ok()?, name.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_their_own_names() {
        assert_eq!(plain("bpf_prog_204339b6b91f0e40_fastpath_tc"), "fastpath_tc");
        assert_eq!(plain("bpf_prog_test_run_skb"), "bpf_prog_test_run_skb");
        assert_eq!(plain("ip_forward"), "ip_forward");
    }

    #[test]
    fn those_of_the_kernel_move_with_it() {
        let mut symbols = Symbols { of_kernel: parse("0 _text\n10 first\n"), seen: BTreeMap::new() };
        for (address, name) in
            [(0x5000, "alias"), (0x5000, BEGIN), (0x5000, "another"), (0x9000, "of_a_module")]
        {
            symbols.add(address, name);
        }
        let names: Vec<_> = symbols.complete().iter().map(|(a, name)| (*a, name.as_str())).collect();
        assert_eq!(names, [(0x5000, "_text"), (0x5010, "first"), (0x9000, "of_a_module")]);
    }
}
