//! Check of forwarding ahead of the flowtable: which interfaces take part, and what keeps the others out.

use std::collections::BTreeMap;

use super::{
    Finding,
    facts::{ForwardFacts, NodeFacts},
    host::managed,
};
use crate::core::{
    model::Link,
    peer::{self, NoPart, Surface},
};

const CHECK: &str = "forward";

/// Nothing where it wasn't asked for.
pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let Some(ForwardFacts { surfaces, chains, misread }) = &facts.forward else { return Vec::new() };
    let chains = match chains {
        Ok(chains) => chains,
        Err(reason) => {
            return vec![Finding::amber(
                CHECK,
                format!("no packet is forwarded in eBPF: {reason}"),
                "flows are offloaded all the same; route by addresses or interfaces, or start the agent with --forward=off",
            )];
        }
    };
    let mut out: BTreeMap<String, Vec<&Link>> = BTreeMap::new();
    let (mut from, mut to) = (0, 0);
    for link in managed(facts) {
        let nothing = Surface::default();
        let surface = surfaces.get(&link.index).unwrap_or(&nothing);
        let to_it = peer::to(link, surface, chains, misread.as_ref());
        let judged = [peer::from(link, surface, chains), to_it.map(drop)];
        from += u32::from(judged[0].is_ok());
        to += u32::from(judged[1].is_ok());
        for reason in judged.into_iter().filter_map(Result::err).filter(NoPart::can_be_helped) {
            out.entry(reason.to_string()).or_default().push(link);
        }
    }
    let mut findings: Vec<_> = out
        .into_iter()
        .map(|(reason, links)| {
            let names: Vec<_> = links.iter().map(|link| link.name.to_string()).collect();
            Finding::amber(
                CHECK,
                format!("packets take the flowtable's way: {reason}"),
                "nothing is wrong with that: they would pass it by otherwise. Remove it to have them forwarded in eBPF",
            )
            .about(names.join(", "))
        })
        .collect();
    if findings.is_empty() {
        let text = format!("{from} interfaces from which and {to} to which packets may be forwarded in eBPF");
        findings.push(Finding::green(CHECK, text));
    }
    findings
}
