//! The desired table as `nft -f` takes it.

use std::{collections::BTreeMap, fmt::Write, path::Path, process::ExitCode};

use crate::{
    cli::{DEFAULT_PIN_PATH, RuleArgs},
    commands::{print, runtime},
    config::Rules,
    core::{
        link::table::LinkTable,
        model::{FLOWTABLE, IfName, TABLE, TABLE_COMMENT},
        ruleset::{
            chain::OwnChain,
            desired::desired,
            rule::Rule,
            sets::{OwnSet, flags, size_for},
            wanted::{Desired, DesiredTable, Policy},
        },
    },
    kernel::{links::Links, surroundings::read_once},
};

/// Runs `render`: the ruleset for this node's links and other programs' rules. Changes nothing.
pub(super) fn run(args: &RuleArgs) -> anyhow::Result<ExitCode> {
    let rules = Rules::try_from(args)?;
    let links: LinkTable = runtime()?.block_on(async { Links::open()?.list() })?.into_iter().collect();
    let (known, report) = read_once(&links, Path::new(DEFAULT_PIN_PATH));
    for failure in report.failures {
        eprintln!("warning: {failure}");
    }
    let surroundings = known.surroundings(&rules.ignored);
    let policy = Policy { surroundings, ..rules.policy(true, true) };
    print(&ruleset(&desired(&policy, links.iter(), &BTreeMap::new())))
}

/// The ruleset in nft's language; a comment line where there should be none.
pub fn ruleset(desired: &Desired) -> String {
    let Some(table) = desired else {
        return format!("# threshold 0: no table {TABLE}, nothing is offloaded\n");
    };
    let devices = table.devices.values().map(quoted).collect::<Vec<_>>().join(", ");
    let in_braces =
        |word| if devices.is_empty() { String::new() } else { format!("\t\t{word} = {{ {devices} }}\n") };
    let mut text = format!("table inet {TABLE} {{\n\tcomment \"{TABLE_COMMENT}\"\n");
    for set in &table.sets {
        let elements = match set {
            OwnSet::Devices => in_braces("elements"),
            set if set.has_keys() => elements(table, *set),
            _ => String::new(),
        };
        let _ = write!(text, "\n\tset {set} {{\n{}{elements}\t}}\n", declaration(*set, table));
    }
    let _ = write!(
        text,
        "\n\tflowtable {FLOWTABLE} {{\n\t\thook ingress priority {}\n{}{}{}\t}}\n",
        priority(table.flowtable_priority),
        in_braces("devices"),
        if table.hw_offload { "\t\tflags offload\n" } else { "" },
        if table.counter { "\t\tcounter\n" } else { "" },
    );
    for (chain, rules) in &table.chains {
        let hook = match chain {
            OwnChain::Base => Some(("forward", table.chain_priority)),
            OwnChain::Postrouting => Some(("postrouting", table.postrouting_priority)),
            _ => None,
        };
        let hook = hook.map_or_else(String::new, |(hook, priority)| {
            format!("\t\ttype filter hook {hook} priority {priority}; policy accept;\n")
        });
        let _ = write!(text, "\n\tchain {chain} {{\n{hook}{}\t}}\n", lines(rules));
    }
    text + "}\n"
}

fn lines(rules: &[Rule]) -> String {
    rules.iter().fold(String::new(), |text, rule| text + "\t\t" + &rule.to_string() + "\n")
}

fn elements(table: &DesiredTable, set: OwnSet) -> String {
    let keys: Vec<String> = table.keys(set).iter().map(|key| set.element(*key)).collect();
    if keys.is_empty() { String::new() } else { format!("\t\telements = {{ {} }}\n", keys.join(", ")) }
}

/// How a set is made, line by line, as `nft list` has it.
fn declaration(set: OwnSet, table: &DesiredTable) -> String {
    let shape = set.shape();
    let size = if set.has_keys() { size_for(table.keys(set).len()) } else { shape.size };
    let mut text = format!("\t\t{}\n", set.key_words());
    if size != 0 {
        let _ = writeln!(text, "\t\tsize {size}");
    }
    let words = [(flags::DYNAMIC, "dynamic"), (flags::TIMEOUT, "timeout")];
    let words: Vec<_> =
        words.into_iter().filter(|(flag, _)| shape.flags & flag != 0).map(|(_, word)| word).collect();
    if !words.is_empty() {
        let _ = writeln!(text, "\t\tflags {}", words.join(","));
    }
    if shape.timeout_ms != 0 {
        let _ = writeln!(text, "\t\ttimeout {}s", shape.timeout_ms / 1000);
    }
    if let Some(interval) = set.gc_interval_ms() {
        let _ = writeln!(text, "\t\tgc-interval {}s", interval / 1000);
    }
    text
}

/// Interface names may hold characters that nft's language gives a meaning.
fn quoted(name: &IfName) -> String {
    format!("\"{name}\"")
}

fn priority(value: i32) -> String {
    if value == 0 { "filter".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::{
        model::test_link,
        ruleset::{desired, wanted::Policy},
    };

    fn policy(threshold: u32) -> Policy {
        Policy { threshold, chain_priority: -110, spare_ipsec: true, ..Policy::default() }
    }

    #[test]
    fn reads_like_the_seeds_listing() {
        let text = ruleset(&desired::desired(
            &policy(6),
            [&test_link("eth0"), &test_link("lan.1")],
            &BTreeMap::new(),
        ));
        for line in [
            "table inet kindnet-fastpath {",
            "\tcomment \"rules for kindnet fastpath\"",
            "\t\thook ingress priority filter",
            "\t\tcounter",
            "\t\ttype filter hook forward priority -110; policy accept;",
            "\t\tct packets > 5 goto kindnet-offload-chain",
            "\t\tct id . oif . iif @kindnet-seen-reply fib saddr . mark . iif oif exists flow add @kindnet-flowtables counter return",
            "\t\tupdate @kindnet-seen-reply { ct id . iif . oif } return",
            "\t\tct status 0x4000 update @kindnet-slow-path { ct id counter } return",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} isn't in\n{text}");
        }
    }

    #[test]
    fn no_interface_and_no_threshold_are_still_valid() {
        assert!(!ruleset(&desired::desired(&policy(6), [], &BTreeMap::new())).contains("devices ="));
        assert!(ruleset(&desired::desired(&policy(0), [], &BTreeMap::new())).starts_with('#'));
    }
}
