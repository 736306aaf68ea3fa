//! Whether what the agent's tools say of flows is so: compared with what their ends have sent, and with what a chain of the test's own
//! has seen on the forward path.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    agent,
    duplex::Tally,
    netns::Netns,
    path::{self, Forwarded},
};

/// What is said and seen of all flows at a moment when none has packets.
pub(super) struct Told {
    /// What `flows` says of each, by the client's port and the one that it dialled.
    flows: BTreeMap<(u64, u64), Value>,
    /// Packets on the forward path, by that port.
    forwarded: BTreeMap<u16, Forwarded>,
}

/// A flow, and what it has sent between two such moments.
pub(super) struct Sent {
    /// The client's port.
    pub(super) from: u16,
    /// The port that it dialled.
    pub(super) port: u16,
    /// Each message is a packet; others may be sent as fragments.
    pub(super) datagrams: bool,
    /// Messages up and down.
    pub(super) tallies: [Tally; 2],
}

impl Told {
    /// Asks. `None` if that can't be known: the maps or the test's own counters are gone.
    pub(super) fn ask(node: &Netns) -> Option<Self> {
        node.try_run("nft", &["list", "table", "inet", path::TABLE], "").status.success().then_some(())?;
        let forwarded = path::all_forwarded(node);
        let output = agent::run(node, &["flows", "-o", "json"]);
        let flows: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
        let of = |flow: &Value, port: &str| flow["original"][port].as_u64();
        let keyed = flows
            .into_iter()
            .filter_map(|flow| Some(((of(&flow, "source_port")?, of(&flow, "destination_port")?), flow)));
        Some(Self { flows: keyed.collect(), forwarded })
    }

    /// Packets of both directions as the programs have counted them.
    fn counted(&self, sent: &Sent) -> Option<u64> {
        let ingress = self.of(sent)?["ingress"].as_array()?;
        ingress.iter().map(|direction| direction["packets"].as_u64()).sum()
    }

    /// Whether programs have forwarded packets of the flow since `before`.
    pub(super) fn has_forwarded(&self, before: &Self, sent: &Sent) -> bool {
        let forwarded = |told: &Self| told.of(sent).and_then(|flow| flow["forwarded"].as_u64()).unwrap_or(0);
        forwarded(self) > forwarded(before)
    }

    fn of(&self, sent: &Sent) -> Option<&Value> {
        self.flows.get(&(sent.from.into(), sent.port.into()))
    }

    /// Whether what is said now is so, and if not why; `None` if nothing is said. `before` was asked before the messages were sent.
    /// `counts` if programs are wherever they should be.
    pub(super) fn is_so(&self, before: &Self, sent: &Sent, counts: bool) -> Option<Result<(), String>> {
        let total = |tally: fn(&Tally) -> usize| sent.tallies.iter().map(tally).sum::<usize>() as u64;
        let (all, arrived) = (total(|tally| tally.sent), total(|tally| tally.arrived));
        let forwarded = |told: &Self| told.forwarded.get(&sent.port).map_or(0, |forwarded| forwarded.total());
        let slow = forwarded(self).saturating_sub(forwarded(before));
        let flow = self.of(sent)?;
        let said = match flow["accelerated"].as_bool() {
            Some(true) if all > 0 && slow >= all => {
                format!("it is called accelerated, and {slow} packets took the forward path")
            }
            Some(false) if slow == 0 => "it is called slow, and no packet took the forward path".to_owned(),
            _ => {
                let counted = self.counted(sent)?.checked_sub(before.counted(sent)?)?;
                if !counts || !sent.datagrams || (arrived..=all).contains(&counted) {
                    return Some(Ok(()));
                }
                format!("{counted} packets were counted")
            }
        };
        Some(Err(format!("{said}, while {all} messages were sent and {arrived} arrived: {flow}")))
    }
}
