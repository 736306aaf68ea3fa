//! What is installed on this node, read from the kernel at the moment of asking; no running agent is needed.

use std::{fmt, path::Path, process::ExitCode, time::Duration};

use serde::Serialize;

mod agent;

use self::agent::Agent;
use super::{
    rules::Bypassed,
    running::{self, told},
};
use crate::{
    cli::{Output, StatusArgs},
    commands::{hostname, print, print_json, runtime},
    config::Config,
    core::{
        flow::sums::FlowSums,
        link::{kind::is_bridged, select::Unmanaged, table::LinkTable},
        model::{Counter, FLOWTABLE, Link, TABLE},
        ruleset::{
            chain::OwnChain,
            exclude,
            observed::{Observed, ObservedTable, Owner},
            sets::OwnSet,
        },
        threshold::Advice,
    },
    kernel::{
        Ruleset, bpf,
        clock::monotonic_ns,
        conntrack,
        flows::{self, FlowsError},
        lengths,
        links::{LinkError, Links},
        nft::{Nft, NftError},
        probe::{self, Kernel},
        why::why_unmanaged,
    },
};

/// Runs `status`.
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status = runtime()?.block_on(gather(hostname(), &args.pin_path))?;
    match args.output {
        Output::Text => print(&status.to_string())?,
        Output::Json => print_json(&status)?,
    };
    Ok(ExitCode::from(status.agent.standing.exit_code()))
}

/// The whole status. Its JSON form is what `status -o json` prints; fields are only ever added.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The agent, and whether all is as it should be.
    pub agent: Agent,
    /// Name of this node.
    pub node: String,
    /// What the kernel can do.
    pub kernel: Kernel,
    /// The table of our name.
    pub table: Part<Option<Table>>,
    /// Connections that are fast, that could be, and that never will be.
    pub flows: Part<FlowSums>,
    /// Connections that conntrack follows.
    pub conntrack: Part<conntrack::Summary>,
    /// Programs and maps.
    pub ebpf: Part<bpf::Inspection>,
    /// Every interface of this network namespace.
    pub interfaces: Vec<Interface>,
    /// Other programs' rules that offloaded packets bypass and that check more than headers and connection.
    pub rules: Bypassed,
}

/// A part of the status that may not have been readable.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Part<T> {
    /// It was.
    Known(T),
    /// It wasn't.
    Unknown {
        /// Why, and what to do about it.
        error: String,
    },
}

impl<T, E: fmt::Display> From<Result<T, E>> for Part<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Unknown { error: error.to_string() },
        }
    }
}

/// The table `inet kindnet-fastpath`.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Whether this agent made it.
    pub owner: Owner,
    /// Packets of both directions after which a flow is offloaded; none if our rule isn't there.
    pub threshold: Option<u32>,
    /// Why it is this one; none if the operator has chosen it.
    pub chosen: Option<Chosen>,
    /// Priority of the chain in the forward hook.
    pub chain_priority: Option<i32>,
    /// Offloads since the rule was installed, as its counter has them: packets that moved their flow to the flowtable.
    pub offloads: Option<Counter>,
    /// Packets without a trace, since the set of traces was full; none without the rules.
    pub untraced: Option<u64>,
    /// The flowtable asks the devices to forward in hardware.
    pub hw_offload: bool,
    /// The flowtable counts, so that conntrack's counters go on for offloaded flows.
    pub counter: bool,
    /// Interfaces in the flowtable; none where the kernel can't tell.
    pub devices: Option<usize>,
    /// What is never offloaded.
    pub exclusions: InstalledExclusions,
}

/// A threshold that the agent has chosen.
#[derive(Debug, Serialize)]
pub struct Chosen {
    /// For how long it has been in force, in s; none if the agent began with it.
    pub stands_seconds: Option<u64>,
    /// What it is worth; none while too few flows were seen to tell.
    pub advice: Option<Advice>,
}

/// What is never offloaded, as the kernel has it (excluded interfaces are simply not in the flowtable).
#[derive(Debug, Serialize)]
pub struct InstalledExclusions {
    /// Networks, ports one by one, protocols and marks.
    pub entries: usize,
    /// The first few of them, as they are written for `--exclude`.
    pub first: Vec<String>,
}

/// One interface.
#[derive(Debug, Serialize)]
pub struct Interface {
    /// The link as the kernel describes it.
    #[serde(flatten)]
    pub link: Link,
    /// It is in the flowtable and its index in the set that the rule asks.
    pub managed: bool,
    /// Why it isn't managed.
    #[serde(flatten)]
    pub unmanaged: Option<Unmanaged>,
    /// The same in words.
    pub reason: Option<String>,
}

/// Asks the agent and the kernel.
pub async fn gather(host: String, pin_path: &Path) -> Result<Status, LinkError> {
    let links = Links::open()?.list()?;
    let observed = Nft::open().and_then(|mut nft| nft.observe());
    let table = observed.as_ref().ok().and_then(|o| o.table.as_ref());
    // Before the agent is asked, which is a connection too.
    let flows = sums(pin_path).await.into();
    let (agent, config) = Agent::ask(|config| amiss(config, &observed));
    let chosen =
        table.and_then(|table| table.threshold()).and_then(|now| chosen(now, config.as_ref(), pin_path));
    let all: LinkTable = links.iter().cloned().collect();
    Ok(Status {
        agent,
        node: config.as_ref().map_or(host, |config| config.node.clone()),
        rules: Bypassed::read(&all, pin_path),
        kernel: probe::probe(),
        flows,
        interfaces: interfaces(links, table, config.as_ref()),
        table: observed
            .map(|o: Observed| o.table.as_ref().map(|table| Table { chosen, ..summary(table) }))
            .into(),
        conntrack: conntrack::summary().into(),
        ebpf: bpf::inspect(pin_path).into(),
    })
}

/// What of the ruleset isn't as this configuration wants it, where the agent isn't asked.
fn amiss(config: &Config, observed: &Result<Observed, NftError>) -> Option<String> {
    let table = match observed {
        Ok(observed) => observed.table.as_ref(),
        Err(error) => return Some(error.to_string()),
    };
    match table {
        _ if config.rules.threshold_in_force() == 0 => None,
        None => Some(format!("no table inet {TABLE} is installed; see the agent's log")),
        Some(table) if table.owner == Owner::Foreign => {
            Some(format!("table inet {TABLE} was made by another program"))
        }
        Some(table) if table.threshold().is_none() => {
            Some(format!("table inet {TABLE} is without the agent's rule; see the agent's log"))
        }
        Some(_) => None,
    }
}

async fn sums(pin_path: &Path) -> Result<FlowSums, FlowsError> {
    let node = running::node(pin_path).await?;
    let mut sums = FlowSums::default();
    flows::for_each(pin_path, &node, |flow| sums.add(&flow))?;
    Ok(sums)
}

/// Why the agent with this configuration has chosen the threshold `now`, if that was left to it.
fn chosen(now: u32, config: Option<&Config>, pin_path: &Path) -> Option<Chosen> {
    config.filter(|config| config.rules.threshold_auto)?;
    let addresses = Links::open().and_then(|mut links| links.addresses()).unwrap_or_default();
    let changed_ns = bpf::earlier_threshold(pin_path).until_ns;
    Some(Chosen {
        stands_seconds: (changed_ns > 0).then(|| monotonic_ns().saturating_sub(changed_ns) / 1_000_000_000),
        advice: lengths::read(pin_path, &addresses).ok().and_then(|lengths| lengths.advise(now)),
    })
}

fn summary(table: &ObservedTable) -> Table {
    let flowtable = table.flowtables.iter().find(|f| f.name == FLOWTABLE);
    Table {
        owner: table.owner.clone(),
        threshold: table.threshold(),
        chosen: None,
        chain_priority: table.chain(OwnChain::Base).and_then(|c| c.hook.as_ref()).map(|h| h.priority),
        offloads: table.offloads(),
        untraced: table.untraced(),
        hw_offload: flowtable.is_some_and(|f| f.hw_offload),
        counter: flowtable.is_some_and(|f| f.counter),
        devices: flowtable.and_then(|f| f.devices.as_ref()).map(|d| d.len()),
        exclusions: exclusions(table),
    }
}

fn exclusions(table: &ObservedTable) -> InstalledExclusions {
    const FIRST: usize = 8;
    let keys = table.sets.iter().flat_map(|set| match OwnSet::named(&set.name) {
        Some(OwnSet::Exclude(own)) => set.keys.iter().map(|key| (own, *key)).collect(),
        _ => Vec::new(),
    });
    let marks = exclude::marks_of_packets(table).map(|mark| format!("mark/{mark}"));
    let (marks, mut keys): (Vec<String>, Vec<_>) = (marks.collect(), keys.collect());
    keys.sort_unstable();
    let entries = marks.len() + keys.len();
    let first = marks.into_iter().chain(keys.into_iter().map(|(set, key)| set.describe(key))).take(FIRST);
    InstalledExclusions { entries, first: first.collect() }
}

fn interfaces(links: Vec<Link>, table: Option<&ObservedTable>, config: Option<&Config>) -> Vec<Interface> {
    let all: LinkTable = links.iter().cloned().collect();
    let managed = table.and_then(|table| table.managed()).cloned().unwrap_or_default();
    let flowtable = table.and_then(|table| table.flowtables.iter().find(|found| found.name == FLOWTABLE));
    // Where the kernel can't list the devices, the set tells them.
    let in_flowtable = |link: &Link| {
        flowtable.is_some_and(|flowtable| {
            flowtable.devices.as_ref().is_none_or(|devices| devices.contains(&link.name))
        })
    };
    let mut nft = Nft::open().ok();
    let mut interface = |link: Link| {
        let is_managed = managed.contains(&link.index) && in_flowtable(&link);
        let bridged = || is_bridged(&link, |index| all.get(index).filter(|_| managed.contains(&index)));
        let unmanaged = match (Unmanaged::of_state(&link), table) {
            _ if is_managed => None,
            (Some(state), _) => Some(state),
            (None, None) => Some(Unmanaged::NoRuleset),
            (None, Some(_)) if bridged() => Some(Unmanaged::Port),
            (None, Some(_)) => nft.as_mut().and_then(|nft| why_unmanaged(nft, &link, config.map(told)).ok()),
        };
        Interface {
            managed: is_managed,
            reason: unmanaged.as_ref().map(ToString::to_string),
            unmanaged,
            link,
        }
    };
    links.into_iter().map(&mut interface).collect()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "agent       {}", self.agent)?;
        writeln!(f, "node        {}", self.node)?;
        writeln!(f, "kernel      {}", self.kernel)?;
        write!(f, "ruleset     ")?;
        match &self.table {
            Part::Unknown { error } => writeln!(f, "unknown: {error}")?,
            Part::Known(None) => writeln!(f, "none: no table inet {TABLE} is installed")?,
            Part::Known(Some(table)) => writeln!(f, "{table}")?,
        }
        if let Part::Known(Some(Table { owner: Owner::Agent, exclusions, .. })) = &self.table {
            writeln!(f, "excluded    {exclusions}")?;
        }
        if let Some(passed) = &self.agent.last_minute {
            writeln!(f, "packets     {passed}")?;
        }
        write!(f, "flows       ")?;
        match &self.flows {
            Part::Unknown { error } => writeln!(f, "unknown: {error}")?,
            Part::Known(sums) => writeln!(f, "{sums}")?,
        }
        write!(f, "conntrack   ")?;
        match &self.conntrack {
            Part::Unknown { error } => writeln!(f, "unknown: {error}")?,
            Part::Known(summary) => writeln!(f, "{summary}")?,
        }
        write!(f, "ebpf        ")?;
        match &self.ebpf {
            Part::Unknown { error } => writeln!(f, "unknown: {error}")?,
            Part::Known(inspection) => write_ebpf(f, inspection)?,
        }
        let managed = self.interfaces.iter().filter(|i| i.managed).count();
        writeln!(f, "interfaces  {managed} of {} in the flowtable", self.interfaces.len())?;
        let width = self.interfaces.iter().map(|i| i.link.name.as_str().len()).max().unwrap_or(0);
        for interface in &self.interfaces {
            let kind = interface.link.kind.as_deref().unwrap_or("-");
            let what = interface.reason.as_deref().unwrap_or("managed");
            writeln!(f, "  {:width$}  {kind:10}  {what}", interface.link.name.as_str())?;
        }
        write!(f, "{}", self.rules)
    }
}

fn write_ebpf(f: &mut fmt::Formatter<'_>, ebpf: &bpf::Inspection) -> fmt::Result {
    let Some(maps) = &ebpf.maps else {
        return writeln!(f, "no programs: nothing is pinned in {}", ebpf.pin_path.display());
    };
    writeln!(
        f,
        "{} interfaces watched, {} of {} entries in the flow map (one for each direction; {} entered, {} evicted)",
        ebpf.attachments.len(),
        maps.flows,
        maps.max_flows,
        maps.flows_entered,
        maps.flows_left,
    )?;
    for attachment in &ebpf.attachments {
        if let Some(reason) = attachment.without_xdp {
            writeln!(f, "            {} is watched with TC instead of XDP: {reason}", attachment.name)?;
        }
    }
    Ok(())
}

impl fmt::Display for InstalledExclusions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entries - self.first.len() {
            _ if self.entries == 0 => f.write_str("nothing"),
            0 => f.write_str(&self.first.join(", ")),
            more => write!(f, "{} and {more} more", self.first.join(", ")),
        }
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto")?;
        if let Some(seconds) = self.stands_seconds {
            write!(f, ", for {}", humantime::format_duration(Duration::from_secs(seconds)))?;
        }
        match &self.advice {
            Some(advice) => write!(f, ": {advice}"),
            None => f.write_str(": too few flows seen to choose another"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.owner, self.threshold) {
            (Owner::Foreign, _) => {
                return write!(f, "table inet {TABLE} was made by another program: left alone");
            }
            (Owner::Agent, None) => {
                write!(f, "table inet {TABLE} without the agent's rule: nothing is offloaded")?
            }
            (Owner::Agent, Some(threshold)) => {
                write!(f, "flows of more than {threshold} packets are offloaded")?
            }
        }
        if let Some(chosen) = &self.chosen {
            write!(f, " ({chosen})")?;
        }
        if let Some(offloads) = self.offloads {
            write!(f, ", {} so far", offloads.packets)?;
        }
        if let Some(priority) = self.chain_priority {
            write!(f, ", chain priority {priority}")?;
        }
        f.write_str(if self.hw_offload { ", in hardware" } else { "" })?;
        match self.untraced {
            None | Some(0) => Ok(()),
            Some(packets) => write!(
                f,
                "; {packets} packets had no room in the set of traces: their flows are offloaded later"
            ),
        }
    }
}
