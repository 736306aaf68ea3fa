//! The numbers that Fastpath wants to reach, and whether a run does. Pure.

use std::cell::Cell;

use super::report::{Report, number};

/// What a target is about, as a formula over rows.
enum Quantity {
    /// The row itself.
    Row(&'static str),
    /// The first on top of the second.
    Over(&'static str, &'static str),
    /// The first divided by the second.
    Ratio(&'static str, &'static str),
    /// How much more grows from the second to the first than from the fourth to the third, in percent of the second.
    Growth([&'static str; 4]),
}
use Quantity::{Growth, Over, Ratio, Row};

/// A target: at most so much on each kernel.
struct Target {
    what: &'static str,
    quantity: Quantity,
    unit: &'static str,
    /// By the kernel's name.
    at_most: &'static [(&'static str, f64)],
}

const TARGETS: &[Target] = &[
    Target {
        what: "offloaded, with eBPF and counters, against kindnet's blind flowtable",
        quantity: Ratio("udp4-64/offloaded/ours-ebpf", "udp4-64/offloaded/kindnet"),
        unit: "times",
        at_most: &[("6.1", 1.03), ("6.12", 1.03)],
    },
    Target {
        what: "the program on a hot flow, UDP one way, attached",
        quantity: Over("udp4-64/offloaded/ours-ebpf", "udp4-64/offloaded/ours"),
        unit: "instructions/packet",
        at_most: &[("6.1", 220.0), ("6.12", 150.0)],
    },
    Target {
        what: "the program on a hot flow, TCP both ways, attached",
        quantity: Over("tcp4-64/offloaded/ours-ebpf", "tcp4-64/offloaded/ours"),
        unit: "instructions/packet",
        at_most: &[("6.1", 220.0), ("6.12", 150.0)],
    },
    Target {
        what: "not offloaded yet, with exclusions, over no fast path",
        quantity: Over("udp4-64-10-exclusions/young/ours", "udp4-64/no-fastpath"),
        unit: "instructions/packet",
        at_most: &[("6.1", 1_050.0), ("6.12", 960.0)],
    },
    Target {
        what: "the same with eBPF",
        quantity: Over("udp4-64-10-exclusions/young/ours-ebpf", "udp4-64/no-fastpath"),
        unit: "instructions/packet",
        at_most: &[("6.1", 1_300.0), ("6.12", 1_170.0)],
    },
    Target {
        what: "100,000 flows against 1, offloaded, growth beyond that of kindnet's rules",
        quantity: Growth([
            "udp4-64-100000-flows/offloaded/ours-ebpf",
            "udp4-64/offloaded/ours-ebpf",
            "udp4-64-100000-flows/offloaded/kindnet",
            "udp4-64/offloaded/kindnet",
        ]),
        unit: "%",
        at_most: &[("6.1", 5.0), ("6.12", 5.0)],
    },
    Target {
        what: "offloaded against conntrack + NAT + 5,000 services",
        quantity: Ratio("udp4-64-services/offloaded/ours-ebpf", "udp4-64-services/no-fastpath"),
        unit: "times",
        at_most: &[("6.1", 0.5), ("6.12", 0.5)],
    },
    Target {
        what: "a connection of 0 rounds, all sight on, against kindnet's rules",
        quantity: Ratio("tcp4-0-rounds/ours-ebpf-threshold-20", "tcp4-0-rounds/kindnet-threshold-20"),
        unit: "times",
        at_most: &[("6.1", 1.01), ("6.12", 1.01)],
    },
    Target {
        what: "a connection of 3 rounds, all sight on, against kindnet's rules",
        quantity: Ratio("tcp4-3-rounds/ours-ebpf-threshold-20", "tcp4-3-rounds/kindnet-threshold-20"),
        unit: "times",
        at_most: &[("6.1", 1.01), ("6.12", 1.01)],
    },
    Target {
        what: "a connection of 7 rounds, all sight on, against kindnet's rules",
        quantity: Ratio("tcp4-7-rounds/ours-ebpf-threshold-20", "tcp4-7-rounds/kindnet-threshold-20"),
        unit: "times",
        at_most: &[("6.1", 1.01), ("6.12", 1.01)],
    },
    Target {
        what: "a connection of 22 rounds, all sight on, against kindnet's rules",
        quantity: Ratio("tcp4-22-rounds/ours-ebpf-threshold-20", "tcp4-22-rounds/kindnet-threshold-20"),
        unit: "times",
        at_most: &[("6.1", 1.01), ("6.12", 1.01)],
    },
    Target {
        what: "a connection of 100 rounds, all sight on, against kindnet's rules",
        quantity: Ratio("tcp4-100-rounds/ours-ebpf-threshold-20", "tcp4-100-rounds/kindnet-threshold-20"),
        unit: "times",
        at_most: &[("6.1", 1.01), ("6.12", 1.01)],
    },
    Target {
        what: "a connection of 22 rounds against no fast path",
        quantity: Ratio("tcp4-22-rounds/ours-ebpf-threshold-20", "tcp4-22-rounds/no-fastpath"),
        unit: "times",
        at_most: &[("6.1", 0.97), ("6.12", 0.97)],
    },
    Target {
        what: "the agent while 10,000 flows a second cross the threshold",
        quantity: Row("agent/10000-crossings-a-second/cpu"),
        unit: "% of a processor",
        at_most: &[("6.1", 3.0), ("6.12", 3.0)],
    },
    Target {
        what: "a crossing in all, over the rules alone",
        quantity: Over("crossing/ours-ebpf", "crossing/rules-alone"),
        unit: "instructions/crossing",
        at_most: &[("6.1", 4_000.0), ("6.12", 4_000.0)],
    },
    Target {
        what: "`flows -o json` of 100,000 flows, on the guest's clock",
        quantity: Row("agent/list-100000-flows/time"),
        unit: "ms",
        at_most: &[("6.1", 1_000.0), ("6.12", 1_000.0)],
    },
    Target {
        what: "link-up to flowtable with 100 interfaces, median, on the guest's clock",
        quantity: Row("agent/link-up-100-interfaces"),
        unit: "ms",
        at_most: &[("6.1", 5.0), ("6.12", 5.0)],
    },
    Target {
        what: "offloaded flows lost when an interface is added",
        quantity: Row("agent/flows-lost-of-100/ours-ebpf"),
        unit: "of 100",
        at_most: &[("6.1", 0.0), ("6.12", 0.0)],
    },
    Target {
        what: "ruleset restored after a flush, on the guest's clock",
        quantity: Row("agent/restored-after-flush"),
        unit: "ms",
        at_most: &[("6.1", 50.0), ("6.12", 50.0)],
    },
    Target {
        what: "resident memory with 100 interfaces",
        quantity: Row("agent/memory-100-interfaces"),
        unit: "MB",
        at_most: &[("6.1", 12.0), ("6.12", 12.0)],
    },
    // Independent of it, but for noise.
    Target {
        what: "the agent's CPU time for a link-up, with 1,000 interfaces against 10",
        quantity: Ratio(
            "agent/link-up-cost-1000-interfaces/ebpf-tc",
            "agent/link-up-cost-10-interfaces/ebpf-tc",
        ),
        unit: "times",
        at_most: &[("6.1", 1.2), ("6.12", 1.2)],
    },
    // What rounds to none: once a minute the agent reads everything again.
    Target {
        what: "wake-ups, idle",
        quantity: Row("agent/wake-ups-100-interfaces"),
        unit: "a second",
        at_most: &[("6.1", 0.5), ("6.12", 0.5)],
    },
];

/// A target on one kernel, and what came out.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) what: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) at_most: f64,
    pub(crate) value: f64,
    /// Whether a row that it is made of wasn't measured in the state that the report is of.
    pub(crate) earlier: bool,
}

impl Outcome {
    pub(crate) fn met(&self) -> bool {
        self.value <= self.at_most
    }

    /// Value and limit as text.
    pub(crate) fn numbers(&self) -> (String, String) {
        let text = |value: f64| if self.unit == "times" { format!("{value:.3}") } else { number(value) };
        (text(self.value), text(self.at_most))
    }
}

/// All targets whose rows are in the report.
pub(crate) fn outcomes(report: &Report) -> Vec<Outcome> {
    let of = |target: &'static Target| {
        target.at_most.iter().rev().filter_map(move |&(kernel, at_most)| {
            let earlier = Cell::new(false);
            let value = target.quantity.value(|name| {
                let row = report.row(kernel, name)?;
                earlier.set(earlier.get() || row.earlier.is_some());
                Some(row.value)
            })?;
            let earlier = earlier.get();
            Some(Outcome { what: target.what, kernel, unit: target.unit, at_most, value, earlier })
        })
    };
    TARGETS.iter().flat_map(of).collect()
}

/// The outcomes as lines for a terminal.
pub(crate) fn shown(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let (value, at_most) = outcome.numbers();
        text += &format!(
            "{:<7} {:<5} {}: {value} {} (target: at most {at_most})\n",
            if outcome.met() { "met" } else { "MISSED" },
            outcome.kernel,
            outcome.what,
            outcome.unit,
        );
    }
    text
}

impl Quantity {
    fn value(&self, row: impl Fn(&str) -> Option<f64>) -> Option<f64> {
        Some(match self {
            Row(name) => row(name)?,
            Over(name, base) => row(name)? - row(base)?,
            Ratio(name, base) => row(name)? / row(base)?,
            Growth([many, one, many_without, one_without]) => {
                let one = row(one)?;
                ((row(many)? - one) - (row(many_without)? - row(one_without)?)) / one * 100.0
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let row = |name: &str| match name {
            "a" => Some(120.0),
            "b" => Some(100.0),
            "c" => Some(105.0),
            "d" => Some(95.0),
            _ => None,
        };
        assert_eq!(Row("a").value(row), Some(120.0));
        assert_eq!(Over("a", "b").value(row), Some(20.0));
        assert_eq!(Ratio("a", "b").value(row), Some(1.2));
        assert_eq!(Growth(["a", "b", "c", "d"]).value(row), Some(10.0));
        assert_eq!(Over("a", "missing").value(row), None);
    }

    #[test]
    fn a_target_is_missed_above_its_limit_only() {
        let outcome = |value| Outcome { what: "", kernel: "", unit: "", at_most: 0.5, value, earlier: false };
        assert!(outcome(0.5).met());
        assert!(!outcome(0.51).met());
    }
}
