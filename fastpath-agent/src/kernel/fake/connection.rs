//! Connections of the node in memory, and what the programs say of them.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
};

use fastpath_common::{FlowCounters, FlowEvent, FlowKey};
use tokio::time::Instant;

use crate::core::{
    flow::connection::{Entry, Status, Tuple, UDP},
    model::IfIndex,
};

/// One connection, with packets in both directions.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(super) entry: Entry,
    /// What the programs have counted of each direction.
    pub(super) counted: [FlowCounters; 2],
}

impl Connection {
    /// Number `id`, between two links.
    pub fn between(id: u16, links: [IfIndex; 2]) -> Self {
        let address = |network| IpAddr::V4(Ipv4Addr::new(10, network, 0, 2));
        let original = Tuple {
            source: address(1),
            destination: address(2),
            protocol: UDP,
            source_port: 1024 + id,
            destination_port: 53,
        };
        let entry = Entry {
            id: id.into(),
            original,
            reply: original.reversed(),
            status: Status(SEEN_REPLY | ASSURED),
            zone: 0,
            tcp_state: None,
            helper: None,
            mark: 0,
            counters: None,
        };
        let counted = links.map(|index| FlowCounters { ifindex: index.0, ..FlowCounters::default() });
        Self { entry, counted }
    }

    /// Whether it is in the flowtable.
    pub fn is_offloaded(&self) -> bool {
        self.entry.status.offloaded()
    }

    /// The links that its packets come in by.
    pub fn links(&self) -> [IfIndex; 2] {
        self.counted.each_ref().map(|counted| IfIndex(counted.ifindex))
    }

    pub(super) fn keys(&self) -> [FlowKey; 2] {
        [self.entry.original, self.entry.reply].map(|tuple| tuple.flow_key().expect("of UDP"))
    }
}

/// `IPS_SEEN_REPLY`, `IPS_ASSURED` and `IPS_OFFLOAD`.
const SEEN_REPLY: u32 = 1 << 1;

const ASSURED: u32 = 1 << 2;

/// What the programs and conntrack have.
#[derive(Default)]
pub(super) struct Flows {
    pub(super) connections: Vec<Connection>,
    /// When the elements of the assist set run out.
    pub(super) assisted: Vec<(u32, Instant)>,
    pub(super) signals: VecDeque<FlowEvent>,
    pub(super) lost: u64,
    /// There is room for so many signals.
    pub(super) room: usize,
    /// What a sweep under way has still to find.
    pub(super) sweep: Option<Vec<FlowKey>>,
}
