//! The desired table as `nft -f` takes it.

use std::fmt::Write;

use crate::core::{
    model::{CHAIN, FLOWTABLE, IfName, OFFLOAD_CHAIN, TABLE, TABLE_COMMENT},
    ruleset::{
        desired::Desired,
        exclude::Exclusions,
        rule::Rule,
        sets::{ExcludeSet, Key, OwnSet, flags},
    },
};

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
            OwnSet::Exclude(set) => exclusions(*set, table.exclusions.keys(*set)),
            OwnSet::SlowPath | OwnSet::Assist | OwnSet::Revoked => String::new(),
        };
        let _ = write!(text, "\n\tset {set} {{\n{}{elements}\t}}\n", declaration(*set, &table.exclusions));
    }
    let _ = write!(
        text,
        "
\tflowtable {FLOWTABLE} {{
\t\thook ingress priority {}
{}{}{}\t}}

\tchain {OFFLOAD_CHAIN} {{
{}\t}}

\tchain {CHAIN} {{
\t\ttype filter hook forward priority {}; policy accept;
{}\t}}
}}
",
        priority(table.flowtable_priority),
        in_braces("devices"),
        if table.hw_offload { "\t\tflags offload\n" } else { "" },
        if table.counter { "\t\tcounter\n" } else { "" },
        lines(&table.offload_rules),
        table.chain_priority,
        lines(&table.base_rules),
    );
    text
}

fn lines(rules: &[Rule]) -> String {
    rules.iter().fold(String::new(), |text, rule| text + "\t\t" + &rule.to_string() + "\n")
}

fn exclusions(set: ExcludeSet, keys: &[Key]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| set.element(*key)).collect();
    format!("\t\telements = {{ {} }}\n", keys.join(", "))
}

fn key_type(set: OwnSet) -> &'static str {
    match set {
        OwnSet::Devices => "type iface_index",
        OwnSet::SlowPath | OwnSet::Assist | OwnSet::Revoked => "typeof ct id",
        OwnSet::Exclude(ExcludeSet::V4(_)) => "type ipv4_addr",
        OwnSet::Exclude(ExcludeSet::V6(_)) => "type ipv6_addr",
        OwnSet::Exclude(ExcludeSet::TcpPorts | ExcludeSet::UdpPorts) => "type inet_service",
        OwnSet::Exclude(ExcludeSet::Protocols) => "type inet_proto",
    }
}

/// How a set is made, line by line, as `nft list` has it.
fn declaration(set: OwnSet, exclusions: &Exclusions) -> String {
    let shape = set.shape();
    let size = match set {
        OwnSet::Exclude(set) => ExcludeSet::size_for(exclusions.keys(set).len()),
        _ => shape.size,
    };
    let mut text = format!("\t\t{}\n", key_type(set));
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
        link::select::Selection,
        model::test_link,
        ruleset::desired::{self, Policy},
    };

    fn policy(threshold: u32) -> Policy {
        Policy {
            threshold,
            chain_priority: -110,
            flowtable_priority: 0,
            counter: true,
            hw_offload: false,
            spare_ipsec: true,
            assist: false,
            selection: Selection::new(&[], &[]).unwrap(),
            exclusions: Default::default(),
            surroundings: Default::default(),
        }
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
            "\t\tct packets > 6 goto kindnet-offload-chain",
            "\t\tflow add @kindnet-flowtables counter return",
            "\t\tupdate @kindnet-slow-path { ct id counter }",
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
