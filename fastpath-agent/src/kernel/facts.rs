//! Reads what `doctor` judges: procfs, links, nftables, eBPF. What can't be read is a fact too. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    net::IpAddr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Ruleset, bpf,
    ethtool::Ethtool,
    ipvs, lengths,
    links::{LinkError, Links},
    misread_routes,
    nft::Nft,
    probe::{Kernel, Support},
    surface, xfrm,
};
use crate::{
    core::{
        doctor::facts::{
            AgentFacts, EbpfFacts, Families, Feature, ForwardFacts, IngressProgram, KernelFacts, MapFacts,
            Missing, NodeFacts, Reading, Unread,
        },
        known_bugs::KernelNames,
        link::select::Selection,
        model::{IfIndex, IfName, Link, TABLE},
        peer::{Chains, NoForwarding},
        ruleset::{observed::Observed, wanted::Policy},
    },
    kernel::capabilities::capabilities,
};

/// A process with the agent's name in this network namespace. It may be one of its subcommands.
#[derive(Debug)]
pub struct AgentProcess {
    /// Its id.
    pub pid: u32,
    /// Its command line, and its environment as NAME=VALUE.
    pub started_with: io::Result<(Vec<String>, Vec<String>)>,
    /// The capabilities that it started with, as far as it can be told: a running agent gives up most of them.
    pub capabilities: io::Result<u64>,
}

impl AgentProcess {
    /// Where this process sees a path of that one's, which may be in a container.
    pub fn path(&self, path: &Path) -> PathBuf {
        let process = Path::new("/proc").join(self.pid.to_string());
        match path.strip_prefix("/") {
            Ok(below) => process.join("root").join(below),
            Err(_) => process.join("cwd").join(path),
        }
    }
}

/// Where the checks begin: what only the flags tell.
pub struct Given {
    /// The process that runs as the agent.
    pub agent: Option<AgentProcess>,
    /// What of its flags isn't known, and why.
    pub unread: Option<Unread>,
    /// What the table should look like.
    pub policy: Policy,
    /// Offloading goes on whatever is known of the kernel.
    pub ignores_known_bugs: bool,
    /// The threshold is the agent's choice.
    pub chooses_threshold: bool,
    /// eBPF is switched off.
    pub without_ebpf: bool,
    /// Packets are to be forwarded ahead of the flowtable, and what is known for that.
    pub forward: Option<Result<Chains, NoForwarding>>,
    /// Where maps are pinned.
    pub pin_path: PathBuf,
}

/// Processes of the agent's name that share this one's network namespace, without this one.
pub fn agent_processes() -> Vec<AgentProcess> {
    const NAME: &str = env!("CARGO_PKG_NAME");
    let Ok(here) = fs::read_link("/proc/self/ns/net") else { return Vec::new() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let path = entry.path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let same = pid != std::process::id() && name.trim_end() == NAME;
            // A process whose namespace can't be read is another user's, which this one may not see.
            (same && fs::read_link(path.join("ns/net")).is_ok_and(|there| there == here)).then(|| {
                AgentProcess {
                    pid,
                    started_with: words(&path.join("cmdline"))
                        .and_then(|arguments| Ok((arguments, words(&path.join("environ"))?))),
                    capabilities: started_with(&path.join("status")),
                }
            })
        })
        .collect()
}

fn words(path: &Path) -> io::Result<Vec<String>> {
    let bytes = fs::read(path)?;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    Ok(bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// Root starts with all that its bounding set allows; of another user what it has now is all that is known.
fn started_with(status: &Path) -> io::Result<u64> {
    let is_root = fs::metadata(status)?.uid() == 0;
    capabilities(status, if is_root { "CapBnd:" } else { "CapEff:" })
}

/// Release, version and signature of the running kernel.
pub struct KernelName {
    release: String,
    version: String,
    signature: Option<String>,
}

impl KernelName {
    /// Asks the kernel.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned());
        Self {
            release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            version: text("/proc/sys/kernel/version").unwrap_or_default(),
            signature: text("/proc/version_signature"),
        }
    }

    /// Lends them.
    pub fn names(&self) -> KernelNames<'_> {
        KernelNames { release: &self.release, version: &self.version, signature: self.signature.as_deref() }
    }
}

/// Reads everything. Fails only where links can't be listed: nothing is known without them.
pub async fn gather(given: Given, kernel: &Kernel) -> Result<NodeFacts, LinkError> {
    let mut sockets = Links::open()?;
    let links = sockets.list()?;
    let addresses = sockets.addresses()?;
    let Given {
        agent,
        unread,
        mut policy,
        ignores_known_bugs,
        chooses_threshold,
        without_ebpf,
        forward,
        pin_path,
    } = given;
    let own = Path::new("/proc/self/status");
    let name = KernelName::read();
    let mut nft = Nft::open();
    let observed =
        nft.as_mut().map_err(|e| e.to_string()).and_then(|nft| nft.observe().map_err(|e| e.to_string()));
    if let (Some(Unread::Exclusions(_)), Ok(Observed { table: Some(table), .. })) = (&unread, &observed) {
        policy.exclusions = Arc::new(policy.exclusions.with_rules_of(table));
    }
    if chooses_threshold
        && policy.threshold > 0
        && let Ok(Observed { table: Some(table), .. }) = &observed
    {
        policy.threshold = table.threshold().unwrap_or(policy.threshold);
    }
    Ok(NodeFacts {
        kernel: KernelFacts {
            release: name.release,
            version: name.version,
            signature: name.signature,
            features: features(kernel),
        },
        capabilities: match &agent {
            Some(agent) => agent.capabilities.as_ref().copied().map_err(ToString::to_string),
            None => capabilities(own, "CapEff:").map_err(|error| error.to_string()),
        },
        agent: agent.map(|agent| AgentFacts { pid: agent.pid, unread }),
        sysctls: sysctls(&links),
        reachable: families(&addresses),
        observed,
        others: nft
            .as_mut()
            .map_err(|e| e.to_string())
            .and_then(|nft| nft.survey().map_err(|e| e.to_string())),
        ipvs_services: ipvs::services(),
        timeouts: nft
            .as_mut()
            .map_err(|e| e.to_string())
            .and_then(|nft| nft.timeouts().map_err(|e| e.to_string())),
        ipsec: xfrm::all_policies().map_err(|error| error.to_string()),
        saved: saved_rulesets(),
        legacy_tables: lines("/proc/self/net/ip_tables_names"),
        bpffs: bpf::on_bpffs(&pin_path).map_err(|error| error.to_string()),
        ebpf: ebpf(&pin_path),
        at_ingress: at_ingress(&links, &policy.selection),
        forward: forward.map(|chains| ForwardFacts {
            surfaces: surface::read(links.iter(), &pin_path),
            chains,
            misread: misread_routes::read().ok(),
        }),
        mark_filters: mark_filters(&links, &policy.selection),
        hardware: hardware(&links),
        pin_path: pin_path.display().to_string(),
        links,
        policy,
        ignores_known_bugs,
        chooses_threshold,
        lengths: lengths::read(&pin_path, &addresses).ok(),
        without_ebpf,
    })
}

fn features(kernel: &Kernel) -> Vec<Feature> {
    let feature = |name, vital, support: &Support| Feature {
        name,
        vital,
        missing: support
            .reason()
            .map(|reason| Missing { certain: support.known() == Some(false), reason: reason.to_owned() }),
    };
    vec![
        feature("nf_tables", true, &kernel.nf_tables),
        feature("flowtables", true, &kernel.flowtable),
        feature("ct", true, &kernel.ct),
        feature("flow add", true, &kernel.flow_offload),
        feature("flowtables with counters", false, &kernel.flowtable_counter),
    ]
}

fn sysctls(links: &[Link]) -> BTreeMap<String, i64> {
    let mut names: Vec<(String, PathBuf)> = [
        "nf_conntrack_acct",
        "nf_conntrack_count",
        "nf_conntrack_max",
        "nf_conntrack_tcp_be_liberal",
        "nf_conntrack_tcp_timeout_established",
        "nf_conntrack_udp_timeout_stream",
        "nf_flowtable_tcp_timeout",
        "nf_flowtable_udp_timeout",
    ]
    .iter()
    .map(|name| (format!("net.netfilter.{name}"), Path::new("/proc/sys/net/netfilter").join(name)))
    .collect();
    let scopes = ["all", "default"].map(|scope| (scope, scope.as_bytes())).into_iter();
    let scopes = scopes.chain(links.iter().map(|link| (link.name.as_str(), link.name.as_bytes())));
    for (scope, directory) in scopes {
        for (family, setting) in [("ipv4", "forwarding"), ("ipv4", "rp_filter"), ("ipv6", "forwarding")] {
            // The name of an interface may have dots in it; a path doesn't mind.
            let path = Path::new("/proc/sys/net")
                .join(family)
                .join("conf")
                .join(OsStr::from_bytes(directory))
                .join(setting);
            names.push((format!("net.{family}.conf.{scope}.{setting}"), path));
        }
    }
    let read = |path: &Path| fs::read_to_string(path).ok()?.trim().parse().ok();
    names.into_iter().filter_map(|(name, path)| Some((name, read(&path)?))).collect()
}

fn families(addresses: &BTreeSet<IpAddr>) -> Families {
    Families {
        v4: addresses.iter().any(|a| matches!(a, IpAddr::V4(a) if !a.is_loopback() && !a.is_link_local())),
        v6: addresses
            .iter()
            .any(|a| matches!(a, IpAddr::V6(a) if !a.is_loopback() && !a.is_unicast_link_local())),
    }
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Files that nft's services load at boot, as distributions have them, with a table of our name in them.
fn saved_rulesets() -> Vec<String> {
    const FILES: [&str; 2] = ["/etc/nftables.conf", "/etc/sysconfig/nftables.conf"];
    const DIRECTORIES: [&str; 3] = ["/etc/nftables.d", "/etc/nftables", "/etc/nftables/rules"];
    let entries = DIRECTORIES.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    let files = FILES.iter().map(PathBuf::from).chain(entries.map(|entry| entry.path()));
    let has_table = |path: &PathBuf| {
        fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("table inet {TABLE} ")))
    };
    files.filter(has_table).map(|path| path.display().to_string()).collect()
}

fn ebpf(pin_path: &Path) -> Reading<EbpfFacts> {
    let inspection = bpf::inspect(pin_path).map_err(|error| error.to_string())?;
    Ok(EbpfFacts {
        attached: inspection.attachments.iter().map(|attachment| attachment.index).collect(),
        maps: inspection.maps.map(|maps| MapFacts {
            counted: maps.counted_packets,
            events_lost: maps.events_lost,
            no_room: maps.no_room,
            malformed: maps.malformed,
            flows: maps.flows,
            max_flows: maps.max_flows,
        }),
    })
}

fn at_ingress(links: &[Link], selection: &Selection) -> Reading<BTreeMap<IfIndex, Vec<IngressProgram>>> {
    let mut found = BTreeMap::new();
    for link in links.iter().filter(|link| selection.reject(link).is_none()) {
        let programs = bpf::at_ingress(link.index).map_err(|error| format!("{}: {error}", link.name))?;
        if !programs.is_empty() {
            found.insert(link.index, programs);
        }
    }
    Ok(found)
}

fn mark_filters(links: &[Link], selection: &Selection) -> Reading<Vec<String>> {
    let mut found = Vec::new();
    for link in links.iter().filter(|link| selection.reject(link).is_none()) {
        let filters = bpf::filters_by_mark(link.index).map_err(|error| format!("{}: {error}", link.name))?;
        found.extend(filters.into_iter().map(|kind| format!("{kind} at {}", link.name)));
    }
    Ok(found)
}

fn hardware(links: &[Link]) -> BTreeMap<IfName, bool> {
    let Ok(mut ethtool) = Ethtool::open() else { return BTreeMap::new() };
    // A device that doesn't answer has nothing to offer.
    links
        .iter()
        .filter_map(|link| Some((link.name.clone(), ethtool.hw_tc_offload(&link.name).ok()??)))
        .collect()
}
