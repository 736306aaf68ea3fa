//! The tests that there are, and what came of them.

use std::{env, path::Path};

use anyhow::{Result, bail};

use crate::{
    arch::{Arch, Root},
    guest::verdict::Verdict,
    process,
};

/// Results, added up.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Something that counts only when it fails.
    pub(crate) fn require(&mut self, result: Result<()>) {
        if let Err(error) = result {
            println!("{error:#}");
            self.failed += 1;
        }
    }

    /// Something that counts as one test.
    pub(crate) fn check(&mut self, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => self.require(Err(error)),
        }
    }

    pub(crate) fn report(&self, none_is_right: bool) -> Result<()> {
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        if self.failed > 0 {
            bail!("some tests failed");
        }
        if self.passed == 0 && !none_is_right {
            bail!("no test was run");
        }
        if self.skipped > 0 && env::var_os("CI").is_some_and(|ci| ci == "true") {
            bail!("some tests were skipped, which CI does not accept");
        }
        Ok(())
    }

    /// Counts one test.
    pub(crate) fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed(_) => self.failed += 1,
            Verdict::NotApplicable(_) => {}
        }
    }
}

/// The tests in the `it` binary.
pub(crate) struct List {
    pub(crate) names: Vec<String>,
    /// Those that are `#[ignore]`d.
    pub(crate) ignored: usize,
}

impl List {
    pub(crate) fn of(it: &Path, arch: Arch, filter: &str) -> Result<Self> {
        let root = Root::of(arch)?;
        let list = |only_ignored: bool| -> Result<Vec<String>> {
            let mut command = root.command(it);
            command.args(["--list", "--format", "terse"]).args(only_ignored.then_some("--ignored"));
            let text = process::output(&mut command)?;
            let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
            let wanted = |name: &&str| filter.split(',').any(|part| name.contains(part));
            Ok(names.filter(wanted).map(str::to_owned).collect())
        };
        let (all, ignored) = (list(false)?, list(true)?);
        let names = all.into_iter().filter(|name| !ignored.contains(name)).collect();
        Ok(Self { names, ignored: ignored.len() })
    }

    /// Some of the tests.
    pub(crate) fn filtered(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let names = self.names.iter().filter(|name| wanted(name)).cloned().collect();
        Self { names, ignored: self.ignored }
    }
}
