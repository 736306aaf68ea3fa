//! All flows of this node, joined one by one from conntrack and from the pinned maps, in bounded memory.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    io,
    path::Path,
    sync::Arc,
};

use fastpath_common::{FlowCounters, FlowKey};
use nix::time::ClockId;

use super::{
    Ruleset,
    bpf::{self, BpfError, Pinned, Reading},
    clock::{monotonic_ns, now_ns, tick_ns},
    conntrack::{Conntrack, ConntrackError},
    links::{LinkError, Links},
    nft::{Nft, NftError, Which},
    route_rules,
};
use crate::core::{
    flow::{
        Flow, Node, State,
        connection::{Entry, Tuple},
        left_out::LeftOut,
        path::Metered,
        trace::{Evidence, Trace},
    },
    link::{select::Selection, table::LinkTable},
    model::IfName,
    policy::others::Others,
    ruleset::{exclude::Exclusions, observed::ObservedTable, sets::OwnSet},
    why_not::WhyNot,
};

/// Flows can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// The connections.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// The counters.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The interfaces.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// The ruleset.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Other programs' eBPF programs.
    #[error("cannot look at the programs on {interface}: {source}")]
    Programs {
        /// Where.
        interface: IfName,
        /// errno.
        source: io::Error,
    },
    /// IPsec policies.
    #[error("cannot read the IPsec policies: {0}")]
    Ipsec(#[source] io::Error),
}

/// Reads what flows are judged by; `pin_path` is where the maps are pinned, if they are, `selection` what the agent's flags say of
/// interfaces, if that is known.
pub async fn node(pin_path: &Path, selection: Option<&Selection>) -> Result<Node, FlowsError> {
    let mut links = Links::open()?;
    let link_table: LinkTable = links.list()?.into_iter().collect();
    let addresses = links.addresses()?;
    let mut nft = Nft::open()?;
    let table = nft.observe()?.table;
    let left_out =
        table.as_ref().map_or_else(|| Ok(LeftOut::default()), |table| left_out(&mut nft, table))?;
    Ok(Node {
        left_out: Arc::new(left_out),
        threshold: table.as_ref().and_then(|t| t.threshold()),
        earlier: bpf::earlier_threshold(pin_path),
        metered: table.as_ref().is_some_and(|t| t.metered()),
        exclusions: Arc::new(table.as_ref().map_or_else(Default::default, Exclusions::of_rules)),
        managed: table
            .as_ref()
            .and_then(|t| t.managed())
            .map_or_else(Default::default, |m| link_table.with_ports(m)),
        unselected: selection
            .map_or_else(Default::default, |selection| selection.left_out(link_table.iter())),
        names: link_table.iter().map(|link| (link.index, link.name.clone())).collect(),
        addresses,
        now_ns: monotonic_ns(),
        tick_ns: tick_ns(),
    })
}

/// Rules of other programs because of which our table leaves flows out. They are read only if there are any.
fn left_out(nft: &mut Nft, table: &ObservedTable) -> Result<LeftOut, NftError> {
    let copied: Vec<_> = table.left_out().collect();
    if copied.is_empty() {
        return Ok(LeftOut::default());
    }
    let mut others = Others::default();
    nft.read_others(&mut others, Which::All)?;
    let all = copied.iter().any(|conditions| conditions.0.is_empty());
    let by_mark = route_rules::read().map_or(true, |rules| rules.by_mark);
    let concerns = others.concerns(super::surroundings::ends_leave(), by_mark);
    Ok(LeftOut::new(&concerns, |conditions| all || copied.contains(conditions)))
}

/// Calls `each` for every flow: first those that conntrack knows, then what was counted and belongs to none of them.
/// Where no maps are pinned flows come without counters.
pub fn for_each(pin_path: &Path, node: &Node, mut each: impl FnMut(Flow)) -> Result<(), FlowsError> {
    for_each_metered(pin_path, node, Flow::offloaded, |flow, metered| {
        each(match metered {
            Some(metered) => flow.measured(&metered, node),
            None => flow,
        });
    })
}

/// The same, with what the meter has of those flows that `wants_metered` is true of, where there is one.
pub fn for_each_metered(
    pin_path: &Path,
    node: &Node,
    wants_metered: impl Fn(&Flow) -> bool,
    mut each: impl FnMut(Flow, Option<Metered>),
) -> Result<(), FlowsError> {
    let pinned = match Pinned::open(pin_path) {
        Ok(pinned) => Some(pinned),
        Err(BpfError::NotPinned { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let reading = pinned.as_ref().map(Pinned::reading).transpose()?;
    let mut known = Known::default();
    let mut meter = node.metered.then(Meter::open).transpose()?;
    let mut revocations = None;
    let mut traces: Option<HashMap<u32, Vec<Trace>>> = None;
    let mut revoked = |id| {
        let opened = match &mut revocations {
            Some(opened) => opened,
            none => none.insert(Revocations::open()?),
        };
        opened.has(id)
    };
    let mut join = |entry: Entry| -> Result<(Flow, Option<Metered>), FlowsError> {
        let seen = match &reading {
            Some(reading) => counters(reading, &entry, &mut known)?,
            None => [None; 2],
        };
        let id = entry.id;
        let mut flow = Flow::join(entry, seen, node);
        let unknown = flow.state.why_not() == Some(WhyNot::Unknown);
        if (unknown || flow.state == State::Idle) && revoked(id)? {
            flow.state = State::not(WhyNot::Revoked);
        }
        if flow.state == State::not(WhyNot::Unknown) {
            let traces = match &traces {
                Some(traces) => traces,
                None => traces.insert(read_traces()?),
            };
            let cause = traces.get(&id).and_then(|traces| Evidence::of(traces).cause());
            flow.state = State::not(cause.unwrap_or(WhyNot::Unknown));
        }
        match &mut meter {
            Some(meter) if wants_metered(&flow) => Ok((flow, Some(meter.of(id)?))),
            _ => Ok((flow, None)),
        }
    };
    let mut failed = None;
    Conntrack::dump_ahead(|entry| {
        if failed.is_none() {
            match join(entry) {
                Ok((flow, metered)) => each(flow, metered),
                Err(error) => failed = Some(error),
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let (Some(reading), Some(pinned)) = (reading, &pinned) else { return Ok(()) };
    known.sort();
    for flow in reading.into_flows() {
        let (key, counters) = flow?;
        if known.contains(&key) {
            continue;
        }
        let tuple = Tuple::from_flow_key(&key);
        let answers = match tuple.reversed().flow_key() {
            Some(back) if !known.contains(&back) => pinned.flow(&back)?.map(|counters| (back, counters)),
            _ => None,
        };
        let is_answer = answers.is_some_and(|(back, answers)| {
            (answers.first_seen_ns, back.words()) < (counters.first_seen_ns, key.words())
        });
        if !is_answer {
            each(Flow::unknown(tuple, [Some(counters), answers.map(|(_, counters)| counters)], node), None);
        }
    }
    Ok(())
}

/// Traces by conntrack id.
fn read_traces() -> Result<HashMap<u32, Vec<Trace>>, NftError> {
    let mut traces: HashMap<u32, Vec<Trace>> = HashMap::new();
    Nft::open()?.traces(|id, trace| traces.entry(id).or_default().push(trace))?;
    Ok(traces)
}

/// What was counted of both directions; remembers them.
fn counters(
    reading: &Reading<'_>,
    entry: &Entry,
    known: &mut Known,
) -> Result<[Option<FlowCounters>; 2], BpfError> {
    let mut seen = [None; 2];
    for (tuple, seen) in [entry.original, entry.reply].iter().zip(&mut seen) {
        if let Some(key) = tuple.flow_key() {
            known.add(&key);
            *seen = reading.flow(&key)?;
        }
    }
    Ok(seen)
}

/// The meter, as it was at the beginning and as it is.
struct Meter {
    nft: Nft,
    /// Conntrack ids of the flows that it had at the beginning.
    flows: HashSet<u32>,
}

impl Meter {
    fn open() -> Result<Self, NftError> {
        let mut nft = Nft::open()?;
        let mut flows = HashSet::new();
        nft.slow_paths(|slow| {
            flows.insert(slow.ct_id);
        })?;
        Ok(Self { nft, flows })
    }

    /// What it has of a flow, now if it had anything at the beginning: what came in was read later than that.
    fn of(&mut self, id: u32) -> Result<Metered, NftError> {
        if !self.flows.contains(&id) {
            let full = self.flows.len() >= OwnSet::SlowPath.shape().size as usize;
            return Ok(if full { Metered::Unknown } else { Metered::Nothing });
        }
        let before = now_ns(ClockId::CLOCK_MONOTONIC_COARSE);
        let Some(slow) = self.nft.slow_path_of(id)? else { return Ok(Metered::Nothing) };
        let after = now_ns(ClockId::CLOCK_MONOTONIC_COARSE);
        let idle_ns = slow.idle_ms * 1_000_000;
        Ok(Metered::Packets {
            packets: slow.counter.packets,
            from_ns: before.saturating_sub(idle_ns),
            to_ns: after.saturating_sub(idle_ns),
        })
    }
}

/// Connections that were revoked, asked for one by one: there may be a million.
struct Revocations {
    nft: Nft,
    any: bool,
}

impl Revocations {
    fn open() -> Result<Self, NftError> {
        let mut nft = Nft::open()?;
        let any = nft.has_any(OwnSet::Revoked)?;
        Ok(Self { nft, any })
    }

    fn has(&mut self, id: u32) -> Result<bool, NftError> {
        Ok(self.any && self.nft.has_listed(OwnSet::Revoked, id)?)
    }
}

/// Directions that belong to a connection, 8 bytes each: hashes do. Where two keys share one, a flow that is gone isn't
/// shown.
#[derive(Default)]
struct Known {
    hashes: Vec<u64>,
    hasher: RandomState,
}

impl Known {
    fn add(&mut self, key: &FlowKey) {
        self.hashes.push(self.hasher.hash_one(key));
    }

    /// After the last was added.
    fn sort(&mut self) {
        self.hashes.sort_unstable();
    }

    fn contains(&self, key: &FlowKey) -> bool {
        self.hashes.binary_search(&self.hasher.hash_one(key)).is_ok()
    }
}
