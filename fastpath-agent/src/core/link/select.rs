//! Which links are in the flowtable, and why the others aren't.

use std::{collections::BTreeSet, fmt};

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Serialize;
use strum::{EnumIter, IntoEnumIterator, IntoStaticStr};

use crate::core::model::{IfIndex, Link, OperState};

/// Globs over interface names: what to take and what to leave out. By default all are taken.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `None`: all.
    include: Option<GlobSet>,
    exclude: GlobSet,
}

/// A pattern that isn't a glob.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadGlob(#[from] globset::Error);

impl Selection {
    /// From glob patterns; an empty `include` takes every interface.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, BadGlob> {
        let include = if include.is_empty() { None } else { Some(glob_set(include)?) };
        Ok(Self { include, exclude: glob_set(exclude)? })
    }

    /// Of these links those that the patterns leave out.
    pub fn left_out<'a>(&self, links: impl Iterator<Item = &'a Link>) -> BTreeSet<IfIndex> {
        let by_choice =
            |link: &&Link| matches!(self.reject(link), Some(Unmanaged::Excluded | Unmanaged::NotIncluded));
        links.filter(by_choice).map(|link| link.index).collect()
    }

    /// Why `link` doesn't belong into the flowtable; `None` if it does.
    pub fn reject(&self, link: &Link) -> Option<Unmanaged> {
        if link.loopback {
            Some(Unmanaged::Loopback)
        } else if self.exclude.is_match(link.name.as_text()) {
            Some(Unmanaged::Excluded)
        } else if self.include.as_ref().is_some_and(|include| !include.is_match(link.name.as_text())) {
            Some(Unmanaged::NotIncluded)
        } else {
            Unmanaged::of_state(link)
        }
    }
}

fn glob_set(patterns: &[String]) -> Result<GlobSet, BadGlob> {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        builder.add(Glob::new(pattern)?);
    }
    Ok(builder.build()?)
}

/// Why a link isn't in the flowtable. Its name, as JSON and metrics have it, is the variant's in kebab case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, EnumIter, IntoStaticStr)]
#[serde(rename_all = "kebab-case", tag = "problem")]
#[strum(serialize_all = "kebab-case")]
pub enum Unmanaged {
    /// Its packets are for this node itself.
    Loopback,
    /// Not up.
    Down,
    /// `--exclude-interfaces` names it.
    Excluded,
    /// `--exclude` names it: its flows are watched, but not offloaded.
    FlowsExcluded,
    /// `--interfaces` doesn't name it.
    NotIncluded,
    /// The kernel refuses the flowtable's hook on it.
    Refused {
        /// The kernel's error, in words.
        error: String,
    },
    /// A port whose bridge is in the flowtable instead.
    Port,
    /// The agent has no flowtable.
    NoRuleset,
    /// One of the flags leaves it out, or it is new; no agent runs here that could be asked. Told by `why` only.
    LeftOut,
    /// Nothing keeps it out: the agent is about to add it, or doesn't run. Told by `why` only.
    NotYet,
    /// Packets come in here, and the link on top of it is in the flowtable. Told by `why` only.
    Layered {
        /// The one on top.
        upper: String,
    },
}

impl Unmanaged {
    /// Why `link` is left out whatever the patterns say.
    pub fn of_state(link: &Link) -> Option<Self> {
        if link.loopback {
            Some(Self::Loopback)
        } else if !link.admin_up || link.oper_state == OperState::Down {
            Some(Self::Down)
        } else {
            // In a flowtable it would break every `nft -j list ruleset`.
            (!link.name.is_text()).then(|| Self::Refused { error: NO_TEXT.to_owned() })
        }
    }
}

const NO_TEXT: &str = "its name isn't UTF-8, which nft can't list; rename it";

impl Unmanaged {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.into()
    }

    /// Names of all that a running agent tells.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let told = |reason: &Self| !matches!(reason, Self::LeftOut | Self::NotYet | Self::Layered { .. });
        Self::iter().filter(told).map(|reason| reason.name())
    }
}

impl fmt::Display for Unmanaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Down => f.write_str("down"),
            Self::Excluded => f.write_str("excluded by --exclude-interfaces"),
            Self::FlowsExcluded => f.write_str("its flows are excluded by --exclude"),
            Self::NotIncluded => f.write_str("not among --interfaces"),
            Self::Refused { error } => write!(f, "the kernel refuses it: {error}"),
            Self::Port => f.write_str("a port, whose bridge is in the flowtable"),
            Self::NoRuleset => f.write_str("there is no flowtable"),
            Self::LeftOut => {
                f.write_str("left out by --interfaces or --exclude-interfaces, or new while no agent runs")
            }
            Self::NotYet => f.write_str("the agent hasn't taken it in yet"),
            Self::Layered { upper } => write!(f, "{upper} above it is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{IfName, test_link as link};

    fn selection(include: &[&str], exclude: &[&str]) -> Selection {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Selection::new(&owned(include), &owned(exclude)).unwrap()
    }

    #[test]
    fn state_decides_unless_globs_do() {
        let all = selection(&[], &[]);
        let cases = [
            (link("eth0"), None),
            (
                Link { name: IfName::from_bytes(b"p\xff").unwrap(), ..link("eth0") },
                Some(Unmanaged::Refused { error: NO_TEXT.to_owned() }),
            ),
            (Link { loopback: true, ..link("lo") }, Some(Unmanaged::Loopback)),
            (Link { admin_up: false, ..link("eth0") }, Some(Unmanaged::Down)),
            (Link { oper_state: OperState::Down, ..link("eth0") }, Some(Unmanaged::Down)),
            (Link { oper_state: OperState::Unknown, ..link("wg0") }, None),
            (Link { oper_state: OperState::Unknown, admin_up: false, ..link("wg0") }, Some(Unmanaged::Down)),
        ];
        for (link, expected) in cases {
            assert_eq!(all.reject(&link), expected, "{link:?}");
        }
    }

    #[test]
    fn exclusion_wins_over_inclusion() {
        let some = selection(&["eth*", "veth?"], &["eth1"]);
        assert_eq!(some.reject(&link("eth0")), None);
        assert_eq!(some.reject(&link("eth1")), Some(Unmanaged::Excluded));
        assert_eq!(some.reject(&link("veth1")), None);
        assert_eq!(some.reject(&link("veth12")), Some(Unmanaged::NotIncluded));
    }

    #[test]
    fn a_bad_glob_is_an_error() {
        assert!(Selection::new(&["eth[".to_owned()], &[]).is_err());
    }
}
