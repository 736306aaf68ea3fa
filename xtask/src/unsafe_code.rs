//! Counts what the compiler doesn't check, file by file: `xtask/unsafe.txt` says how much there is, so that more of it is a decision
//! that a reviewer sees. Each block says above it why it is sound.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};

/// Put together, since this program has none.
const WORD: &str = concat!("un", "safe");
/// Lines above a block in which its reason begins.
const ABOVE: usize = 4;

/// How often each file says it.
#[derive(Default)]
pub(crate) struct Census(BTreeMap<String, usize>);

impl Census {
    /// Counts a file; returns the lines of blocks without a reason.
    pub(crate) fn add(&mut self, path: &Path, text: &str) -> Vec<usize> {
        let lines: Vec<&str> = text.lines().collect();
        let mut without = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let words =
                code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| *word == WORD).count();
            if words == 0 {
                continue;
            }
            *self.0.entry(path.display().to_string()).or_default() += words;
            let block = [" {", " impl"].iter().any(|what| code.contains(&format!("{WORD}{what}")));
            let above = &lines[at.saturating_sub(ABOVE)..at];
            if block && !above.iter().any(|line| reason(line).is_some_and(|reason| !reason.is_empty())) {
                without.push(at + 1);
            }
        }
        without
    }

    /// What differs from the numbers that are written down.
    pub(crate) fn differences(&self, stated: &str) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        let mut known = BTreeMap::new();
        for line in stated.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (count, path) =
                line.split_once(' ').with_context(|| format!("not a number and a path: {line}"))?;
            known.insert(path, count.parse::<usize>().with_context(|| format!("not a number: {line}"))?);
        }
        for path in self
            .0
            .keys()
            .map(String::as_str)
            .chain(known.keys().copied())
            .collect::<std::collections::BTreeSet<_>>()
        {
            let (found, stated) =
                (self.0.get(path).copied().unwrap_or(0), known.get(path).copied().unwrap_or(0));
            if found != stated {
                broken.push(format!("{path}: {found} times `{WORD}`, and xtask/{WORD}.txt says {stated}"));
            }
        }
        Ok(broken)
    }
}

fn reason(line: &str) -> Option<&str> {
    Some(line.split_once("// SAFETY:")?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lines: &[&str]) -> String {
        lines.join("\n").replace("UNSAFE", WORD)
    }

    #[test]
    fn a_block_needs_its_reason_and_its_number() {
        let mut census = Census::default();
        let path = Path::new("a.rs");
        let good =
            file(&["// SAFETY: it is owned here.", "let x = UNSAFE { f() };", "// UNSAFE { in a comment }"]);
        assert!(census.add(path, &good).is_empty());
        for bad in [
            &["let x = UNSAFE { f() };"][..],
            &["// SAFETY:", "UNSAFE impl X for Y {}"],
            &["// SAFETY: far away", "", "", "", "", "UNSAFE { f() }"],
        ] {
            assert_eq!(Census::default().add(path, &file(bad)), [bad.len()]);
        }
        assert_eq!(census.differences("1 a.rs\n").unwrap(), Vec::<String>::new());
        for stated in ["", "2 a.rs\n", "# all\n1 a.rs\n1 b.rs\n"] {
            assert_eq!(census.differences(stated).unwrap().len(), 1, "{stated}");
        }
        assert!(census.differences("a.rs 1\n").is_err());
    }
}
