//! Whether nodes offload flows, in one word for a whole fleet: all do, none does, or so many in a hundred. Pure.

use std::{fmt, str::FromStr};

/// What the word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every node offloads.
    Accelerate,
    /// No node does: flows are only counted.
    Watch,
    /// This percentage of nodes does, by their names; the others watch.
    Part(u8),
}

/// What a mode may be.
pub const ALLOWED: &str = "use accelerate, watch, or the percentage of nodes that accelerate, as 10%";

impl Mode {
    /// Whether the node of this name offloads. One that does at some percentage does at every higher one.
    pub fn offloads(self, node: &str) -> bool {
        match self {
            Self::Accelerate => true,
            Self::Watch => false,
            Self::Part(percent) => place(node) < percent,
        }
    }
}

/// A number from 0 to 99 that a name always has, as evenly spread as names are many.
fn place(node: &str) -> u8 {
    // FNV-1a. Its low bits tell names apart that differ in their last letter only; the multiplication brings all bits up.
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    u8::try_from((mixed * 100) >> 32).unwrap_or(99)
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "accelerate" => Ok(Self::Accelerate),
            "watch" => Ok(Self::Watch),
            text => {
                let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
                percent.filter(|percent| *percent <= 100).map(Self::Part).ok_or(ALLOWED)
            }
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accelerate => f.write_str("accelerate"),
            Self::Watch => f.write_str("watch"),
            Self::Part(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words() {
        for (text, mode) in [
            ("accelerate", Mode::Accelerate),
            (" watch\n", Mode::Watch),
            ("0%", Mode::Part(0)),
            ("100 %", Mode::Part(100)),
        ] {
            assert_eq!(text.parse(), Ok(mode), "{text:?}");
        }
        for wrong in ["", "off", "Watch", "101%", "-1%", "10", "1.5%", "%"] {
            assert_eq!(wrong.parse::<Mode>(), Err(ALLOWED), "{wrong:?}");
        }
    }

    /// Names as clusters give them: counted, by addresses, with the same end.
    fn fleets() -> [Vec<String>; 3] {
        [
            (0..10_000).map(|number| format!("node-{number}")).collect(),
            (0..10_000).map(|n| format!("ip-10-{}-{}.internal", n / 256, n % 256)).collect(),
            (0..10_000).map(|n| format!("pool-{n:04}-amd64")).collect(),
        ]
    }

    #[test]
    fn a_percentage_is_about_so_many_nodes() {
        for nodes in fleets() {
            for percent in [1, 5, 10, 25, 50, 99] {
                let there = nodes.iter().filter(|node| Mode::Part(percent).offloads(node)).count();
                let wanted = usize::from(percent) * 100;
                // Three standard deviations, as docs/fleet.md says it.
                let spread = 3 * (wanted * (10_000 - wanted) / 10_000).isqrt();
                assert!(there.abs_diff(wanted) <= spread, "{}: {percent} %: {there}", nodes[0]);
            }
            assert!(nodes.iter().all(|node| Mode::Part(100).offloads(node)));
            assert!(!nodes.iter().any(|node| Mode::Part(0).offloads(node)));
        }
    }

    #[test]
    fn a_higher_percentage_keeps_the_nodes_of_a_lower_one() {
        for node in fleets().iter().flatten() {
            let first = (0..=100).find(|percent| Mode::Part(*percent).offloads(node)).expect("at 100 %");
            assert!((first..=100).all(|percent| Mode::Part(percent).offloads(node)), "{node}");
        }
    }
}
