//! Flows that aren't offloaded since a rule of another program wants every packet: which rule, as far as a connection tells. Where
//! a rule asks for interfaces or labels, `why` knows more.

use super::connection::Entry;
use crate::core::{
    policy::concern::Concern,
    ruleset::{conditions::Conditions, packet::Packet},
};

/// So many rules are told apart.
const MOST: usize = 256;

/// Rules that want every packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut(Vec<(Conditions, String)>);

impl LeftOut {
    /// Of these rules; `copied` says whether our table has a rule with such conditions.
    pub fn new(rules: &[Concern], copied: impl Fn(&Conditions) -> bool) -> Self {
        let wanting = rules.iter().filter(|rule| rule.wants_every_packet());
        let conditions =
            wanting.flat_map(|rule| rule.left_out(false).into_iter().map(move |one| (one, rule)));
        let known = conditions.filter(|(conditions, _)| copied(conditions));
        Self(known.take(MOST).map(|(conditions, rule)| (conditions, rule.to_string())).collect())
    }

    /// The first rule that surely wants the packets of one of its directions.
    pub fn by(&self, entry: &Entry) -> Option<&str> {
        if self.0.is_empty() {
            return None;
        }
        let packets = Packet::of(entry);
        let wants = |conditions| packets.iter().any(|packet| packet.meets(conditions) == Some(true));
        self.0.iter().find(|(conditions, _)| wants(conditions)).map(|(_, rule)| rule.as_str())
    }
}

/// Family, table and chain of a rule that [`LeftOut::by`] has named: handles come and go with each time that rules are loaded.
pub fn place(rule: &str) -> &str {
    rule.split(" handle ").next().unwrap_or(rule)
}
