//! Rules of others that offloaded packets don't pass and that can't be settled once for a flow: they change by themselves, or
//! want every packet. Jumps are followed; a rule that no packet of an established connection reaches isn't one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::BitOrAssign,
};

use serde::{Serialize, Serializer};

use super::{
    others::{Chain, Others, POSTROUTING, PREROUTING},
    rule::{Established, Outcome, Rule},
    traits::{Cause, TIMEOUT, Traits},
};
use crate::core::ruleset::{
    by_tuple::Seen,
    conditions::Conditions,
    expr::{Direction, Expr, MetaKey},
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
    /// Where packets pass it.
    #[serde(skip)]
    pub view: View,
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
            view: View::default(),
            ignored: false,
        }
    }

    /// Offloaded flows have to be judged anew because of it.
    pub fn is_changing(&self) -> bool {
        self.changes_by().is_some()
    }

    /// What it asks that changes, one of [`CHANGING`](super::traits::CHANGING): a connection's mark may also say which flows
    /// want every packet.
    pub fn changes_by(&self) -> Option<&'static str> {
        let by_mark = || self.conditions.0.iter().any(|condition| matches!(condition, Expr::Ct { .. }));
        match self.class {
            _ if self.ignored => None,
            Class::Changing => Some(self.cause.word),
            Class::EveryPacket if by_mark() => Some("ct-mark"),
            Class::EveryPacket | Class::NotDecisive => None,
        }
    }

    /// Flows have to be left out because of it.
    pub fn wants_every_packet(&self) -> bool {
        self.class == Class::EveryPacket && !self.ignored
    }

    /// It has no conditions that could be copied but for the family: all flows (of the family) are left out.
    pub fn leaves_everything_out(&self) -> bool {
        let is_family = |load: &Expr| matches!(load, Expr::Meta { key: MetaKey::NfProto, .. });
        let has_none = |conditions: &Conditions| conditions.without(is_family).0.is_empty();
        self.wants_every_packet() && self.left_out().iter().any(has_none)
    }

    /// The conditions that our chain has to ask for it: those of the rule, or what they say of the connection where NAT
    /// stands between the rule and our chain.
    pub fn left_out(&self) -> Vec<Conditions> {
        let View { as_ours, before_nat, behind_nat, .. } = self.view;
        let mut all: Vec<Conditions> = Vec::new();
        if as_ours || !before_nat && !behind_nat {
            all.push(self.conditions.clone());
        }
        for (seen, _) in
            [(Seen::BeforeNat, before_nat), (Seen::BehindNat, behind_nat)].into_iter().filter(|(_, is)| *is)
        {
            all.extend(Direction::ALL.map(|direction| self.conditions.by_tuple(direction, seen)));
        }
        all
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

/// Classes, and what is done about rules of each.
pub const HANDLED: [(Class, &str); 5] = [
    (Class::EveryPacket, FOLLOWS[0]),
    (Class::EveryPacket, FOLLOWS[2]),
    (Class::Changing, FOLLOWS[1]),
    (Class::Changing, FOLLOWS[2]),
    (Class::NotDecisive, FOLLOWS[3]),
];

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
        let marks_count = self.asks_marks();
        let edits_seen = self.see_edits();
        for ((family, table), chains) in &self.0 {
            let mut walk = Walk { chains, fates: BTreeMap::new(), found: BTreeMap::new() };
            for (name, chain) in chains.iter().filter(|(_, chain)| Self::counts(*family, chain)) {
                let Some(base) = &chain.base else { continue };
                let before_nat = base.hook == PREROUTING && base.priority <= DNAT;
                let behind_nat = base.hook == POSTROUTING && base.priority >= SNAT;
                let view = View {
                    prerouting: base.hook == PREROUTING,
                    as_ours: !before_nat && !behind_nat,
                    before_nat,
                    behind_nat,
                };
                // Each base chain may reach the same chains another way.
                walk.fates.clear();
                walk.chain(name, view);
            }
            walk.timeouts();
            let family_of_table = Conditions::of_family(*family);
            // What no packet meets that comes to a rule, since earlier ones of its chain took it.
            let (mut in_chain, mut taken) = ("", Conditions::default());
            for ((chain, position), view) in walk.found {
                let rule = &chains[chain].rules[position];
                if in_chain != chain {
                    (in_chain, taken) = (chain, Conditions::default());
                }
                if let Some(traits) = &rule.traits {
                    let decides = marks_count && traits.marks
                        || decides(chains, &rule.outcome, marks_count, &mut BTreeSet::new());
                    concerns.extend(concern(traits, decides, edits_seen, view, &taken).map(|concern| {
                        Concern {
                            family: family_name(*family),
                            table: table.clone(),
                            chain: chain.to_owned(),
                            handle: rule.handle,
                            ..concern
                        }
                    }));
                    if traits.exact && matches!(rule.outcome, Outcome::Accept | Outcome::Deny) {
                        taken.0.extend(traits.conditions.inverse(&family_of_table).unwrap_or_default().0);
                    }
                }
            }
        }
        concerns
    }

    /// Whether a rule decides by a mark, so that it matters which rule sets one.
    fn asks_marks(&self) -> bool {
        let mut rules = self.0.values().flat_map(BTreeMap::values).flat_map(|chain| &chain.rules);
        rules.any(|rule| {
            rule.asks_mark && rule.outcome != Outcome::Continue && rule.established != Established::None
        })
    }
}

fn family_name(family: u8) -> &'static str {
    match family {
        2 => "ip",
        10 => "ip6",
        _ => "inet",
    }
}

/// `edits_seen`: chains that offloaded packets pass ask for what rules edit. `taken`: what no packet that comes to the rule
/// meets.
fn concern(
    traits: &Traits,
    decides: bool,
    edits_seen: bool,
    view: View,
    taken: &Conditions,
) -> Option<Concern> {
    let Traits { every_packet, changing, passive, conditions, comment, .. } = traits;
    let acts = every_packet.as_ref().is_some_and(|cause| ["copy", TIMEOUT].contains(&cause.word));
    let edit = traits.edit().filter(|_| edits_seen);
    let (class, cause) = match (every_packet, edit, changing) {
        (Some(cause), ..) if decides || acts => (Class::EveryPacket, cause),
        (_, Some(cause), _) => (Class::EveryPacket, cause),
        (.., Some(cause)) if decides => (Class::Changing, cause),
        (Some(cause), ..) => (Class::NotDecisive, cause),
        _ => (Class::NotDecisive, passive.as_ref()?),
    };
    let mut conditions = match class {
        Class::EveryPacket => conditions.clone(),
        _ => Conditions::default(),
    };
    if class == Class::EveryPacket {
        conditions.0.extend(taken.0.iter().cloned());
    }
    Some(Concern {
        family: "",
        table: String::new(),
        chain: String::new(),
        handle: 0,
        comment: comment.as_deref().map(str::to_owned),
        class,
        cause: cause.clone(),
        conditions,
        view,
        ignored: false,
    })
}

/// Whether what becomes of a packet may hang on a rule with this outcome. Chains that only log decide nothing, nor do those that
/// mark packets, unless marks count.
fn decides<'c>(
    chains: &'c BTreeMap<String, Chain>,
    outcome: &'c Outcome,
    marks_count: bool,
    seen: &mut BTreeSet<&'c str>,
) -> bool {
    match outcome {
        Outcome::Continue => false,
        Outcome::Jump(to) => {
            seen.insert(to)
                && chains.get(&**to).is_none_or(|chain| {
                    let reached = chain.rules.iter().filter(|rule| rule.established != Established::None);
                    let marks = |rule: &Rule| rule.traits.as_ref().is_some_and(|traits| traits.marks);
                    reached.into_iter().any(|rule| {
                        marks_count && marks(rule)
                            || rule.outcome != Outcome::Return
                                && decides(chains, &rule.outcome, marks_count, seen)
                    })
                })
        }
        Outcome::Choose(outcomes) => {
            outcomes.iter().any(|outcome| decides(chains, outcome, marks_count, seen))
        }
        Outcome::Accept | Outcome::Deny | Outcome::Return | Outcome::Goto(_) => true,
    }
}

/// Where packets pass a rule, compared with our chain. A chain may be reached from several places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Before they are routed.
    pub prerouting: bool,
    /// With the addresses that our chain sees.
    pub as_ours: bool,
    /// With those before NAT.
    pub before_nat: bool,
    /// With those behind it.
    pub behind_nat: bool,
}

impl BitOrAssign for View {
    fn bitor_assign(&mut self, other: Self) {
        let Self { prerouting, as_ours, before_nat, behind_nat } = other;
        self.prerouting |= prerouting;
        self.as_ours |= as_ours;
        self.before_nat |= before_nat;
        self.behind_nat |= behind_nat;
    }
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

    /// Rules that give connections timeouts do so with the first packet, so that others than those which later packets reach
    /// count, too.
    fn timeouts(&mut self) {
        for (name, chain) in self.chains {
            for (position, rule) in chain.rules.iter().enumerate() {
                if rule.traits.as_ref().is_some_and(|traits| traits.gives_timeout()) {
                    let anywhere =
                        View { prerouting: true, as_ours: true, before_nat: true, behind_nat: true };
                    self.found.entry((name, position)).or_insert(anywhere);
                }
            }
        }
    }

    fn rules(&mut self, name: &'c str, chain: &'c Chain, view: View) -> bool {
        for (position, rule) in chain.rules.iter().enumerate() {
            if rule.established == Established::None {
                continue;
            }
            if rule.traits.is_some() {
                *self.found.entry((name, position)).or_default() |= view;
            }
            let all = rule.established == Established::All;
            for outcome in rule.outcome.each() {
                let ends = match outcome {
                    Outcome::Continue | Outcome::Choose(_) => continue,
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
        }
        false
    }
}

#[cfg(test)]
#[path = "concern_tests.rs"]
mod tests;
