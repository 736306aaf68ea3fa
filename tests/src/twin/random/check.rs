//! What must be right at rest beside the flows: nothing of other programs was changed, our table is there and behind their filters, and
//! the log is short.

use crate::{
    netns::Netns,
    table::{self, TABLE},
    topology::Topology,
};

/// Lines of level WARN that each operation may cost, and that the start may.
const WARNINGS: usize = 3;

/// Shows that the rulesets are the same but for our table, and the policy rules are.
pub(super) fn others_are_untouched(worlds: &[Topology; 2]) -> Result<(), String> {
    let [with, without] = worlds.each_ref().map(|world| {
        let rules = ["-4", "-6"].map(|family| world.node.output("ip", &[family, "rule"]));
        without_ours(&table::ruleset(&world.node)) + &rules.concat()
    });
    if with == without {
        return Ok(());
    }
    Err(format!("other programs' objects were changed:\n{with}\nwithout the agent:\n{without}"))
}

fn without_ours(ruleset: &str) -> String {
    let mut is_ours = false;
    let mut kept = String::new();
    for line in ruleset.split_inclusive('\n') {
        is_ours |= line == format!("table inet {TABLE} {{\n");
        if !is_ours {
            kept += line;
        }
        is_ours &= line != "}\n";
    }
    kept
}

/// Shows that our table offloads, from a chain behind all that denies in the forward hook.
pub(super) fn table_is_right(node: &Netns) -> Result<(), String> {
    let ruleset = node.output("nft", &["-y", "-s", "list", "ruleset"]);
    let chains = forward_chains(&ruleset);
    let Some(own) = chains.iter().find(|chain| chain.is_ours) else {
        return Err(format!("our chain isn't there:\n{ruleset}"));
    };
    if !table::listing(node).is_some_and(|listing| listing.contains("flow add @")) {
        return Err(format!("no rule offloads:\n{ruleset}"));
    }
    match chains.iter().find(|other| {
        !other.is_ours && (other.denies || other.drops_the_rest) && other.priority >= own.priority
    }) {
        Some(other) => Err(format!("a filter at {} comes after our chain:\n{ruleset}", other.priority)),
        None => Ok(()),
    }
}

#[derive(Default)]
struct ForwardChain {
    priority: i64,
    is_ours: bool,
    /// By a rule, or by its policy.
    denies: bool,
    drops_the_rest: bool,
}

/// Those of the families that forwarded packets pass.
fn forward_chains(ruleset: &str) -> Vec<ForwardChain> {
    let mut found: Vec<ForwardChain> = Vec::new();
    let (mut table, mut within) = ("", false);
    for line in ruleset.lines() {
        if line.starts_with("table ") {
            table = line;
        } else if line == "\t}" {
            within = false;
        } else if let Some((_, rest)) = line.split_once("hook forward priority ")
            && ["inet ", "ip ", "ip6 "].iter().any(|family| table[6..].starts_with(family))
        {
            let priority = rest.split(';').next().and_then(|number| number.parse().ok()).unwrap_or(0);
            let is_ours = table.contains(TABLE);
            let drops_the_rest = rest.contains("policy drop");
            found.push(ForwardChain { priority, is_ours, denies: false, drops_the_rest });
            within = true;
        } else if within && let Some(chain) = found.last_mut() {
            match line.trim() {
                // Nothing that is established gets any further.
                "accept" | "ct state established,related accept" => {
                    (chain.drops_the_rest, within) = (false, false);
                }
                line if line.starts_with("ct state invalid ") => {}
                line => {
                    chain.denies |= ["drop", "reject", "reset"].iter().any(|verdict| line.ends_with(verdict))
                }
            }
        }
    }
    found
}

/// How many connections conntrack calls offloaded.
pub(super) fn offloaded(node: &Netns) -> usize {
    let count = |family| {
        let listing = node.try_run("conntrack", &["-L", "-f", family], "");
        String::from_utf8_lossy(&listing.stdout).matches("[OFFLOAD]").count()
    };
    count("ipv4") + count("ipv6")
}

/// Shows that the agent neither panics nor talks too much.
pub(super) fn log_is_short(log: &[String], operations: usize) -> Result<(), String> {
    let has = |word: &str| log.iter().filter(|line| line.contains(word)).count();
    let allowed = WARNINGS * (operations + 1);
    if has("panicked") + has("ERROR") == 0 && has("WARN") <= allowed {
        return Ok(());
    }
    Err(format!("the log has {} warnings (at most {allowed}), or worse:\n{}", has("WARN"), log.join("\n")))
}
