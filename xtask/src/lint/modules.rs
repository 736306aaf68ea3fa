//! The modules of a crate and what each uses, from its sources. Modules that use each other in a circle can't be read one after the
//! other, so there may be none; and a layer may not use what is above it.
//!
//! A module and those within it count as one where they use each other: a parent hands work to children that use its types. A
//! name that a parent hands on (`pub use`) is used where it is defined. Tests aren't looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};
use fs_err as fs;
use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};
use syn::{
    Attribute, Item, UseTree, Visibility,
    visit::{self, Visit},
};

/// Names from the crate's root to a module: `["kernel", "bpf", "maps"]`. What is used begins with `crate`, or another crate's name.
type Names = Vec<String>;

/// What a file says, before any of it is looked up.
#[derive(Default)]
struct Source {
    /// Names that it re-exports, and what they mean.
    handed_on: BTreeMap<String, Names>,
    /// Paths that it uses.
    uses: BTreeSet<Names>,
}

/// A layer: the module, what it and those within it may not use, and why.
pub(super) type Layer = (&'static str, &'static [&'static str], &'static str);

/// The modules of one crate by their paths; the root is empty.
pub(super) struct Modules(BTreeMap<Names, Source>);

impl Modules {
    /// Reads the files, which are named by their paths below `src`.
    ///
    /// # Errors
    ///
    /// If one isn't Rust.
    pub(super) fn read<'a>(files: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Result<Self> {
        let files: BTreeMap<Names, (&Path, &str)> =
            files.into_iter().map(|(path, text)| (module(path), (path, text))).collect();
        let known: BTreeSet<Names> = files.keys().cloned().collect();
        let read = |(name, (path, text)): (&Names, &(&Path, &str))| {
            let file = syn::parse_file(text).with_context(|| path.display().to_string())?;
            let mut reader =
                Reader { module: name, known: &known, imported: BTreeMap::new(), source: Source::default() };
            reader.imports(&file.items);
            reader.visit_file(&file);
            Ok((name.clone(), reader.source))
        };
        files.iter().map(read).collect::<Result<_>>().map(Self)
    }

    /// Those of the crate whose root module is in this directory.
    pub(super) fn of(directory: &Path, files: &[std::path::PathBuf]) -> Result<Self> {
        let read = |path: &std::path::PathBuf| {
            let below = path.strip_prefix(directory).ok()?.to_owned();
            let tests = below.file_stem()?.to_str()?.ends_with("tests") || below.starts_with("bin");
            (!tests && below.extension()? == "rs")
                .then(|| fs::read_to_string(path).ok().map(|text| (below, text)))?
        };
        let files: Vec<_> = files.iter().filter_map(read).collect();
        Self::read(files.iter().map(|(path, text)| (path.as_path(), text.as_str())))
    }

    /// The module in which that is defined, if it is one of this crate's.
    fn home(&self, path: &[String]) -> Option<&Names> {
        let mut path = path.to_vec();
        // Names are handed on a few times at most; a circle of `pub use` doesn't compile.
        for _ in 0..8 {
            let below = path.split_first().filter(|(root, _)| *root == "crate")?.1;
            let length = (0..=below.len()).rev().find(|&length| self.0.contains_key(&below[..length]))?;
            let (name, source) = self.0.get_key_value(&below[..length])?;
            let Some(meant) = below.get(length).and_then(|next| source.handed_on.get(next)) else {
                return Some(name);
            };
            path = meant.iter().chain(&below[length + 1..]).cloned().collect();
        }
        None
    }

    /// What each module uses of which others, beside those around and within it.
    fn arrows(&self) -> impl Iterator<Item = (&Names, &Names, &Names)> {
        self.0.iter().flat_map(move |(from, source)| {
            source.uses.iter().filter_map(move |path| {
                let to = self.home(path)?;
                (!from.starts_with(to) && !to.starts_with(from)).then_some((from, to, path))
            })
        })
    }

    /// What modules of layers use and may not: a line for each.
    pub(super) fn across(&self, layers: &[Layer]) -> Vec<String> {
        let mut found = Vec::new();
        for (module, source) in &self.0 {
            for (_, forbidden, reason) in
                layers.iter().filter(|(layer, ..)| module.first().is_some_and(|it| it == layer))
            {
                for path in source.uses.iter().chain(source.handed_on.values()).map(|path| path.join("::")) {
                    let is_named = |name: &&str| format!("::{path}::").contains(&format!("::{name}::"));
                    if forbidden.iter().any(is_named) {
                        found.push(format!("{} uses {path}, but {reason}", module.join("::")));
                    }
                }
            }
        }
        found
    }

    /// Modules that use each other: a line for each circle, with what ties it.
    pub(super) fn circles(&self) -> Vec<String> {
        let graph: DiGraphMap<&Names, ()> = self.arrows().map(|(from, to, _)| (from, to)).collect();
        let circle = |modules: Vec<&Names>| {
            let within: BTreeSet<_> = modules.into_iter().collect();
            let mut ties: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
            for (from, to, path) in self.arrows() {
                if within.contains(from) && within.contains(to) {
                    // What is named, rather than what is within that: the enum, not its case.
                    let name = path.iter().skip(1).find(|name| !from.contains(name) && !to.contains(name));
                    ties.entry((from, to)).or_default().extend(name.map(String::as_str));
                }
            }
            let ties = ties.into_iter().map(|((from, to), names)| {
                let names: Vec<_> = names.into_iter().collect();
                format!("\n    {} uses {}: {}", from.join("::"), to.join("::"), names.join(", "))
            });
            format!("{} modules use each other in a circle:{}", within.len(), ties.collect::<String>())
        };
        tarjan_scc(&graph).into_iter().filter(|modules| modules.len() > 1).map(circle).collect()
    }
}

/// `kernel/bpf/mod.rs` and `kernel/bpf.rs` are `kernel::bpf`.
fn module(path: &Path) -> Names {
    let mut names: Names =
        path.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    names.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
    names
}

struct Reader<'a> {
    module: &'a Names,
    known: &'a BTreeSet<Names>,
    /// What names mean that were brought in by `use`.
    imported: BTreeMap<String, Names>,
    source: Source,
}

impl Reader<'_> {
    fn imports(&mut self, items: &[Item]) {
        for item in items {
            if let Item::Use(found) = item
                && !only_for_tests(&found.attrs)
            {
                let hands_on = !matches!(found.vis, Visibility::Inherited);
                self.tree(&found.tree, &mut Vec::new(), hands_on);
            }
        }
    }

    fn tree(&mut self, tree: &UseTree, before: &mut Names, hands_on: bool) {
        let mut end = |name: String, path: &[String]| {
            let path = self.absolute(path);
            self.imported.insert(name.clone(), path.clone());
            if hands_on && path[0] == "crate" {
                self.source.handed_on.insert(name, path);
            } else {
                self.source.uses.insert(path);
            }
        };
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before, hands_on);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before, hands_on)),
            UseTree::Name(name) if name.ident == "self" => {
                end(before.last().cloned().unwrap_or_default(), before);
            }
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                end(name.clone(), &[before.as_slice(), &[name]].concat());
            }
            UseTree::Rename(name) => {
                let path = [before.as_slice(), &[name.ident.to_string()]].concat();
                end(name.rename.to_string(), &path);
            }
            _ => end("*".into(), before),
        }
    }

    /// The same from a crate's root, if its first name is known; else it begins with the name of another crate, or a type's.
    fn absolute(&self, path: &[String]) -> Names {
        let from = |module: &[String], rest: &[String]| [&["crate".to_owned()], module, rest].concat();
        match path[0].as_str() {
            "self" => from(self.module, &path[1..]),
            "super" => {
                let up = path.iter().take_while(|name| *name == "super").count();
                from(&self.module[..self.module.len().saturating_sub(up)], &path[up..])
            }
            _ if self.known.contains(&[self.module.as_slice(), &path[..1]].concat()) => {
                from(self.module, path)
            }
            name => match self.imported.get(name) {
                Some(meant) => [meant.as_slice(), &path[1..]].concat(),
                None => path.to_vec(),
            },
        }
    }

    fn used(&mut self, path: &[String]) {
        let path = self.absolute(path);
        self.source.uses.insert(path);
    }
}

fn only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(found) => &found.attrs,
            Item::Fn(found) => &found.attrs,
            Item::Impl(found) => &found.attrs,
            Item::Use(_) => return,
            _ => return visit::visit_item(self, item),
        };
        if !only_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.used(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Names>());
        visit::visit_path(self, path);
    }

    /// Paths in a macro's words, which aren't parsed: those in its strings count too.
    fn visit_macro(&mut self, found: &'ast syn::Macro) {
        let text = found.tokens.to_string().replace(" :: ", "::");
        for path in
            text.split(|c: char| !c.is_alphanumeric() && !"_:".contains(c)).filter(|word| word.contains("::"))
        {
            self.used(&path.split("::").map(str::to_owned).collect::<Names>());
        }
        visit::visit_macro(self, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, text)| (Path::new(*path), *text));
        Modules::read(files).expect("Rust").circles()
    }

    #[test]
    fn what_is_a_circle_and_what_is_none() {
        for (what, a, b, number) in [
            ("one way", "use crate::b::B;", "pub struct B;", 0),
            ("both ways", "use crate::b::B;", "use super::a::A;", 1),
            ("by a path", "fn f() { crate::b::g(); }", "use crate::a;", 1),
            ("by a module's name", "use crate::b; fn f() { b::g(); }", "fn g() { crate::a::f(); }", 1),
            ("within a macro", "fn f() { println!(\"{}\", crate::b::g()); }", "use crate::a;", 1),
            ("for tests", "use crate::b::B;", "#[cfg(test)] mod tests { use crate::a::A; }", 0),
            ("another crate's", "use crate::b::B;", "use std::a::A;", 0),
        ] {
            assert_eq!(circles(&[("a.rs", a), ("b.rs", b)]).len(), number, "{what}");
        }
    }

    #[test]
    fn names_are_followed_to_where_they_are_defined() {
        let face = ("a/mod.rs", "mod b; mod c; pub use b::B; pub use self::c::C;");
        let b = ("a/b.rs", "pub struct B;");
        // A child that takes its sister's name from the parent uses the sister, not the parent.
        assert_eq!(circles(&[face, b, ("a/c.rs", "use super::B; pub struct C;")]).len(), 0);
        let (b, c) = (("a/b.rs", "use super::C;"), ("a/c.rs", "use super::B;"));
        let found = circles(&[face, b, c]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("a::b uses a::c: C"), "{found:?}");
        // A parent that calls its child, which uses what the parent defines, is no circle; two branches are.
        let parent = ("a/mod.rs", "mod b; pub struct A; fn f() { b::g() }");
        assert_eq!(circles(&[parent, ("a/b.rs", "use super::A;")]).len(), 0);
        assert_eq!(circles(&[parent, ("a/b.rs", "use crate::c::C;"), ("c.rs", "use crate::a::b;")]).len(), 1);
    }

    #[test]
    fn what_a_layer_may_not_use() {
        let layers: &[Layer] = &[("a", &["crate::b", "std::fs", "Instant::now", "tokio"], "a is pure")];
        for (line, number) in [
            ("use crate::a::b;", 0),
            ("use std::net::IpAddr;", 0),
            ("use crate::{\n    a::{b, fs},\n    c,\n};", 0),
            ("// unlike crate::b", 0),
            ("use crate::b::B;", 1),
            ("pub use crate::{c, b::{self}};", 1),
            ("fn f() { super::b::g() }", 1),
            ("use std::{\n    fs,\n    net::IpAddr,\n};", 1),
            ("use std::time::Instant; fn f() { let now = Instant::now(); }", 1),
            ("fn f() { tokio::spawn(x); }", 1),
            ("fn f() { assert!(std::fs::exists(x)); }", 1),
        ] {
            let file = (Path::new("a.rs"), line);
            let found =
                Modules::read([file, (Path::new("b.rs"), "use std::fs;")]).expect("Rust").across(layers);
            assert_eq!(found.len(), number, "{line}: {found:?}");
        }
    }
}
