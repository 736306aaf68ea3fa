//! Links in the documents: each leads to a file of the repository and to a heading that is there, pages of the book don't
//! lead out of it, and its table of contents has every page. Addresses on the network are not looked up.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, bail};
use fs_err as fs;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::workspace;

/// The book's pages are below it, and nothing else.
const BOOK: &str = "docs/";
/// Its table of contents.
const CONTENTS: &str = "docs/SUMMARY.md";
/// Documents outside the book.
const OTHERS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

pub(crate) fn check() -> Result<()> {
    let root = workspace::root();
    let documents = documents(&root)?;
    let broken = broken(&documents, |path| root.join(path).exists());
    if broken.is_empty() { Ok(()) } else { bail!("\n  {}", broken.join("\n  ")) }
}

/// Text of each document by its path in the repository.
pub(crate) fn documents(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut paths: Vec<String> = OTHERS.map(str::to_owned).into();
    for file in workspace::files_below(&root.join(BOOK))? {
        let path = file.strip_prefix(root)?.to_string_lossy().into_owned();
        paths.extend(path.ends_with(".md").then_some(path));
    }
    let read = |path: String| {
        let text = fs::read_to_string(root.join(&path))?;
        Ok((path, text))
    };
    paths.into_iter().map(read).collect()
}

/// What is wrong, a line for each.
fn broken(documents: &BTreeMap<String, String>, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let pages: BTreeMap<&str, Page> =
        documents.iter().map(|(path, text)| (path.as_str(), Page::of(text))).collect();
    let mut broken = Vec::new();
    let mut listed = BTreeSet::new();
    for (path, page) in &pages {
        for (line, target) in &page.links {
            let mut say = |what: &str| broken.push(format!("{path}:{line}: {what}: {target}"));
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) =
                target.split_once('#').map_or((target.as_str(), None), |(f, h)| (f, Some(h)));
            let Some(file) = resolve(path, file) else {
                say("link that leads out of the repository");
                continue;
            };
            if path.starts_with(BOOK) && !file.starts_with(BOOK) {
                say("link that leads out of the book (name the file instead)");
            } else if !exists(&file) {
                say("link to nothing");
            } else if let Some(heading) = heading
                && !pages.get(file.as_str()).is_some_and(|page| page.headings.contains(heading))
            {
                say("link to a heading that isn't there");
            }
            if *path == CONTENTS && !listed.insert(file) {
                say("listed twice");
            }
        }
    }
    for path in pages.keys().filter(|path| path.starts_with(BOOK) && **path != CONTENTS) {
        if !listed.contains(*path) {
            broken.push(format!("{CONTENTS}: doesn't list {path}"));
        }
    }
    broken
}

/// The path that a link in `document` means.
fn resolve(document: &str, link: &str) -> Option<String> {
    if link.is_empty() {
        return Some(document.to_owned());
    }
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// What matters of a document.
struct Page {
    /// Line and target of links and pictures.
    links: Vec<(usize, String)>,
    /// Names by which headings are linked to.
    headings: BTreeSet<String>,
}

impl Page {
    fn of(text: &str) -> Self {
        let mut page = Self { links: Vec::new(), headings: BTreeSet::new() };
        let mut heading: Option<String> = None;
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((text[..range.start].matches('\n').count() + 1, dest_url.to_string()));
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let name = name_of(&heading.take().unwrap_or_default());
                    let mut unique = name.clone();
                    let mut number = 0;
                    while !page.headings.insert(unique.clone()) {
                        number += 1;
                        unique = format!("{name}-{number}");
                    }
                }
                Event::Text(words) | Event::Code(words) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&words);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The name that mdBook and forges give a heading.
fn name_of(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(documents: &[(&str, &str)]) -> Vec<String> {
        let documents =
            documents.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        let exists =
            |path: &str| ["docs/a.md", "docs/b.md", "docs/a.svg", "README.md", "deploy"].contains(&path);
        broken(&documents, exists)
    }

    #[test]
    fn those_of_this_repository() {
        check().expect("links");
    }

    #[test]
    fn links_that_are_right() {
        let readme = "[a](docs/a.md#what-it-is-and-isnt) ![](docs/a.svg) [d](deploy/) [w](https://example.org/x) `[no](link)`\n\n\
                      ```text\n[nor](this)\n```\n";
        let page =
            "# What `it` is, and isn't\n\n## Same\n\n## Same\n\n[b](b.md) [here](#same-1) [a](./a.md)\n";
        let contents = "# Summary\n\n- [A](a.md)\n- [B](b.md)\n";
        let right = [("README.md", readme), ("docs/a.md", page), ("docs/b.md", ""), (CONTENTS, contents)];
        assert_eq!(found(&right), Vec::<String>::new());
    }

    #[test]
    fn links_that_are_wrong() {
        for (readme, page, contents, wrong) in [
            ("[x](docs/c.md)", "", "[A](a.md)", "README.md:1: link to nothing: docs/c.md"),
            (
                "x\n[x](docs/a.md#no)",
                "",
                "[A](a.md)",
                "README.md:2: link to a heading that isn't there: docs/a.md#no",
            ),
            (
                "[x](../other/a.md)",
                "",
                "[A](a.md)",
                "README.md:1: link that leads out of the repository: ../other/a.md",
            ),
            (
                "",
                "[r](../README.md)",
                "[A](a.md)",
                "docs/a.md:1: link that leads out of the book (name the file instead): ../README.md",
            ),
            ("", "", "", "docs/SUMMARY.md: doesn't list docs/a.md"),
            ("", "", "[A](a.md) [A](a.md)", "docs/SUMMARY.md:1: listed twice: a.md"),
        ] {
            let documents = [("README.md", readme), ("docs/a.md", page), (CONTENTS, contents)];
            assert_eq!(found(&documents), [wrong]);
        }
    }
}
