//! Other programs' rules that offloaded packets bypass, one by one, with how the agent handles each: a part of `status` and of
//! `doctor`. Decides nothing.

use std::{fmt, path::Path, sync::Arc};

use serde::Serialize;

use super::running::running_config;
use crate::{
    core::{
        link::table::LinkTable,
        policy::concern::{Concern, FOLLOWS},
    },
    kernel::surroundings::read_once,
};

/// How many a text names.
const SHOWN: usize = 40;

/// Those that ask more than headers and connection, in order of tables, chains and rules.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Bypassed(Vec<Row>);

/// One of them. Its JSON form is part of what `status -o json` and `doctor -o json` print; fields are only ever added.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    rule: Concern,
    /// How the agent handles it: "respected", "re-validated", "ignored", "not-decisive".
    handling: &'static str,
}

impl Bypassed {
    /// Reads them from the kernel. The running agent's flags say which are ignored.
    pub fn read(links: &LinkTable, pin_path: &Path) -> Self {
        let ignored = running_config().map_or_else(|| Arc::from([]), |config| config.rules.ignored);
        Self::of(read_once(links, pin_path).0.surroundings(&ignored).rules)
    }

    /// Those that were read already.
    pub fn of(rules: Vec<Concern>) -> Self {
        Self(rules.into_iter().map(|rule| Row { handling: rule.follows(), rule }).collect())
    }
}

/// Nothing where there are none.
impl fmt::Display for Bypassed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rows) = self;
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(f, "rules       {} of other programs that offloaded packets bypass", rows.len())?;
        for Row { rule, handling } in rows.iter().take(SHOWN) {
            writeln!(f, "  {handling:12}  {rule}: {}{}{}", rule.cause, Judged(rule), Matching(rule))?;
        }
        match rows.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more (-o json has all)"),
        }
    }
}

/// When flows are revalidated because of a rule.
struct Judged<'r>(&'r Concern);

impl fmt::Display for Judged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            rule if rule.follows() != FOLLOWS[1] => Ok(()),
            rule => write!(f, "; {}", rule.when),
        }
    }
}

/// Which flows a rule keeps on the normal path.
struct Matching<'r>(&'r Concern);

impl fmt::Display for Matching<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            rule if !rule.wants_every_packet() => Ok(()),
            rule => match rule.conditions().to_string() {
                all if all.is_empty() => f.write_str("; keeps all flows on the normal path"),
                conditions => write!(f, "; keeps on the normal path: {conditions}"),
            },
        }
    }
}
