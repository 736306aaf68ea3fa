//! Logs which of other programs' rules cost acceleration, and how to ignore them: once for each change. Decides nothing.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::core::policy::concern::Concern;

/// What was said last.
#[derive(Debug, Default)]
pub struct Said {
    changing: Option<String>,
    everything: Option<String>,
}

impl Said {
    /// Says what is new.
    pub fn say(&mut self, rules: &[Concern]) {
        let at_any_time = first(rules, |rule| rule.is_changing() && rule.when.anytime);
        let always = at_any_time.is_some();
        let changing = at_any_time.or_else(|| first(rules, Concern::is_changing));
        if self.changing != changing {
            match &changing {
                Some(rule) if always => info!(
                    %rule,
                    "offloaded flows are revalidated at intervals (--enforce-within): a rule's verdict changes without an event"
                ),
                Some(rule) => info!(
                    %rule,
                    "offloaded flows are revalidated at known moments: a rule's verdict changes by the clock or when elements \
                     time out"
                ),
                None => info!("no rule's verdict changes without an event any more"),
            }
        }
        self.changing = changing;
        let everything = first(rules, Concern::leaves_everything_out);
        if self.everything != everything {
            match &everything {
                Some(rule) => warn!(
                    %rule,
                    "no flow is offloaded: a rule wants every packet and has no conditions that the agent could copy. To offload \
                     flows anyway, name its comment, chain or handle in --ignore-rule"
                ),
                None => info!("no rule keeps all flows on the normal path any more"),
            }
        }
        self.everything = everything;
    }
}

/// The first of such rules, and how many more there are.
fn first(rules: &[Concern], is: impl Fn(&Concern) -> bool) -> Option<String> {
    let mut such = rules.iter().filter(|rule| is(rule));
    let rule = such.next()?;
    Some(match such.count() {
        0 => format!("{rule} ({})", rule.cause),
        more => format!("{rule} ({}), and {more} more", rule.cause),
    })
}

/// Number of rules, by class and by how the agent handles them.
pub(super) fn counted(rules: &[Concern]) -> BTreeMap<(&'static str, &'static str), u64> {
    let mut counts = BTreeMap::new();
    for rule in rules {
        *counts.entry((rule.class.name(), rule.follows())).or_default() += 1;
    }
    counts
}
