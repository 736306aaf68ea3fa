//! Reads what other programs have on this node that our ruleset must respect: at the start, after events, after an overrun and
//! by the safety net, always by the one function here. Takes up to some 100 ms; decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use super::{
    bpf,
    facts::KernelName,
    nft::{Nft, NftError, Which},
    route_rules,
};
use crate::core::{
    known_bugs::KernelVersion,
    link::{table::LinkTable, watch::uppers},
    model::{IfIndex, IfName},
    policy::{
        chain::SetKey,
        known::{Known, Parts, Upper},
        others::Others,
    },
};

/// Of more sets than these it isn't read when their elements run out.
const MOST_SETS: usize = 64;

/// What to read, and where.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The parts.
    pub parts: Parts,
    /// Interfaces on top of other interfaces.
    pub uppers: BTreeMap<IfIndex, IfName>,
    /// The point from which on times are counted.
    pub started: Instant,
    /// Where our programs are pinned; the pins tell them from other programs'.
    pub pin_path: PathBuf,
}

/// How it went.
#[derive(Debug, Default)]
pub struct Report {
    /// What couldn't be read and why, a line each, with what follows and the remedy.
    pub failures: Vec<String>,
    /// Something kept changing meanwhile: it has to be read again.
    pub unsettled: bool,
}

/// Whether this kernel's flowtable leaves FIN and RST to the normal path.
pub(super) fn ends_leave() -> bool {
    KernelVersion::of(&KernelName::read().names()).is_some_and(|version| version.ends_leave_flowtable())
}

/// Brings `known` up to date.
pub fn read(known: &mut Known, ask: &Ask) -> Report {
    let mut report = Report::default();
    let parts = &ask.parts;
    known.ends_leave = ends_leave();
    if parts.all || !parts.tables.is_empty() {
        let which = if parts.all { Which::All } else { Which::Tables(&parts.tables) };
        let mut tables = known.tables.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        match read_tables(&mut tables, which) {
            Ok(settled) => {
                report.unsettled = !settled;
                known.tables = Some(Arc::new(tables));
            }
            Err(error) => report.failures.push(format!(
                "{error}: until they can be read, the agent's chain comes after all usual priorities (the agent needs \
                 CAP_NET_ADMIN)"
            )),
        }
    }
    read_expiries(known, ask, &mut report);
    if parts.all || parts.legacy {
        known.legacy = take(
            legacy_tables(),
            &mut report,
            "the tables of iptables-legacy can't be read",
            "they count as in use (needs /proc/self/net)",
        );
    }
    if parts.all || parts.route_rules {
        known.route_rules = take(
            route_rules::read(),
            &mut report,
            "policy rules (ip rule) can't be read",
            "until they can, every flow's route counts as dependent on them; `ip rule` shows why",
        );
    }
    read_programs(known, ask, &mut report);
    known.pppoe = if ask.uppers.is_empty() { BTreeSet::new() } else { pppoe_carriers() };
    report
}

/// Interfaces that carry PPPoE sessions of this network namespace; none where the kernel has no PPPoE. A line each: session,
/// peer's MAC address, interface (`pppoe_seq_show`, drivers/net/ppp/pppoe.c).
fn pppoe_carriers() -> BTreeSet<IfName> {
    let text = fs::read("/proc/self/net/pppoe").unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    lines.filter_map(|line| IfName::from_bytes(line.rsplit(|byte| *byte == b' ').next()?)).collect()
}

/// Reads all of it once, for a command that doesn't follow it.
pub fn read_once(links: &LinkTable, pin_path: &Path) -> (Known, Report) {
    let mut known = Known::default();
    let ask = Ask {
        parts: Parts::all(),
        uppers: uppers(links),
        started: Instant::now(),
        pin_path: pin_path.to_owned(),
    };
    let report = read(&mut known, &ask);
    (known, report)
}

fn read_tables(tables: &mut Others, which: Which<'_>) -> Result<bool, NftError> {
    Nft::open()?.read_others(tables, which)
}

/// Reads when elements run out of sets on which verdicts hang.
fn read_expiries(known: &mut Known, ask: &Ask, report: &mut Report) {
    let Ask { parts, started, .. } = ask;
    let asked: BTreeSet<SetKey> = known.tables.iter().flat_map(|tables| tables.expiring()).collect();
    known.expiries.retain(|set, _| asked.contains(set));
    let is_old = |set: &SetKey| parts.all || parts.tables.contains(&set.0) || parts.sets.contains(set);
    let to_read: Vec<SetKey> =
        asked.into_iter().filter(|set| is_old(set) || !known.expiries.contains_key(set)).collect();
    for (number, set) in to_read.into_iter().enumerate() {
        let expiries = if number < MOST_SETS { Nft::expiries(&set.0, &set.1, *started) } else { Ok(None) };
        let expiries = expiries.unwrap_or_else(|error| {
            report
                .failures
                .push(format!("{error}: flows are revalidated at intervals until they can be read"));
            None
        });
        known.expiries.insert(set, expiries);
    }
}

fn read_programs(known: &mut Known, ask: &Ask, report: &mut Report) {
    known.uppers.retain(|index, _| ask.uppers.contains_key(index));
    let everywhere = ask.parts.all || ask.parts.all_programs;
    for (index, name) in &ask.uppers {
        let read = everywhere || ask.parts.programs.contains(index) || !known.uppers.contains_key(index);
        let programs = if read {
            let what = "programs at ingress of interfaces can't be read";
            take(
                bpf::is_inspected(*index, &ask.pin_path),
                report,
                what,
                "those interfaces count as having some (the agent needs CAP_BPF and CAP_NET_ADMIN)",
            )
        } else {
            known.uppers.get(index).and_then(|upper| upper.programs)
        };
        known.uppers.insert(*index, Upper { name: name.clone(), programs });
    }
}

fn take<T>(result: io::Result<T>, report: &mut Report, what: &str, follows: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let line = format!("{what} ({error}): {follows}");
            if !report.failures.contains(&line) {
                report.failures.push(line);
            }
            None
        }
    }
}

/// Where the kernel lists the tables of iptables-legacy; the files are there once it can have some.
const LEGACY: [&str; 2] = ["/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"];

/// Whether this network namespace can have tables of iptables-legacy now. It has none before they are first used, and no event
/// announces that.
pub fn may_have_legacy_tables() -> bool {
    LEGACY.iter().any(|file| Path::new(file).exists())
}

/// Names of the tables of iptables-legacy and ip6tables-legacy.
pub(super) fn legacy_tables() -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for file in LEGACY {
        match fs::read_to_string(file) {
            Ok(text) => names.extend(text.lines().map(str::to_owned)),
            // Kernels without legacy tables.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}
