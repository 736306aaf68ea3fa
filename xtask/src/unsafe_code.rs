//! Counts what the compiler doesn't check, file by file: `xtask/unsafe.txt` says how much there is, so that more of it is a decision
//! that a reviewer sees. That each block says why it is sound, clippy checks.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::workspace;

/// Put together, since this program has none.
const WORD: &str = concat!("un", "safe");
/// Where it may be.
const PLACES: [&str; 5] =
    ["fastpath-agent/src/kernel/", "fastpath-ebpf/", "fastpath-common/", "tests/it/", "tests/src/kernel.rs"];

/// How often each file says it.
#[derive(Default)]
pub(crate) struct Census(BTreeMap<String, usize>);

impl Census {
    /// Counts a file.
    pub(crate) fn add(&mut self, path: &Path, text: &str) {
        // A `//` in a string hides code behind it: rare.
        let code = text.lines().flat_map(|line| line.split("//").next());
        let words = code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
        match words.filter(|word| *word == WORD).count() {
            0 => {}
            words => drop(self.0.insert(path.display().to_string(), words)),
        }
    }

    /// What differs from the numbers that are written down, and what is out of place.
    pub(crate) fn differences(&self) -> Result<Vec<String>> {
        self.differences_from(&fs::read_to_string(workspace::root().join(format!("xtask/{WORD}.txt")))?)
    }

    fn differences_from(&self, stated: &str) -> Result<Vec<String>> {
        // By path: found and stated.
        let mut numbers: BTreeMap<&str, (usize, usize)> =
            self.0.iter().map(|(path, count)| (path.as_str(), (*count, 0))).collect();
        for line in stated.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (count, path) =
                line.split_once(' ').with_context(|| format!("not a number and a path: {line}"))?;
            numbers.entry(path).or_default().1 =
                count.parse().with_context(|| format!("not a number: {line}"))?;
        }
        let mut broken = Vec::new();
        for (path, (found, stated)) in numbers {
            if found != stated {
                broken.push(format!("{path}: {found} times `{WORD}`, and xtask/{WORD}.txt says {stated}"));
            }
            if !PLACES.iter().any(|place| path.starts_with(place)) {
                broken.push(format!("{path}: `{WORD}` belongs to fastpath-agent/src/kernel"));
            }
        }
        Ok(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_needs_its_number_and_its_place() {
        let path = "fastpath-agent/src/kernel/a.rs";
        let mut census = Census::default();
        census.add(
            Path::new(path),
            &"let x = UNSAFE { f() };\n// UNSAFE { in a comment }".replace("UNSAFE", WORD),
        );
        let right = format!("1 {path}\n");
        assert_eq!(census.differences_from(&right).unwrap(), Vec::<String>::new());
        for stated in [String::new(), format!("2 {path}\n"), format!("# all\n{right}1 fastpath-ebpf/b.rs\n")]
        {
            assert_eq!(census.differences_from(&stated).unwrap().len(), 1, "{stated}");
        }
        assert!(census.differences_from("a.rs 1\n").is_err());
        census.add(Path::new("xtask/src/a.rs"), WORD);
        assert_eq!(census.differences_from(&format!("{right}1 xtask/src/a.rs\n")).unwrap().len(), 1);
    }
}
