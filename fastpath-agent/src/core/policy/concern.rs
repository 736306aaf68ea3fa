//! Other programs' rules that offloaded packets bypass and that can't be settled once for a flow: they change by themselves, or
//! want every packet. Jumps are followed; a rule that no packet of an established connection reaches isn't one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Serialize, Serializer};

use super::{
    moments::When,
    others::{Others, POSTROUTING, PREROUTING},
    rule::Rule,
    traits::{ADDRESS, Cause, TIMEOUT, Traits},
    walk::{View, Walk, Way},
};

use crate::core::{
    policy::{
        chain::Chain,
        outcome::{Established, Outcome},
    },
    ruleset::{
        alternatives::{Alternatives, MOST},
        by_tuple::Seen,
        conditions::Conditions,
        expr::{Direction, Expr, MetaKey},
    },
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
    /// Offloaded flows are revalidated, again and again.
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
    /// "inet", "ip", "ip6", "netdev" or "bridge"; "legacy" for a table of iptables-legacy.
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
    /// When its verdict may change, if it changes by itself.
    #[serde(rename = "judged", serialize_with = "how_often")]
    pub when: When,
    /// The ways by which packets reach it, and what they meet by then; none where that doesn't matter.
    #[serde(rename = "conditions", serialize_with = "written")]
    pub ways: Vec<Way>,
    /// Offloaded flows may bypass it (`--ignore-rule`).
    pub ignored: bool,
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn written<S: Serializer>(ways: &[Way], serializer: S) -> Result<S::Ok, S::Error> {
    as_text(&conditions(ways), serializer)
}

fn how_often<S: Serializer>(when: &When, serializer: S) -> Result<S::Ok, S::Error> {
    match when {
        when if *when == When::default() => serializer.serialize_none(),
        when => serializer.serialize_str(when.name()),
    }
}

fn conditions(ways: &[Way]) -> Alternatives {
    ways.iter().map(|way| way.conditions.clone()).collect()
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
            when: When::anytime(),
            ways: Vec::new(),
            ignored: false,
        }
    }

    /// What flows match by it, as far as that can be copied.
    pub fn conditions(&self) -> Alternatives {
        conditions(&self.ways)
    }

    /// Offloaded flows have to be revalidated because of it.
    pub fn is_changing(&self) -> bool {
        self.changes_by().is_some()
    }

    /// What it asks that changes, one of [`CHANGING`](super::traits::CHANGING): a connection's mark may also say which flows
    /// want every packet.
    pub fn changes_by(&self) -> Option<&'static str> {
        let mut conditions = self.ways.iter().flat_map(|way| &way.conditions.0);
        let mut by_mark = || conditions.any(|condition| matches!(condition, Expr::Ct { .. }));
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
        self.wants_every_packet() && self.left_out(false).iter().any(has_none)
    }

    /// The conditions that our chain has to check for it: those of the rule and of the jumps that lead to it, or what they say of the
    /// connection where NAT is between the rule and our chain. `in_vrf`: a packet may come in by another interface there than
    /// before it was routed.
    pub fn left_out(&self, in_vrf: bool) -> Vec<Conditions> {
        let mut all: Vec<Conditions> = Vec::new();
        for Way { view, conditions } in &self.ways {
            let conditions =
                if in_vrf && view.prerouting { conditions.without_input() } else { conditions.clone() };
            let by_tuple = [(Seen::BeforeNat, view.before_nat), (Seen::BehindNat, view.behind_nat)];
            let by_tuple = by_tuple.into_iter().filter(|(_, is)| *is);
            let mut asked: Vec<Conditions> = by_tuple
                .flat_map(|(seen, _)| Direction::ALL.map(|direction| conditions.by_tuple(direction, seen)))
                .collect();
            if view.as_ours || asked.is_empty() {
                asked.insert(0, conditions);
            }
            for one in asked {
                if !all.contains(&one) {
                    all.push(one);
                }
            }
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

/// What is done about a rule: its flows aren't offloaded; they are revalidated all the time; nothing, by choice; nothing, since it
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
    /// `ends_leave`: FIN and RST take the normal path. `routed_by_mark`: a policy rule asks for marks.
    pub fn concerns(&self, ends_leave: bool, routed_by_mark: bool) -> Vec<Concern> {
        let mut concerns = Vec::new();
        let marks_count = routed_by_mark || self.asks_marks();
        let edits_seen = self.see_edits();
        for ((family, table), chains) in &self.0 {
            let mut walk = Walk::through(chains, edits_seen, ends_leave);
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
                walk.from(name, view);
            }
            let family_of_table = Conditions::of_family(*family);
            // What no packet that reaches a rule meets, since earlier rules of its chain took such packets.
            let (mut in_chain, mut taken) = ("", Conditions::default());
            for ((chain, position), ways) in walk.found() {
                let rule = &chains[chain].rules[position];
                if in_chain != chain {
                    (in_chain, taken) = (chain, Conditions::default());
                }
                if let Some(traits) = &rule.traits {
                    let decides = marks_count && traits.marks
                        || traits.fills_asked
                        || decides(chains, &rule.outcome, marks_count, &mut BTreeSet::new());
                    concerns.extend(concern(traits, decides, edits_seen, &ways, &taken).map(|concern| {
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
        concerns.extend(self.blind_chains());
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

/// Name of a family (`NFPROTO_*`), as nft writes it.
pub fn family_name(family: u8) -> &'static str {
    match family {
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "inet",
    }
}

/// `ways`: those to the rule. `edits_seen`: chains that offloaded packets pass ask for what rules edit. `taken`: what no packet that reaches the rule
/// meets.
fn concern(
    traits: &Traits,
    decides: bool,
    edits_seen: bool,
    ways: &[Way],
    taken: &Conditions,
) -> Option<Concern> {
    let Traits { every_packet, header, changing, passive, conditions, comment, .. } = traits;
    let acts = |cause: &Cause| ["copy", TIMEOUT].contains(&cause.word) || *cause.detail == *ADDRESS;
    let acts = every_packet.as_ref().is_some_and(acts);
    let edit = traits.edit().filter(|_| edits_seen);
    let (class, cause) = match (every_packet, edit, changing) {
        (Some(cause), ..) if decides || acts => (Class::EveryPacket, cause),
        _ if decides && let Some(cause) = header => (Class::EveryPacket, cause),
        (_, Some(cause), _) => (Class::EveryPacket, cause),
        (.., Some(cause)) if decides => (Class::Changing, cause),
        (Some(cause), ..) => (Class::NotDecisive, cause),
        _ => (Class::NotDecisive, passive.as_ref()?),
    };
    let ways = match class {
        Class::EveryPacket => {
            let met = |way: &Way| way.and(conditions).and(taken);
            match ways.len() * traits.one_of.len() {
                1..=MOST => ways
                    .iter()
                    .flat_map(|way| traits.one_of.iter().map(move |one| met(way).and(one)))
                    .collect(),
                _ => ways.iter().map(met).collect(),
            }
        }
        _ => Vec::new(),
    };
    let when = match class {
        Class::Changing => traits.when.clone(),
        _ => When::default(),
    };
    Some(Concern {
        family: "",
        table: String::new(),
        chain: String::new(),
        handle: 0,
        comment: comment.as_deref().map(str::to_owned),
        class,
        cause: cause.clone(),
        when,
        ways,
        ignored: false,
    })
}

/// Whether a packet's fate may depend on a rule with this outcome. Chains that only log decide nothing, nor do those that
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

#[cfg(test)]
#[path = "concern_tests.rs"]
mod tests;
