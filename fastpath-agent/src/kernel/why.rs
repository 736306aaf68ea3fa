//! Reads all that there is to know of one flow, in two looks about a second apart, so that it shows which way its packets
//! take at that moment. Changes nothing; judges nothing.

use std::{collections::BTreeSet, io, path::Path, time::Duration};

use fastpath_common::FlowCounters;
use tokio::time::{Instant, sleep_until};

use super::{
    Ruleset as _,
    bpf::{BpfError, Pinned},
    conntrack::{Conntrack, ConntrackError},
    flows::monotonic_ns,
    links::{LinkError, Links},
    nft::{Nft, NftError},
    route::Routes,
    xfrm,
};
use crate::core::{
    connection::{Entry, TCP, Tuple},
    link_table::LinkTable,
    model::{IfIndex, OperState},
    watch,
    why::{Direction, Facts, FlowSpec, Moved, NotManaged, Route, Ruleset},
};

/// Time between the two looks.
const LOOK: Duration = Duration::from_secs(1);

/// A flow can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// The connections.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// The counters.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Interfaces or routes.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// The ruleset.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// IPsec policies.
    #[error("cannot read the IPsec policies: {0}")]
    Ipsec(#[source] io::Error),
}

/// Reads everything about a flow. Takes about a second.
pub async fn gather(spec: &FlowSpec, pin_path: &Path) -> Result<Facts, WhyError> {
    let links = Links::open()?;
    let (link_table, addresses): (LinkTable, _) =
        (links.list().await?.into_iter().collect(), links.addresses().await?);
    let mut eyes = Eyes::open(pin_path)?;
    let began = Instant::now();
    let first = eyes.look(spec)?;

    let ruleset = ruleset(&mut eyes.nft)?;
    let notrack = if first.entry.is_none() { eyes.nft.search_rules()?.notrack } else { Vec::new() };
    let ipsec = match &first.entry {
        Some(entry) => xfrm::policies(&forwarded(entry)).map_err(WhyError::Ipsec)?,
        None => Vec::new(),
    };
    let routes = Routes::open()?;
    let tuples = first.tuples(spec);
    let mut directions = Vec::new();
    for (tuple, seen) in tuples.iter().zip(&first.counted) {
        let destination = first.entry.as_ref().map_or(tuple.destination, |entry| match tuple {
            tuple if *tuple == entry.original => entry.reply.source,
            _ => entry.original.source,
        });
        let back = routes.towards(tuple.source).await;
        let input = input(&link_table, seen.map(|counters| IfIndex(counters.ifindex)), back);
        let route = match input {
            Some(input) => routes.of(tuple, destination, input, &link_table).await,
            None => Route::NotAsked,
        };
        directions.push((input, route));
    }
    sleep_until(began + LOOK).await;

    let second = eyes.look(spec)?;
    // A connection that began or ended meanwhile has other tuples; what was asked of the kernel is about the first.
    let same = second.tuples(spec) == tuples;
    let (counted, entry) =
        if same { (second.counted, second.entry) } else { (first.counted, first.entry.clone()) };
    let direction = |d: usize| Direction {
        tuple: tuples[d],
        counted: counted[d],
        moved: moved(first.counted[d], counted[d]),
        input: directions[d].0,
        route: directions[d].1,
    };
    let directions = [direction(0), direction(1)];
    let unmanaged = unmanaged(&mut eyes.nft, &link_table, &ruleset, &directions)?;
    Ok(Facts {
        asked: spec.tuple,
        tracked: tracked(first.entry.as_ref(), entry.as_ref()),
        entry,
        directions,
        counting: eyes.pinned.is_some(),
        ruleset,
        slow: None,
        flowtables: Vec::new(),
        notrack,
        ipsec,
        programs: Vec::new(),
        unmanaged,
        links: link_table,
        addresses,
        flow_timeout_ms: flow_timeout_ms(spec.tuple.protocol),
        now_ns: monotonic_ns(),
    })
}

/// What is looked through.
struct Eyes {
    conntrack: Conntrack,
    /// None where the programs aren't loaded.
    pinned: Option<Pinned>,
    nft: Nft,
}

/// What one look sees.
struct Look {
    entry: Option<Entry>,
    counted: [Option<FlowCounters>; 2],
}

impl Look {
    /// As packets of either direction come in.
    fn tuples(&self, spec: &FlowSpec) -> [Tuple; 2] {
        match &self.entry {
            Some(entry) => [entry.original, entry.reply],
            None => [spec.tuple, spec.tuple.reversed()],
        }
    }
}

impl Eyes {
    fn open(pin_path: &Path) -> Result<Self, WhyError> {
        let pinned = match Pinned::open(pin_path) {
            Ok(pinned) => Some(pinned),
            Err(BpfError::NotPinned { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { conntrack: Conntrack::open()?, pinned, nft: Nft::open()? })
    }

    fn look(&mut self, spec: &FlowSpec) -> Result<Look, WhyError> {
        let mut look = Look { entry: find(&mut self.conntrack, spec)?, counted: [None; 2] };
        if let Some(pinned) = &self.pinned {
            for (tuple, counted) in look.tuples(spec).iter().zip(&mut look.counted) {
                *counted = tuple.flow_key().map(|key| pinned.flow(&key)).transpose()?.flatten();
            }
        }
        Ok(look)
    }
}

/// The connection with any of its tuples: a look-up by the tuples of packets that come in; a walk through all for what
/// isn't found so (another zone, protocols without ports).
fn find(conntrack: &mut Conntrack, spec: &FlowSpec) -> Result<Option<Entry>, ConntrackError> {
    if spec.tuple.flow_key().is_some() {
        for tuple in [spec.tuple, spec.tuple.reversed()] {
            if let Some(entry) = conntrack.get(&tuple, 0)? {
                return Ok(Some(entry));
            }
        }
    }
    let mut found = None;
    conntrack.dump(|entry| {
        if found.is_none() && spec.is(&entry.original, &entry.reply) {
            found = Some(entry);
        }
    })?;
    Ok(found)
}

/// What IPsec policies are compared with: packets between the two NATs and behind both, either direction.
fn forwarded(entry: &Entry) -> [Tuple; 4] {
    let between = Tuple {
        destination: entry.reply.source,
        destination_port: entry.reply.source_port,
        ..entry.original
    };
    [between, between.reversed(), entry.reply.reversed(), entry.original.reversed()]
}

/// The interface that the forward path sees packets come in on: where routing leads back to, if that stands on the one
/// that they were counted on; else the topmost above it.
fn input(links: &LinkTable, counted: Option<IfIndex>, back: Option<IfIndex>) -> Option<IfIndex> {
    let Some(counted) = counted else { return back };
    let below = watch::lower_links(links.iter());
    let mut above = BTreeSet::from([counted]);
    loop {
        let before = above.len();
        let uppers = below.iter().filter(|(_, lowers)| !lowers.is_disjoint(&above)).map(|(upper, _)| *upper);
        above = above.iter().copied().chain(uppers).collect();
        if above.len() == before {
            break;
        }
    }
    if back.is_some_and(|back| above.contains(&back)) {
        return back;
    }
    let mut top = counted;
    while let Some(master) = links.get(top).and_then(|link| link.master).filter(|master| *master != counted) {
        top = master;
    }
    Some(top)
}

fn ruleset(nft: &mut Nft) -> Result<Ruleset, NftError> {
    use crate::core::{
        model::{CHAIN, DEVICE_SET, FLOWTABLE},
        rule::Rule,
    };
    let Some(table) = nft.observe()?.table else { return Ok(Ruleset::default()) };
    let chain = table.chains.iter().find(|chain| chain.name == CHAIN);
    let rule = chain.into_iter().flat_map(|chain| &chain.rules).find_map(|rule| Rule::recognise(&rule.exprs));
    Ok(Ruleset {
        owner: Some(table.owner),
        threshold: rule.as_ref().map(|Rule::Offload { threshold, .. }| *threshold),
        priority: chain.and_then(|chain| chain.hook.as_ref()).map_or(0, |hook| hook.priority),
        managed: table
            .sets
            .iter()
            .find(|s| s.name == DEVICE_SET)
            .map(|s| s.elements.clone())
            .unwrap_or_default(),
        counter: table.flowtables.iter().any(|flowtable| flowtable.name == FLOWTABLE && flowtable.counter),
        meter: false,
        spares_ipsec: matches!(rule, Some(Rule::Offload { spare_ipsec: true, .. })),
        excluded: None,
        assisted: false,
    })
}

/// Why interfaces of this flow aren't in the flowtable.
fn unmanaged(
    nft: &mut Nft,
    links: &LinkTable,
    ruleset: &Ruleset,
    directions: &[Direction; 2],
) -> Result<Vec<(IfIndex, NotManaged)>, NftError> {
    let mut path = BTreeSet::new();
    for direction in directions {
        path.extend(direction.counted_on());
        path.extend(direction.input);
        if let Route::Forward { output, .. } = direction.route {
            path.insert(output);
        }
    }
    let mut found = Vec::new();
    for index in path.into_iter().filter(|index| !ruleset.managed.contains(index)) {
        let Some(link) = links.get(index) else { continue };
        let why = if link.loopback {
            NotManaged::Loopback
        } else if !link.admin_up || link.oper_state == OperState::Down {
            NotManaged::Down
        } else {
            match nft.try_device(&link.name)? {
                Some(error) => NotManaged::Refused { error: error.to_string() },
                None => NotManaged::LeftOut,
            }
        };
        found.push((index, why));
    }
    Ok(found)
}

fn moved(first: Option<FlowCounters>, second: Option<FlowCounters>) -> Moved {
    let (first, second) = (first.unwrap_or_default(), second.unwrap_or_default());
    Moved {
        packets: second.packets.saturating_sub(first.packets),
        segments: second.segments.saturating_sub(first.segments),
        bytes: second.bytes.saturating_sub(first.bytes),
    }
}

fn tracked(first: Option<&Entry>, second: Option<&Entry>) -> Option<u64> {
    let (first, second) = (first?, second?);
    let sum = |entry: &Entry| entry.counters.map(|[original, reply]| original.packets + reply.packets);
    (first.id == second.id).then(|| Some(sum(second)?.saturating_sub(sum(first)?)))?
}

/// `nf_flowtable_tcp_timeout` or `nf_flowtable_udp_timeout`; the kernel's default where there is none.
fn flow_timeout_ms(protocol: u8) -> u64 {
    const DEFAULT_SECONDS: u64 = 30;
    let name = if protocol == TCP { "tcp" } else { "udp" };
    let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_flowtable_{name}_timeout"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_SECONDS) * 1000
}
