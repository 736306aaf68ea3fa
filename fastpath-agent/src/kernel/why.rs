//! Reads everything about one flow, in two readings about a second apart, so that they show which path its packets
//! take at that moment. Changes nothing, decides nothing.

use std::{collections::BTreeSet, io, net::IpAddr, path::Path, time::Duration};

use fastpath_common::FlowCounters;
use tokio::time::{Instant, sleep_until};

use super::{
    Ruleset as _,
    bpf::{self, BpfError, Pinned},
    clock::monotonic_ns,
    conntrack::{Conntrack, ConntrackError},
    flows::FlowsError,
    ipvs,
    links::Links,
    nft::{Nft, NftError, SlowPath},
    route::Routes,
    route_rules,
    surroundings::read_once,
    tap::Tap,
    xfrm,
};
use crate::core::{
    doctor::facts::OtherFlowtable,
    flow::{
        Earlier,
        connection::{Entry, TCP, Tuple},
        trace::Trace,
    },
    link::{
        select::{Selection, Unmanaged},
        table::LinkTable,
        watch,
    },
    model::{Counter, FLOWTABLE, IfIndex, Link},
    policy::ignore::Ignore,
    ruleset::{
        chain::OwnChain,
        exclude::{self, Exclusions},
        sets::OwnSet,
    },
    why::{self, Direction, FlowFacts, FlowSpec, Flowtable, Moved, Program, Route, Ruleset, Slow},
};

/// Time between the two readings.
const LOOK: Duration = Duration::from_secs(1);

/// What the running agent was told of interfaces.
#[derive(Clone, Copy, Debug)]
pub struct Flags<'a> {
    /// Its globs.
    pub selection: &'a Selection,
    /// Its exclusions, as they are in its file now.
    pub exclusions: &'a Exclusions,
    /// Rules that it passes by.
    pub ignored: &'a [Ignore],
    /// The agent asks itself, and may have given up the right to ask for programs' names: then none are named.
    pub confined: bool,
}

impl Flags<'_> {
    fn reject(self, link: &Link) -> Option<Unmanaged> {
        let excluded = || self.exclusions.has_interface(&link.name).then_some(Unmanaged::FlowsExcluded);
        self.selection.reject(link).or_else(excluded)
    }
}

/// Reads everything about a flow. Takes about a second.
/// `agent` are the running agent's flags; `None` if none runs.
pub async fn gather(
    spec: &FlowSpec,
    pin_path: &Path,
    agent: Option<Flags<'_>>,
) -> Result<FlowFacts, FlowsError> {
    let mut links = Links::open()?;
    let (link_table, addresses): (LinkTable, _) = (links.list()?.into_iter().collect(), links.addresses()?);
    let mut eyes = Eyes::open(pin_path)?;
    let began = Instant::now();
    let mut first = eyes.look(spec)?;
    let offloaded = first.entry.as_ref().is_some_and(|entry| entry.status.offloaded());
    // Before the counters are read: what they grow by until the second look is then seen to leave.
    let taps = first.entry.as_ref().filter(|_| offloaded).and_then(|entry| taps(entry).ok());
    if taps.is_some() {
        first = eyes.look(spec)?;
    }

    let mut ruleset = ruleset(&mut eyes.nft, first.entry.as_ref())?;
    ruleset.earlier = bpf::earlier_threshold(pin_path);
    ruleset.managed = link_table.with_ports(&ruleset.managed);
    let notrack = if first.entry.is_none() { eyes.nft.search_rules()?.notrack } else { Vec::new() };
    let ipsec = match &first.entry {
        Some(entry) => xfrm::policies(&forwarded(entry)).map_err(FlowsError::Ipsec)?,
        None => Vec::new(),
    };
    let routes = Routes::open()?;
    let tuples = first.tuples(spec);
    let mut directions = Vec::new();
    for (tuple, seen) in tuples.iter().zip(&first.counted) {
        let forwarded = first.entry.as_ref().map_or(*tuple, |entry| {
            let [original, reply] = entry.forwarded();
            if *tuple == entry.original { original } else { reply }
        });
        let back = routes.towards(tuple.source).await;
        let input = input(&link_table, seen.map(|counters| IfIndex(counters.ifindex)), back);
        let route = match input {
            Some(input) => routes.of(&forwarded, input, &link_table).await,
            None => Route::NotAsked,
        };
        directions.push((input, back, route));
    }
    let programs = match programs(&link_table, &directions, &first) {
        Err(_) if agent.is_some_and(|agent| agent.confined) => Vec::new(),
        programs => programs?,
    };
    let route_rules = route_rules::read().unwrap_or_default().unguessed;
    let flowtables = if offloaded { flowtables(&mut eyes.nft)? } else { Vec::new() };
    sleep_until(began + LOOK).await;

    let second = eyes.look(spec)?;
    let left = taps.and_then(|taps| left(taps).ok());
    if first.entry.is_none() && second.entry.is_some() {
        // It has begun meanwhile: once more, now that everything can be asked for.
        return Box::pin(gather(spec, pin_path, agent)).await;
    }
    // One that has ended meanwhile is shown as it was; the kernel's answers are about that one.
    let same = first.entry.as_ref().map(|entry| entry.id) == second.entry.as_ref().map(|entry| entry.id);
    let (counted, entry) =
        if same { (second.counted, second.entry) } else { (first.counted, first.entry.clone()) };
    let direction = |d: usize| Direction {
        tuple: tuples[d],
        counted: counted[d],
        moved: moved(first.counted[d], counted[d]),
        input: directions[d].0,
        back: directions[d].1,
        route: directions[d].2,
    };
    let directions = [direction(0), direction(1)];
    let mut traces = first.traces;
    traces.extend(if same { second.traces } else { Vec::new() });
    let moves = directions.iter().any(|direction| direction.moved.packets > 0);
    // A neighbour that isn't asked for isn't dead.
    let dead = match &entry {
        Some(entry) if entry.status.offloaded() && moves => {
            let hops = next_hops(entry, &directions);
            let on_path = |index: &IfIndex| {
                directions.iter().any(|d| d.input == Some(*index) || d.back == Some(*index))
            };
            let dead = routes.dead_neighbours(&hops).await;
            dead.into_iter().filter(|(_, index)| on_path(index)).collect()
        }
        _ => Vec::new(),
    };
    let wanted = match &entry {
        Some(entry) if !entry.status.offloaded() => {
            let packets = why::packets(entry, &directions, &link_table);
            let met: Vec<_> = why::matching(&ruleset.left_out, &packets).collect();
            // All rules of the node are read only for a flow that is left out.
            let rules = if met.is_empty() {
                Vec::new()
            } else {
                let ignored = agent.map_or(&[][..], |agent| agent.ignored);
                read_once(&link_table, pin_path).0.surroundings(ignored).rules
            };
            why::named(&met, &rules, &packets)
        }
        _ => Vec::new(),
    };
    let unmanaged = unmanaged(&mut eyes.nft, &link_table, &ruleset, agent, &directions)?;
    Ok(FlowFacts {
        asked: spec.tuple,
        tracked: tracked(first.entry.as_ref(), entry.as_ref()),
        ipvs: entry.as_ref().is_some_and(|entry| ipvs::has_service(&entry.original)),
        route_rules,
        traces,
        dead,
        wanted,
        entry,
        directions,
        counting: eyes.pinned.is_some(),
        left,
        ruleset,
        slow: slow(first.slow, if same { second.slow } else { first.slow }),
        flowtables,
        notrack,
        ipsec,
        programs,
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
    slow: Option<SlowPath>,
    traces: Vec<Trace>,
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
    fn open(pin_path: &Path) -> Result<Self, FlowsError> {
        let pinned = match Pinned::open(pin_path) {
            Ok(pinned) => Some(pinned),
            Err(BpfError::NotPinned { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { conntrack: Conntrack::open()?, pinned, nft: Nft::open()? })
    }

    fn look(&mut self, spec: &FlowSpec) -> Result<Look, FlowsError> {
        let mut look = Look {
            entry: find(&mut self.conntrack, spec)?,
            counted: [None; 2],
            slow: None,
            traces: Vec::new(),
        };
        if let Some(entry) = &look.entry {
            look.slow = self.nft.slow_path_of(entry.id)?;
            if !entry.status.offloaded() {
                look.traces = self.nft.traces_of(entry.id)?;
            }
        }
        if let Some(pinned) = &self.pinned {
            for (tuple, counted) in look.tuples(spec).iter().zip(&mut look.counted) {
                *counted = tuple.flow_key().map(|key| pinned.flow(&key)).transpose()?.flatten();
            }
        }
        Ok(look)
    }
}

/// Count what leaves of either direction.
fn taps(entry: &Entry) -> io::Result<[Tap; 2]> {
    // Each as the other direction's answers are addressed.
    Ok([Tap::open(&entry.reply.reversed())?, Tap::open(&entry.original.reversed())?])
}

fn left([original, reply]: [Tap; 2]) -> io::Result<[u64; 2]> {
    Ok([original.left()?, reply.left()?])
}

/// Where packets of either direction are sent next: gateways, and the ends themselves.
fn next_hops(entry: &Entry, directions: &[Direction; 2]) -> Vec<IpAddr> {
    let gateways = directions.iter().filter_map(|direction| match direction.route {
        Route::Forward { gateway, .. } => gateway,
        _ => None,
    });
    gateways.chain([entry.original.source, entry.reply.source]).collect()
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
    let [original, reply] = entry.forwarded();
    [original, reply, entry.reply.reversed(), entry.original.reversed()]
}

/// The interface that the forward path sees packets come in on: where routing leads back to, if that is on top of the one
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

fn ruleset(nft: &mut Nft, connection: Option<&Entry>) -> Result<Ruleset, NftError> {
    let Some(table) = nft.observe()?.table else { return Ok(Ruleset::default()) };
    let mut listed = |set| match connection {
        Some(entry) if table.set(set).is_some() => nft.has_listed(set, entry.id),
        _ => Ok(false),
    };
    Ok(Ruleset {
        threshold: table.threshold(),
        earlier: Earlier::default(),
        priority: table
            .chain(OwnChain::Base)
            .and_then(|chain| chain.hook.as_ref())
            .map_or(0, |hook| hook.priority),
        managed: table.managed().cloned().unwrap_or_default(),
        counter: table.flowtables.iter().any(|flowtable| flowtable.name == FLOWTABLE && flowtable.counter),
        meter: table.metered(),
        excluded: connection.and_then(|entry| Exclusions::of_rules(&table).of(entry)),
        excluded_marks: exclude::marks_of_packets(&table).map(|mark| format!("mark/{mark}")).collect(),
        revoked: listed(OwnSet::Revoked)?,
        assisted: listed(OwnSet::Assist)?,
        left_out: table.left_out().collect(),
        owner: Some(table.owner),
    })
}

/// Why interfaces of this flow aren't in the flowtable.
fn unmanaged(
    nft: &mut Nft,
    links: &LinkTable,
    ruleset: &Ruleset,
    agent: Option<Flags<'_>>,
    directions: &[Direction; 2],
) -> Result<Vec<(IfIndex, Unmanaged)>, NftError> {
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
        found.push((index, why_unmanaged(nft, link, agent)?));
    }
    Ok(found)
}

/// Why a link that could be in the flowtable isn't. Asks the kernel whether it would take it, and changes nothing.
pub fn why_unmanaged(nft: &mut Nft, link: &Link, agent: Option<Flags<'_>>) -> Result<Unmanaged, NftError> {
    let told = agent.and_then(|agent| agent.reject(link)).or_else(|| Unmanaged::of_state(link));
    Ok(match told {
        Some(reason) => reason,
        None => match nft.try_device(&link.name)? {
            Some(error) => Unmanaged::Refused { error: error.to_string() },
            None if agent.is_some() => Unmanaged::NotYet,
            None => Unmanaged::LeftOut,
        },
    })
}

/// Other programs' eBPF programs where packets of the flow come in, or would.
fn programs(
    table: &LinkTable,
    directions: &[(Option<IfIndex>, Option<IfIndex>, Route)],
    look: &Look,
) -> Result<Vec<Program>, FlowsError> {
    let below = watch::lower_links(table.iter());
    let mut interfaces = BTreeSet::new();
    for ((input, ..), counted) in directions.iter().zip(&look.counted) {
        interfaces.extend(counted.map(|counters| IfIndex(counters.ifindex)));
        let mut next: Vec<IfIndex> = input.iter().copied().collect();
        while let Some(index) = next.pop() {
            if interfaces.insert(index) {
                next.extend(below.get(&index).into_iter().flatten());
            }
        }
    }
    let mut found = Vec::new();
    for index in interfaces {
        let Some(link) = table.get(index) else { continue };
        let programs = bpf::at_ingress(index)
            .map_err(|source| FlowsError::Programs { interface: link.name.clone(), source })?;
        found.extend(programs.into_iter().map(|program| Program {
            interface: link.name.clone(),
            name: format!("{} {}", program.kind, program.name),
            before_ours: program.before_ours,
        }));
    }
    Ok(found)
}

/// Other programs' flowtables, and the rules that add to them.
fn flowtables(nft: &mut Nft) -> Result<Vec<Flowtable>, NftError> {
    let others = nft.survey()?.flowtables;
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let added_to = nft.search_rules()?.flow_add;
    let priorities = nft.forward_priorities()?;
    let flowtable = |other: OtherFlowtable| {
        let table = format!("{} {}", other.table.family, other.table.name);
        let used = added_to.contains(&(table.clone(), other.name.clone()));
        let priority = priorities.iter().find(|(of, _)| *of == table).map(|(_, priority)| *priority);
        Flowtable {
            priority: priority.filter(|_| used),
            devices: (!other.devices.is_empty()).then_some(other.devices),
            name: format!("{table} {}", other.name),
        }
    };
    Ok(others.into_iter().map(flowtable).collect())
}

/// The meter's two readings; its element may be new, or may have gone and started again at 0.
fn slow(first: Option<SlowPath>, second: Option<SlowPath>) -> Option<Slow> {
    let SlowPath { counter, idle_ms, .. } = second?;
    let before =
        first.map(|slow| slow.counter).filter(|before| before.packets <= counter.packets).unwrap_or_default();
    let moved = Counter {
        packets: counter.packets - before.packets,
        bytes: counter.bytes.saturating_sub(before.bytes),
    };
    Some(Slow { counter, idle_ms, moved })
}

fn moved(first: Option<FlowCounters>, second: Option<FlowCounters>) -> Moved {
    let (first, second) = (first.unwrap_or_default(), second.unwrap_or_default());
    Moved {
        packets: second.packets.saturating_sub(first.packets),
        segments: second.segments.saturating_sub(first.segments),
        bytes: second.bytes.saturating_sub(first.bytes),
        forwarded: second.forwarded.saturating_sub(first.forwarded),
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
