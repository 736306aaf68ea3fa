//! What belongs to others on the node, before and after the agent did something.

use std::{collections::BTreeSet, fmt::Write};

use crate::{service::said, table};

/// What the kernel changes by itself, or switches on for good when a rule first asks for a connection's packets.
const NOT_COMPARED: &[&str] =
    &["net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_acct", "net.ipv4.tcp_fastopen_key"];

/// Rulesets, links, queueing disciplines and sysctls.
#[derive(PartialEq, Eq)]
pub(super) struct Surroundings(BTreeSet<String>);

impl Surroundings {
    pub(super) fn read() -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                lines.insert(format!("{kind}: {}", line.trim_end()));
            }
        };
        let mut table = String::new();
        for line in said("nft", &["-s", "list", "ruleset"]).lines() {
            // Each line with its table, since lines alone look alike.
            if line.starts_with("table ") {
                table = line.trim_end_matches(" {").to_owned();
            }
            if table != format!("table inet {}", table::TABLE) {
                add(&table, line);
            }
        }
        for family in ["-4", "-6"] {
            add("legacy", &said("sh", &["-c", &legacy(family)]));
        }
        for link in said("ip", &["-o", "link"]).lines() {
            let words: Vec<_> = link.split_whitespace().collect();
            let after = |name: &str| words.iter().skip_while(|word| **word != name).nth(1).copied();
            let name = words.get(1).copied().unwrap_or_default();
            let mut line = name.to_owned();
            for what in ["mtu", "qdisc", "master"] {
                let _ = write!(line, " {what} {}", after(what).unwrap_or("-"));
            }
            add("link", &line);
        }
        // An empty one stays on kernels before 6.6, for other programs that may rely on it.
        let qdiscs = said("tc", &["qdisc", "show"]);
        add(
            "qdisc",
            &qdiscs.lines().filter(|l| !l.contains("clsact")).fold(String::new(), |a, l| a + l + "\n"),
        );
        for line in said("sysctl", &["-a"]).lines() {
            let name = line.split(' ').next().unwrap_or_default();
            if name.starts_with("net.") && !NOT_COMPARED.contains(&name) {
                add("sysctl", line);
            }
        }
        Self(lines)
    }

    /// What differs from an earlier reading; nothing if all is the same.
    pub(super) fn differences(&self, earlier: &Self) -> String {
        let mut text = String::new();
        for line in earlier.0.difference(&self.0) {
            let _ = writeln!(text, "- {line}");
        }
        for line in self.0.difference(&earlier.0) {
            let _ = writeln!(text, "+ {line}");
        }
        text
    }
}

/// Tables of iptables-legacy, where there are any: listing them must not make them.
fn legacy(family: &str) -> String {
    let prefix = if family == "-6" { "ip6" } else { "ip" };
    format!(
        "for t in $(cat /proc/net/{prefix}_tables_names 2>/dev/null); do {prefix}tables-legacy -t $t -S; done"
    )
}
