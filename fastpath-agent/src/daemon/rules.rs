//! Says in the log which rules of others cost acceleration, and how to have them passed by: once for each change. Decides nothing.

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
                    "offloaded flows are judged anew every so often (--enforce-within), since a rule's verdict changes without \
                     an announcement: {rule}"
                ),
                Some(rule) => info!(
                    "offloaded flows are judged anew when it is time, since a rule's verdict changes by the clock or with elements \
                     that run out: {rule}"
                ),
                None => info!("no rule's verdict changes without an announcement any more"),
            }
        }
        self.changing = changing;
        let everything = first(rules, Concern::leaves_everything_out);
        if self.everything != everything {
            match &everything {
                Some(rule) => warn!(
                    "no flow is offloaded, since a rule without conditions that could be copied wants every packet: {rule}. To \
                     have it passed by, start the agent with --ignore-rule, by the rule's comment, chain or handle"
                ),
                None => info!("no rule leaves all flows out any more"),
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

/// How many rules there are, by class and by what is done about them.
pub(super) fn counted(rules: &[Concern]) -> BTreeMap<(&'static str, &'static str), u64> {
    let mut counts = BTreeMap::new();
    for rule in rules {
        *counts.entry((rule.class.name(), rule.follows())).or_default() += 1;
    }
    counts
}
