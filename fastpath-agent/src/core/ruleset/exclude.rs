//! Flows that are never offloaded: what `--exclude` and the file of `--exclude-file` say, checked, and made into keys
//! of sets. Reads no file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
};

use globset::{Glob, GlobSet, GlobSetBuilder};
use ipnet::IpNet;

use super::{
    chain::OwnChain,
    observed::ObservedTable,
    rule::{End, Marked, Rule},
    sets::{ExcludeSet, Key, OwnSet},
};
use crate::core::{
    flow::connection::{Entry, TCP, UDP},
    model::IfName,
    ruleset::{rule::MaskedMark, sets::Keys},
};

/// What an entry may look like, for messages and `--help`.
pub const GRAMMAR: &str = "an address or network (10.1.0.2, 10.1.0.0/16, fd00::/8), a port or range (tcp/443, udp/8000-8100, port/53 for both), a \
     protocol (protocol/udp, protocol/47), an interface (interface/veth*), or a firewall mark (mark/0x10, mark/0x10/0xff)";
/// Most firewall marks: each costs the packets that reach it two comparisons.
const MAX_MARKS: usize = 16;

/// Flows that stay on the normal path. Equal ones are the same however they were written.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    /// By set, each with its keys in order, and none empty.
    sets: BTreeMap<ExcludeSet, Keys>,
    marks: BTreeSet<MaskedMark>,
    /// Globs as written.
    interfaces: BTreeSet<String>,
    interface_globs: GlobSet,
}

/// An entry that can't be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct BadExclusion {
    /// Its line in the file, from 1; none for a flag.
    pub line: Option<usize>,
    /// What was written.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadExclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: '{}': {}", self.entry, self.reason),
            None => write!(f, "'{}': {}", self.entry, self.reason),
        }
    }
}

impl Exclusions {
    /// From entries of flags and the text of a file: an entry a line, `#` begins a comment.
    pub fn new(flags: &[String], file: &str) -> Result<Self, BadExclusion> {
        let mut exclusions = Self::default();
        let lines = file.lines().enumerate().map(|(number, line)| {
            let entry = line.split_once('#').map_or(line, |(entry, _)| entry);
            (Some(number + 1), entry.trim())
        });
        let flags = flags.iter().map(|flag| (None, flag.trim()));
        for (line, entry) in flags.chain(lines.filter(|(_, entry)| !entry.is_empty())) {
            exclusions.add(entry).map_err(|reason| BadExclusion { line, entry: entry.to_owned(), reason })?;
        }
        for keys in exclusions.sets.values_mut() {
            keys.sort_unstable();
            keys.dedup();
            keys.shrink_to_fit();
        }
        let mut globs = GlobSetBuilder::new();
        for glob in &exclusions.interfaces {
            globs.add(Glob::new(glob).expect("it was one when it was added"));
        }
        exclusions.interface_globs = globs.build().expect("each was valid");
        Ok(exclusions)
    }

    fn add(&mut self, entry: &str) -> Result<(), String> {
        if let Some(network) = network(entry) {
            let (set, key) = match network {
                IpNet::V4(v4) => (ExcludeSet::V4(v4.prefix_len()), Key::new(&v4.network().octets())),
                IpNet::V6(v6) => (ExcludeSet::V6(v6.prefix_len()), Key::new(&v6.network().octets())),
            };
            self.sets.entry(set).or_default().push(key);
            return Ok(());
        }
        let (kind, value) = entry.split_once('/').ok_or_else(|| format!("use {GRAMMAR}"))?;
        match kind {
            "tcp" => self.ports(&[ExcludeSet::TcpPorts], value)?,
            "udp" => self.ports(&[ExcludeSet::UdpPorts], value)?,
            "port" => self.ports(&[ExcludeSet::TcpPorts, ExcludeSet::UdpPorts], value)?,
            "protocol" => {
                let protocol =
                    protocol(value).ok_or("protocols are tcp, udp, gre, or a number from 0 to 255")?;
                self.sets.entry(ExcludeSet::Protocols).or_default().push(Key::new(&[protocol]));
            }
            "interface" => {
                Glob::new(value).map_err(|error| format!("not a glob like 'veth*' ({error})"))?;
                self.interfaces.insert(value.to_owned());
            }
            "mark" => {
                let mark =
                    mark(value).ok_or("marks are like 0x10, or 0x10/0xff with a mask that covers them")?;
                self.marks.insert(mark);
                if self.marks.len() > MAX_MARKS {
                    return Err(format!("at most {MAX_MARKS} marks are possible"));
                }
            }
            _ => return Err(format!("use {GRAMMAR}")),
        }
        Ok(())
    }

    fn ports(&mut self, sets: &[ExcludeSet], text: &str) -> Result<(), String> {
        let range =
            ports(text).ok_or("ports are numbers from 0 to 65535, and ranges go upwards (8000-8100)")?;
        for set in sets {
            let keys = self.sets.entry(*set).or_default();
            keys.extend(range.clone().map(|port| Key::new(&port.to_be_bytes())));
        }
        Ok(())
    }

    /// The rules that keep these flows on the normal path.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for mark in self.marks() {
            rules.extend([Marked::Packet, Marked::Connection].map(|of| Rule::ExcludedMark { mark, of }));
        }
        for (set, _) in self.sets() {
            match set {
                ExcludeSet::Protocols => rules.push(Rule::ExcludedProtocol),
                set => rules.extend(End::ALL.map(|end| Rule::Excluded { set, end })),
            }
        }
        rules
    }

    /// Sets with their keys.
    pub fn sets(&self) -> impl Iterator<Item = (ExcludeSet, &Keys)> {
        self.sets.iter().map(|(set, keys)| (*set, keys))
    }

    /// What the rules of `table` exclude, but for interfaces, which no rule names.
    pub fn of_rules(table: &ObservedTable) -> Self {
        let mut exclusions = Self::default();
        let rules = table.chain(OwnChain::Offload).into_iter().flat_map(|chain| &chain.rules);
        for rule in rules.filter_map(|rule| Rule::recognise(&rule.exprs)) {
            let set = match rule {
                Rule::Excluded { set, .. } => set,
                Rule::ExcludedProtocol => ExcludeSet::Protocols,
                Rule::ExcludedMark { mark, .. } => {
                    exclusions.marks.insert(mark);
                    continue;
                }
                _ => continue,
            };
            if let Some(observed) = table.set(OwnSet::Exclude(set)) {
                exclusions.sets.entry(set).or_insert_with(|| observed.keys.clone());
            }
        }
        exclusions
    }

    /// These interfaces, and else what the rules of `table` exclude.
    pub fn with_rules_of(&self, table: &ObservedTable) -> Self {
        let Self { sets, marks, .. } = Self::of_rules(table);
        Self { sets, marks, ..self.clone() }
    }

    /// The exclusion that a connection falls under, as people write it. The marks of its packets are nowhere to be read.
    pub fn of(&self, entry: &Entry) -> Option<String> {
        let listed = |set: ExcludeSet, end| {
            let key = set.key_of(entry, end)?;
            self.keys(set).binary_search(&key).is_ok().then(|| set.describe(key))
        };
        let by_key = self.sets.keys().find_map(|set| End::ALL.into_iter().find_map(|end| listed(*set, end)));
        by_key.or_else(|| {
            let mark = self.marks.iter().find(|mark| entry.mark & mark.mask == mark.value)?;
            Some(format!("mark/{mark}"))
        })
    }

    /// Keys of one set; none if it isn't wanted.
    pub fn keys(&self, set: ExcludeSet) -> &[Key] {
        self.sets.get(&set).map_or(&[], Vec::as_slice)
    }

    /// Firewall marks.
    pub fn marks(&self) -> impl Iterator<Item = MaskedMark> {
        self.marks.iter().copied()
    }

    /// Whether flows by this interface stay on the normal path.
    pub fn has_interface(&self, name: &IfName) -> bool {
        self.interface_globs.is_match(name.as_text())
    }

    /// Some interfaces are named.
    pub fn names_interfaces(&self) -> bool {
        !self.interfaces.is_empty()
    }

    /// How many entries there are, ports one by one.
    pub fn len(&self) -> usize {
        self.sets.values().map(Vec::len).sum::<usize>() + self.marks.len() + self.interfaces.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Marks whose packets the rules of `table` leave alone.
pub fn marks_of_packets(table: &ObservedTable) -> impl Iterator<Item = MaskedMark> {
    let rules = table.chain(OwnChain::Offload).into_iter().flat_map(|chain| &chain.rules);
    rules.filter_map(|rule| match Rule::recognise(&rule.exprs)? {
        Rule::ExcludedMark { mark, of: Marked::Packet } => Some(mark),
        _ => None,
    })
}

impl ExcludeSet {
    /// The key that the rules look for at this end; `None` where the connection has no such thing.
    fn key_of(self, entry: &Entry, end: End) -> Option<Key> {
        if self == Self::Protocols {
            return Some(Key::new(&[entry.original.protocol]));
        }
        let (tuple, source) = match end {
            End::OriginalSource => (&entry.original, true),
            End::OriginalDestination => (&entry.original, false),
            End::ReplySource => (&entry.reply, true),
            End::ReplyDestination => (&entry.reply, false),
        };
        let (address, port) = match source {
            true => (tuple.source, tuple.source_port),
            false => (tuple.destination, tuple.destination_port),
        };
        let network = |length| IpNet::new(address, length).ok().map(|network| network.network());
        match (self, address) {
            (Self::V4(length), IpAddr::V4(_)) | (Self::V6(length), IpAddr::V6(_)) => match network(length)? {
                IpAddr::V4(v4) => Some(Key::new(&v4.octets())),
                IpAddr::V6(v6) => Some(Key::new(&v6.octets())),
            },
            (Self::TcpPorts, _) if tuple.protocol == TCP => Some(Key::new(&port.to_be_bytes())),
            (Self::UdpPorts, _) if tuple.protocol == UDP => Some(Key::new(&port.to_be_bytes())),
            _ => None,
        }
    }
}

impl PartialEq for Exclusions {
    fn eq(&self, other: &Self) -> bool {
        (&self.sets, &self.marks, &self.interfaces) == (&other.sets, &other.marks, &other.interfaces)
    }
}

impl Eq for Exclusions {}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn protocol(text: &str) -> Option<u8> {
    match text {
        "tcp" => Some(6),
        "udp" => Some(17),
        "gre" => Some(47),
        number => number.parse().ok(),
    }
}

fn mark(text: &str) -> Option<MaskedMark> {
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (number(value)?, number(mask)?),
        None => (number(text)?, u32::MAX),
    };
    (value & !mask == 0).then_some(MaskedMark { value, mask })
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
#[path = "exclude_tests.rs"]
mod tests;
