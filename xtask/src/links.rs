//! Links in the documents: lychee looks whether each leads to a file and a heading that are there. Pages of the book don't lead out of
//! it, and its table of contents has every page. Addresses on the network are not looked up.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use fs_err as fs;

use crate::{guest::RemoveLater, process, wheel::LYCHEE, workspace};

/// The book's pages are below it, and nothing else.
const BOOK: &str = "docs";
/// Its table of contents.
const CONTENTS: &str = "docs/SUMMARY.md";
/// Documents outside the book.
const OTHERS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

pub(crate) fn check() -> Result<()> {
    let root = workspace::root();
    lychee(&root, &OTHERS)?;
    // The book by itself, as packages have it: what leads out of it leads to nothing.
    let alone = RemoveLater(workspace::target().join(format!("book-{}", std::process::id())));
    fs::create_dir_all(&alone.0)?;
    process::output(process::command("cp --recursive").arg(root.join(BOOK)).arg(&alone.0))?;
    lychee(&alone.0, &[BOOK])?;
    let documents = documents(&root)?;
    let unlisted = unlisted(&documents);
    if unlisted.is_empty() {
        Ok(())
    } else {
        bail!("{CONTENTS} should list once each: {}", unlisted.join(", "))
    }
}

fn lychee(directory: &Path, documents: &[&str]) -> Result<()> {
    let mut lychee = Command::new(LYCHEE.file("lychee")?);
    lychee.args(["--offline", "--include-fragments", "--no-progress", "--quiet"]).args(documents);
    process::run(lychee.current_dir(directory))
}

/// Text of each document by its path in the repository.
pub(crate) fn documents(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut paths: Vec<PathBuf> = OTHERS.map(|path| root.join(path)).into();
    paths.extend(workspace::files_below(&root.join(BOOK))?);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        Ok((name, fs::read_to_string(&path)?))
    };
    paths.into_iter().map(read).collect()
}

/// Pages that the table of contents doesn't list, or more than once.
fn unlisted(documents: &BTreeMap<String, String>) -> Vec<&str> {
    let contents = documents.get(CONTENTS).map_or("", String::as_str);
    let listed = |page: &str| contents.matches(&format!("]({page})")).count();
    let pages = documents.keys().filter(|path| *path != CONTENTS);
    let pages = pages.filter_map(|path| path.strip_prefix(BOOK)?.strip_prefix('/'));
    pages.filter(|page| listed(page) != 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_listed_once() {
        let documents =
            [("README.md", ""), (CONTENTS, "[A](a.md) [B](b.md) [B](b.md) [D](x/d.md)"), ("docs/a.md", "")];
        let more = [("docs/b.md", ""), ("docs/c.md", ""), ("docs/x/d.md", "")];
        let documents = documents.into_iter().chain(more).map(|(path, text)| (path.into(), text.into()));
        assert_eq!(unlisted(&documents.collect()), ["b.md", "c.md"]);
    }
}
