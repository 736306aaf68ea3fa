//! What the checks are made on: a node's state as it was read, or why it couldn't be. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::core::{
    model::{IfIndex, IfName, Link},
    peer::{Chains, NoForwarding, Surface},
    ruleset::{observed::Observed, wanted::Policy},
    threshold::Lengths,
};

/// A part that may not have been readable; then why, in one line.
pub type Reading<T> = Result<T, String>;

/// All that is known of a node.
pub struct NodeFacts {
    /// The kernel.
    pub kernel: KernelFacts,
    /// The process that runs as the agent in this network namespace; `None` if there is none.
    pub agent: Option<AgentFacts>,
    /// Effective capabilities of the agent, or of this process where no agent runs (bit mask, linux/capability.h).
    pub capabilities: Reading<u64>,
    /// What the table should look like: from the running agent's flags, else from doctor's own.
    pub policy: Policy,
    /// The agent's flags have it offload whatever is known of the kernel.
    pub ignores_known_bugs: bool,
    /// The agent's flags leave the threshold to it.
    pub chooses_threshold: bool,
    /// How long this node's connections are; `None` where that can't be read.
    pub lengths: Option<Lengths>,
    /// The agent's flags switch eBPF off.
    pub without_ebpf: bool,
    /// `/proc/sys` by dotted name; only those that exist.
    pub sysctls: BTreeMap<String, i64>,
    /// Every link of this namespace.
    pub links: Vec<Link>,
    /// Families of which this node has an address that others can reach (not loopback, not link-local).
    pub reachable: Families,
    /// The table of our name.
    pub observed: Reading<Observed>,
    /// What others have in nftables.
    pub others: Reading<Others>,
    /// IPVS services (`/proc/net/ip_vs`); 0 where there is no IPVS.
    pub ipvs_services: usize,
    /// Tables of iptables-legacy that are in use (`/proc/net/ip_tables_names`); their rules can't be read.
    pub legacy_tables: Vec<String>,
    /// Objects that give flows timeouts of their own: `ct timeout` of nftables, and `nfct timeout`.
    pub timeouts: Reading<Vec<String>>,
    /// IPsec policies that demand IPsec for forwarded packets, or forbid them, but those of xfrm interfaces: in words.
    pub ipsec: Reading<Vec<String>>,
    /// Files loaded at boot that have a table of our name in them.
    pub saved: Vec<String>,
    /// The pin directory is, or would be, on a bpf file system.
    pub bpffs: Reading<bool>,
    /// Where the maps are pinned.
    pub pin_path: String,
    /// Our programs and maps.
    pub ebpf: Reading<EbpfFacts>,
    /// Other programs' eBPF programs at ingress, by interface; interfaces without one are left out.
    pub at_ingress: Reading<BTreeMap<IfIndex, Vec<IngressProgram>>>,
    /// What is at interfaces; absent unless packets are to be forwarded ahead of the flowtable.
    pub forward: Option<ForwardFacts>,
    /// Filters of traffic control at egress of interfaces that ask for packets' marks: kind and interface, in words.
    pub mark_filters: Reading<Vec<String>>,
    /// Interfaces whose driver has `hw-tc-offload`, and whether it is on.
    pub hardware: BTreeMap<IfName, bool>,
}

/// What forwarding ahead of the flowtable depends on.
pub struct ForwardFacts {
    /// What is at interfaces.
    pub surfaces: BTreeMap<IfIndex, Surface>,
    /// Chains at interfaces, or why nothing is forwarded at all.
    pub chains: Result<Chains, NoForwarding>,
    /// Interfaces to which routes lead that a program's look-up misreads; `None` if they couldn't be read.
    pub misread: Option<BTreeSet<IfIndex>>,
}

/// The kernel.
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`.
    pub version: String,
    /// `/proc/version_signature`, where there is one.
    pub signature: Option<String>,
    /// What the agent needs of it, each tried out.
    pub features: Vec<Feature>,
}

/// Something that the agent needs.
pub struct Feature {
    /// What, in nft's words.
    pub name: &'static str,
    /// Without it nothing is offloaded; otherwise it is only missed.
    pub vital: bool,
    /// Why it isn't there; `None` if it is.
    pub missing: Option<Missing>,
}

/// Why a feature isn't there.
pub struct Missing {
    /// It isn't; otherwise it couldn't be told.
    pub certain: bool,
    /// What is missing and what to do about it, one line.
    pub reason: String,
}

/// A running agent.
pub struct AgentFacts {
    /// Its process.
    pub pid: u32,
    /// What of its flags couldn't be read.
    pub unread: Option<Unread>,
}

/// What of a running agent's flags couldn't be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// All of them; doctor's own are used instead.
    Flags(String),
    /// The file of exclusions; those in the table are used instead.
    Exclusions(String),
}

/// Address families.
#[derive(Clone, Copy, Debug, Default)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// What others have in nftables, all families, iptables-nft included.
#[derive(Debug, Default)]
pub struct Others {
    /// Tables.
    pub tables: BTreeSet<OtherTable>,
    /// Names of all chains in them.
    pub chains: BTreeSet<String>,
    /// Flowtables.
    pub flowtables: Vec<OtherFlowtable>,
    /// Base chains in the ingress hook.
    pub ingress: Vec<IngressChain>,
}

/// A base chain in the ingress hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressChain {
    /// Where it is, in words.
    pub place: String,
    /// Its priority.
    pub priority: i32,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherTable {
    /// "ip", "ip6", "inet" …
    pub family: &'static str,
    /// Its name.
    pub name: String,
}

/// Another program's flowtable, in whatever table.
#[derive(Clone, Debug)]
pub struct OtherFlowtable {
    /// Its table.
    pub table: OtherTable,
    /// Its name.
    pub name: String,
    /// Its devices; empty where they can't be read.
    pub devices: BTreeSet<IfName>,
}

/// Our programs and maps.
#[derive(Debug, Default)]
pub struct EbpfFacts {
    /// Interfaces with one of the agent's programs.
    pub attached: BTreeSet<IfIndex>,
    /// What the maps say; `None` if none are pinned.
    pub maps: Option<MapFacts>,
}

/// What the maps say, since they were made.
#[derive(Debug, Default)]
pub struct MapFacts {
    /// Packets counted.
    pub counted: u64,
    /// Crossings of the threshold that weren't signalled, since the ring was full.
    pub events_lost: u64,
    /// Packets of flows that the map had no room for.
    pub no_room: u64,
    /// Packets that weren't what their headers say.
    pub malformed: u64,
    /// Entries in the flow map.
    pub flows: u32,
    /// Entries that it has room for.
    pub max_flows: u32,
}

/// Another program's eBPF program that sees packets before the flowtable does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressProgram {
    /// "XDP", "TCX" or "tc filter".
    pub kind: &'static str,
    /// The program's name, or the kind of filter.
    pub name: String,
    /// It runs before our counting program; otherwise after it.
    pub before_ours: bool,
}

/// Results of the canary's flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryFlow {
    /// "tcp" or "udp".
    pub protocol: String,
    /// "ipv4" or "ipv6".
    pub family: String,
    /// Requests sent once the flow was over the threshold, each answered by the server.
    pub rounds: u32,
    /// Of those, how many arrived and came back unaltered.
    pub intact: u32,
    /// Packets that came in on the router's interfaces meanwhile.
    pub ingress: u64,
    /// Packets that took the router's forward path meanwhile.
    pub forwarded: u64,
    /// Why it couldn't be tried.
    pub error: Option<String>,
}

/// The canary as a whole.
#[derive(Debug)]
pub enum Canary {
    /// `--no-canary`.
    NotWanted,
    /// It couldn't be run: why, in one line.
    Failed(String),
    /// It was.
    Flows(Vec<CanaryFlow>),
}
