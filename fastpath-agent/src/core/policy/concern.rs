//! Rules of others that offloaded packets don't pass and that can't be settled once for a flow: they change by themselves, or
//! want every packet. Jumps are followed; a rule that no packet of an established connection reaches isn't one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Serialize, Serializer};

use super::{
    others::{Chain, Others, POSTROUTING, PREROUTING},
    rule::{Established, Outcome},
    traits::{Cause, Traits},
};
use crate::core::ruleset::{
    conditions::Conditions,
    expr::{Expr, MetaKey},
};

/// Where NAT changes addresses (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`): between the two all chains see the same ones.
const DNAT: i32 = -100;
const SNAT: i32 = 100;

/// What a rule asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Flows that it matches aren't offloaded.
    EveryPacket,
    /// Offloaded flows are judged anew, again and again.
    Changing,
    /// Nothing: it decides over no packet's fate.
    NotDecisive,
}

impl Class {
    /// Names of all.
    pub const NAMES: [&str; 3] = ["every-packet", "changing", "not-decisive"];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Such a rule. Its JSON form is part of what `status -o json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concern {
    /// "inet", "ip" or "ip6"; "legacy" for a table of iptables-legacy.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// The kernel's handle, unique in the table; 0 where it has none.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// What it asks of us.
    pub class: Class,
    /// By which of its expressions.
    #[serde(serialize_with = "as_text")]
    pub cause: Cause,
    /// What flows match by it, as far as that can be copied.
    #[serde(serialize_with = "as_text")]
    pub conditions: Conditions,
    /// Packets pass it before they are routed.
    #[serde(skip)]
    pub prerouting: bool,
    /// It may be passed by (`--ignore-rule`).
    pub ignored: bool,
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Concern {
    /// The tables couldn't be read: anything may be in them.
    pub fn unread() -> Self {
        Self::table("nftables", "unreadable", "unknown")
    }

    /// A table of iptables-legacy, whose rules aren't read.
    pub fn legacy(table: &str) -> Self {
        Self::table("legacy", table, "legacy")
    }

    fn table(family: &'static str, table: &str, word: &'static str) -> Self {
        Self {
            family,
            table: table.to_owned(),
            chain: String::new(),
            handle: 0,
            comment: None,
            class: Class::Changing,
            cause: Cause { word, detail: "".into() },
            conditions: Conditions::default(),
            prerouting: false,
            ignored: false,
        }
    }

    /// Offloaded flows have to be judged anew because of it: it changes, or a connection's mark says which flows it wants.
    pub fn is_changing(&self) -> bool {
        let by_mark = || self.conditions.0.iter().any(|condition| matches!(condition, Expr::Ct { .. }));
        !self.ignored && (self.class == Class::Changing || self.class == Class::EveryPacket && by_mark())
    }

    /// Flows have to be left out because of it.
    pub fn wants_every_packet(&self) -> bool {
        self.class == Class::EveryPacket && !self.ignored
    }

    /// It has no conditions that could be copied but for the family: all flows (of the family) are left out.
    pub fn leaves_everything_out(&self) -> bool {
        let is_family = |load: &Expr| matches!(load, Expr::Meta { key: MetaKey::NfProto, .. });
        self.wants_every_packet() && self.conditions.without(is_family).0.is_empty()
    }

    /// What is done about it, one of [`FOLLOWS`].
    pub fn follows(&self) -> &'static str {
        let [respected, revalidated, ignored, not_decisive] = FOLLOWS;
        match self.class {
            Class::NotDecisive => not_decisive,
            _ if self.ignored => ignored,
            Class::EveryPacket => respected,
            Class::Changing => revalidated,
        }
    }
}

/// What is done about a rule: its flows aren't offloaded; they are judged anew all the time; nothing, by choice; nothing, since it
/// decides over no packet's fate.
pub const FOLLOWS: [&str; 4] = ["respected", "re-validated", "ignored", "not-decisive"];

/// As an operator finds it: `inet edge forward handle 7 "comment"`.
impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain, handle, comment, .. } = self;
        write!(f, "{family} {table}")?;
        if *handle != 0 {
            write!(f, " {chain} handle {handle}")?;
        }
        match comment {
            Some(comment) => write!(f, " \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Others {
    /// All such rules, in order of tables, chains and rules.
    pub fn concerns(&self) -> Vec<Concern> {
        let mut concerns = Vec::new();
        let edits_seen = self.see_offloaded();
        for ((family, table), chains) in &self.0 {
            let mut walk = Walk { chains, fates: BTreeMap::new(), found: BTreeMap::new() };
            for (name, chain) in chains.iter().filter(|(_, chain)| Self::counts(*family, chain)) {
                let Some(base) = &chain.base else { continue };
                let view = View {
                    prerouting: base.hook == PREROUTING,
                    other_addresses: base.hook == PREROUTING && base.priority <= DNAT
                        || base.hook == POSTROUTING && base.priority >= SNAT,
                };
                // Each base chain may reach the same chains another way.
                walk.fates.clear();
                walk.chain(name, view);
            }
            for ((chain, position), view) in walk.found {
                let rule = &chains[chain].rules[position];
                if let Some(traits) = &rule.traits {
                    let decides = decides(chains, &rule.outcome, &mut BTreeSet::new());
                    concerns.extend(concern(traits, decides, edits_seen, view).map(|concern| Concern {
                        family: family_name(*family),
                        table: table.clone(),
                        chain: chain.to_owned(),
                        handle: rule.handle,
                        ..concern
                    }));
                }
            }
        }
        concerns
    }
}

fn family_name(family: u8) -> &'static str {
    match family {
        2 => "ip",
        10 => "ip6",
        _ => "inet",
    }
}

/// `edits_seen`: chains that offloaded packets pass may ask for what the rule edits.
fn concern(traits: &Traits, decides: bool, edits_seen: bool, view: View) -> Option<Concern> {
    let Traits { every_packet, changing, passive, conditions, comment, .. } = traits;
    let copies = every_packet.as_ref().is_some_and(|cause| cause.word == "copy");
    let edit = traits.edit().filter(|_| edits_seen);
    let (class, cause) = match (every_packet, edit, changing) {
        (Some(cause), ..) if decides || copies => (Class::EveryPacket, cause),
        (_, Some(cause), _) => (Class::EveryPacket, cause),
        (.., Some(cause)) if decides => (Class::Changing, cause),
        (Some(cause), ..) => (Class::NotDecisive, cause),
        _ => (Class::NotDecisive, passive.as_ref()?),
    };
    let conditions = match class {
        Class::EveryPacket if view.other_addresses => conditions.without_addresses(),
        Class::EveryPacket => conditions.clone(),
        _ => Conditions::default(),
    };
    Some(Concern {
        family: "",
        table: String::new(),
        chain: String::new(),
        handle: 0,
        comment: comment.as_deref().map(str::to_owned),
        class,
        cause: cause.clone(),
        conditions,
        prerouting: view.prerouting,
        ignored: false,
    })
}

/// Whether what becomes of a packet may hang on a rule with this outcome. Chains that only log and mark decide nothing.
fn decides<'c>(
    chains: &'c BTreeMap<String, Chain>,
    outcome: &'c Outcome,
    seen: &mut BTreeSet<&'c str>,
) -> bool {
    match outcome {
        Outcome::Continue => false,
        Outcome::Jump(to) => {
            seen.insert(to)
                && chains.get(&**to).is_none_or(|chain| {
                    let reached = chain.rules.iter().filter(|rule| rule.established != Established::None);
                    reached
                        .into_iter()
                        .any(|rule| rule.outcome != Outcome::Return && decides(chains, &rule.outcome, seen))
                })
        }
        Outcome::Accept | Outcome::Deny | Outcome::Return | Outcome::Goto(_) => true,
    }
}

/// How a rule sees packets, compared with our chain.
#[derive(Clone, Copy, Debug, Default)]
struct View {
    prerouting: bool,
    /// Before or after NAT.
    other_addresses: bool,
}

struct Walk<'c> {
    chains: &'c BTreeMap<String, Chain>,
    /// Whether all packets of established connections that come to the chain are accepted, or denied, in it.
    fates: BTreeMap<&'c str, bool>,
    /// Rules that such packets reach, by chain and position.
    found: BTreeMap<(&'c str, usize), View>,
}

impl<'c> Walk<'c> {
    /// Goes through a chain; true if no such packet gets to its end.
    fn chain(&mut self, name: &'c str, view: View) -> bool {
        if let Some(known) = self.fates.get(name) {
            return *known;
        }
        self.fates.insert(name, false);
        let ends = self.chains.get(name).is_some_and(|chain| self.rules(name, chain, view));
        self.fates.insert(name, ends);
        ends
    }

    fn rules(&mut self, name: &'c str, chain: &'c Chain, view: View) -> bool {
        for (position, rule) in chain.rules.iter().enumerate() {
            if rule.established == Established::None {
                continue;
            }
            if rule.traits.is_some() {
                let known = self.found.entry((name, position)).or_default();
                known.prerouting |= view.prerouting;
                known.other_addresses |= view.other_addresses;
            }
            let all = rule.established == Established::All;
            let ends = match &rule.outcome {
                Outcome::Continue => continue,
                Outcome::Accept | Outcome::Deny => true,
                Outcome::Return if all => return false,
                Outcome::Return => continue,
                Outcome::Jump(to) => self.chain(to, view),
                Outcome::Goto(to) => {
                    let ends = self.chain(to, view);
                    if all {
                        return ends;
                    }
                    continue;
                }
            };
            if all && ends {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
#[path = "concern_tests.rs"]
mod tests;
