//! What the canary's flows say of this kernel.

use super::{
    Finding,
    facts::{Canary, CanaryFlow, NodeFacts},
    lacks_flowtable,
};

const CHECK: &str = "canary";
/// Of a hundred packets, how many may take the forward path for a flow to count as accelerated: one is offloaded with
/// the packet after the threshold, and stray ones (neighbour discovery, acknowledgements under way) come by.
const SLOW_PERCENT: u64 = 10;

pub(super) fn findings(facts: &NodeFacts, canary: &Canary) -> Vec<Finding> {
    match (lacks_flowtable(facts), canary) {
        (_, Canary::NotWanted) => Vec::new(),
        (Some(_), _) => vec![Finding::red(
            CHECK,
            "no flow can be accelerated on this kernel, so none was sent",
            "follow the finding `kernel` above, then run doctor again",
        )],
        (None, Canary::Failed(why)) => vec![Finding::amber(
            CHECK,
            format!("couldn't be run: {why}"),
            "run doctor as root on the host, or in a privileged container, or leave it out with --no-canary",
        )],
        (None, Canary::Flows(flows)) => flows.iter().map(judge).collect(),
    }
}

fn judge(flow: &CanaryFlow) -> Finding {
    let CanaryFlow { rounds, intact, ingress, forwarded, .. } = flow;
    let past = ingress.saturating_sub(*forwarded);
    let finding = if let Some(why) = &flow.error {
        Finding::amber(
            CHECK,
            format!("couldn't be sent: {why}"),
            "run doctor as root on the host, or in a privileged container",
        )
    } else if intact < rounds {
        Finding::red(
            CHECK,
            format!(
                "{intact} of {rounds} requests were answered unaltered: this kernel loses or alters packets of offloaded flows"
            ),
            "switch offloading off (--fastpath-threshold=0), use another kernel, and report it",
        )
    } else if *ingress == 0 || forwarded * 100 > ingress * SLOW_PERCENT {
        Finding::red(
            CHECK,
            format!("not accelerated: {forwarded} of {ingress} packets took the normal path"),
            "look for the cause in the findings `kernel` and `known-bugs` above; if there is none, report it",
        )
    } else {
        Finding::green(
            CHECK,
            format!(
                "accelerated: {past} of {ingress} packets took the fast path, all {rounds} answers intact"
            ),
        )
    };
    finding.about(format!("{}/{}", flow.protocol, flow.family))
}
