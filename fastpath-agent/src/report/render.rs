//! The desired table as `nft -f` takes it.

use std::fmt::Write;

use crate::core::{
    desired::Desired,
    model::{CHAIN, DEVICE_SET, FLOWTABLE, IfName, TABLE, TABLE_COMMENT},
};

/// The ruleset in nft's language; a comment line where there should be none.
pub fn ruleset(desired: &Desired) -> String {
    let Some(table) = desired else {
        return format!("# threshold 0: no table {TABLE}, nothing is offloaded\n");
    };
    let devices = table.devices.values().map(quoted).collect::<Vec<_>>().join(", ");
    let (elements, devices) = if devices.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("\t\telements = {{ {devices} }}\n"), format!("\t\tdevices = {{ {devices} }}\n"))
    };
    let counter = if table.counter { "\t\tcounter\n" } else { "" };
    let flags = if table.hw_offload { "\t\tflags offload\n" } else { "" };
    let mut text = format!(
        "table inet {TABLE} {{
\tcomment \"{TABLE_COMMENT}\"

\tset {DEVICE_SET} {{
\t\ttype iface_index
{elements}\t}}

\tflowtable {FLOWTABLE} {{
\t\thook ingress priority {}
{devices}{flags}{counter}\t}}

\tchain {CHAIN} {{
\t\ttype filter hook forward priority {}; policy accept;
",
        priority(table.flowtable_priority),
        table.chain_priority,
    );
    for rule in &table.rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text + "\t}\n}\n"
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
        desired::{self, Policy},
        model::test_link,
        select::Selection,
    };

    fn policy(threshold: u32) -> Policy {
        Policy {
            threshold,
            chain_priority: -110,
            flowtable_priority: 0,
            counter: true,
            hw_offload: false,
            spare_ipsec: true,
            selection: Selection::new(&[], &[]).unwrap(),
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
            "\t\tct packets > 6 ct state established rt ipsec missing iif @kindnet-set-devices oif @kindnet-set-devices flow add \
             @kindnet-flowtables counter",
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
