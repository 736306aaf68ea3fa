//! Checks of the ruleset, of other programs that handle the same packets, of the interfaces, and of eBPF.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Finding,
    facts::{NodeFacts, OtherFlowtable, Others},
    host::managed,
    lacks_flowtable, some,
};
use crate::core::{
    link::{kind::is_bridged, watch::watched},
    model::{CHAIN, FLOWTABLE, IfIndex, IfName, Link, TABLE},
    ruleset::{
        desired::{desired, keep_revoked},
        diff::{Decision, ForeignTable, diff},
        observed::{Observed, ObservedFlowtable, ObservedTable, Owner},
        plan::Plan,
        sets::OwnSet,
        wanted::Policy,
    },
};

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = vec![ruleset(facts)];
    findings.extend(order(facts));
    findings.extend(others(facts));
    findings.push(hardware(facts));
    findings.extend(interfaces(facts));
    findings.extend(ebpf(facts));
    findings
}

fn table(facts: &NodeFacts) -> Option<&ObservedTable> {
    facts.observed.as_ref().ok().and_then(|observed| observed.table.as_ref())
}

fn our_table(facts: &NodeFacts) -> Option<&ObservedTable> {
    table(facts).filter(|table| table.owner == Owner::Agent)
}

fn our_flowtable(facts: &NodeFacts) -> Option<&ObservedFlowtable> {
    our_table(facts)?.flowtables.iter().find(|flowtable| flowtable.name == FLOWTABLE)
}

fn ruleset(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "ruleset";
    let observed = match &facts.observed {
        Ok(observed) => observed,
        Err(why) => {
            return Finding::amber(CHECK, format!("can't be read: {why}"), "run doctor with CAP_NET_ADMIN");
        }
    };
    let runs = facts.agent.is_some();
    let Some(table) = &observed.table else {
        return match (facts.policy.threshold, runs, lacks_flowtable(facts)) {
            (0, ..) => Finding::amber(
                CHECK,
                "none: offloading is switched off (threshold 0, or mode watch)",
                "set --fastpath-threshold to more than 0, and --mode or its file to accelerate",
            ),
            (.., Some(_)) => {
                Finding::amber(CHECK, "none: this kernel has no flowtables", "follow the finding `kernel`")
            }
            (_, true, None) => Finding::red(
                CHECK,
                format!("there is no table inet {TABLE} although the agent runs"),
                "the agent's log says what keeps it from installing the table",
            ),
            (_, false, None) => {
                Finding::amber(CHECK, format!("there is no table inet {TABLE}"), "start fastpath-agent")
            }
        };
    };
    if table.owner == Owner::Foreign && table.is_rendering() {
        return Finding::amber(
            CHECK,
            "loaded by hand or from a file, as `render` or `nft list` prints it: offloads flows, but follows no change of the node",
            "start fastpath-agent, which takes it over",
        );
    }
    if table.owner == Owner::Foreign {
        return Finding::red(
            CHECK,
            format!(
                "table inet {TABLE} was made by another program (kindnetd has one of that name), so the agent leaves it alone"
            ),
            "switch that program's off (kindnetd: --fastpath-threshold=0), or start the agent with --takeover",
        );
    }
    let Decision::Apply(ops) = difference(facts, observed) else { unreachable!("the table is the agent's") };
    if ops.is_empty() {
        let devices =
            our_flowtable(facts).and_then(|flowtable| flowtable.devices.as_ref()).map_or(0, BTreeSet::len);
        return Finding::green(
            CHECK,
            format!("as it should be: threshold {}, {devices} interfaces", facts.policy.threshold),
        );
    }
    let plan = Plan(&ops);
    if runs {
        Finding::red(
            CHECK,
            format!("not as it should be; missing: {plan}"),
            "run doctor again, since the agent repairs within a second; if it stays so, read the agent's log: another program may keep changing it",
        )
    } else {
        Finding::amber(
            CHECK,
            format!("not as these flags want it; missing: {plan}"),
            "start fastpath-agent, or give doctor the flags that the agent had",
        )
    }
}

/// What an agent would change. Interfaces that aren't in the flowtable have findings of their own, and hardware
/// offload that the devices refused isn't asked for again.
fn difference(facts: &NodeFacts, observed: &Observed) -> Decision {
    let refused: BTreeMap<IfIndex, String> =
        absent(facts).into_iter().map(|link| (link.index, String::new())).collect();
    let hw_offload =
        facts.policy.hw_offload && our_flowtable(facts).is_some_and(|flowtable| flowtable.hw_offload);
    // Whether the agent assists connections at this moment is its own affair.
    let assist =
        our_table(facts).is_some_and(|table| table.sets.iter().any(|set| set.name == OwnSet::Assist.name()));
    let policy = Policy { hw_offload, assist, ..facts.policy.clone() };
    let mut wanted = desired(&policy, &facts.links, &refused);
    keep_revoked(&mut wanted, observed);
    diff(&wanted, observed, ForeignTable::Refuse)
}

/// Links that should be in our flowtable and aren't.
fn absent(facts: &NodeFacts) -> Vec<&Link> {
    let Some(devices) = our_flowtable(facts).and_then(|flowtable| flowtable.devices.as_ref()) else {
        return Vec::new();
    };
    let wanted = desired(&facts.policy, &facts.links, &BTreeMap::new());
    let is_wanted =
        |link: &&Link| wanted.as_ref().is_some_and(|wanted| wanted.devices.contains_key(&link.index));
    managed(facts).filter(|link| !devices.contains(&link.name)).filter(is_wanted).collect()
}

/// Whether the link's bridge is in the flowtable instead.
fn is_port(facts: &NodeFacts, link: &Link) -> bool {
    let bridge = |index| managed(facts).find(|link| link.index == index);
    !facts.policy.hw_offload && is_bridged(link, bridge)
}

fn order(facts: &NodeFacts) -> Option<Finding> {
    const CHECK: &str = "chain-priority";
    let hook = our_table(facts)?.chains.iter().find(|chain| chain.name == CHAIN)?.hook.as_ref()?;
    let last = facts.policy.surroundings.last_forward;
    Some(if last.is_none_or(|last| hook.priority > last) {
        Finding::green(
            CHECK,
            format!(
                "{}: after all other programs' filters, so only flows that they accept are offloaded",
                hook.priority
            ),
        )
    } else {
        Finding::amber(
            CHECK,
            format!(
                "{}: not after all other programs' filters (the last has {}), so a flow that a new rule there denies is offloaded again by the packet that the rule would drop",
                hook.priority,
                last.unwrap_or_default()
            ),
            match facts.agent {
                Some(_) => {
                    "run doctor again, since the agent moves its chain; if it stays so, give that chain an earlier priority"
                }
                None => "start fastpath-agent, which moves its chain behind them",
            },
        )
    })
}

fn others(facts: &NodeFacts) -> Vec<Finding> {
    let others = match &facts.others {
        Ok(others) => others,
        Err(why) => {
            return vec![Finding::amber(
                "other-owners",
                format!("other programs' rulesets can't be read: {why}"),
                "run doctor with CAP_NET_ADMIN",
            )];
        }
    };
    let mut findings = flowtables(facts, others);
    findings.push(match known(others).as_slice() {
        [] => Finding::green(
            "other-owners",
            "none that doctor knows (kindnet, Calico, Cilium, CNI plugins, firewalld, Docker, netavark, libvirt, ufw)",
        ),
        names => Finding::green(
            "other-owners",
            format!("rules of {} are there, and stay as they are", names.join(", ")),
        ),
    });
    findings.push(kube_proxy(facts, others));
    findings
}

/// Other programs' flowtables: the one whose hook comes first takes a flow's packets, without our rule's conditions.
fn flowtables(facts: &NodeFacts, others: &Others) -> Vec<Finding> {
    const CHECK: &str = "other-flowtables";
    let own: BTreeSet<&IfName> = managed(facts).map(|link| &link.name).collect();
    let mut findings = Vec::new();
    for OtherFlowtable { table, name, devices } in &others.flowtables {
        let shared: Vec<_> = devices.iter().filter(|device| own.contains(device)).collect();
        if shared.is_empty() {
            continue;
        }
        let remedy = match table.name.as_str() {
            "firewalld" => {
                "empty NftablesFlowtable in /etc/firewalld/firewalld.conf and reload firewalld, or exclude those interfaces here with --exclude-interfaces"
            }
            _ => "switch it off in its program, or exclude those interfaces here with --exclude-interfaces",
        };
        findings.push(
            Finding::amber(
                CHECK,
                format!("has {} too: chance decides which of the two takes a flow, and flows that it takes follow its rules only", some(shared)),
                remedy,
            )
            .about(format!("{} {} {name}", table.family, table.name)),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::green(CHECK, "none on the managed interfaces"));
    }
    findings
}

/// Whom the names of tables and chains give away.
fn known(others: &Others) -> Vec<&'static str> {
    let table = |wanted: &[&str]| others.tables.iter().any(|table| wanted.iter().any(|w| table.name == *w));
    let chain = |prefix: &str| others.chains.iter().any(|chain| chain.starts_with(prefix));
    let known = [
        (
            "kindnet",
            table(&["kindnet-masquerade", "kindnet-ipmasq", "kindnet-network-policies", "kindnet-portmap"]),
        ),
        ("kube-network-policies", table(&["kube-network-policies"])),
        ("Calico", table(&["calico"]) || chain("cali-")),
        ("Cilium", chain("CILIUM_")),
        ("the CNI plugins", chain("CNI-")),
        ("firewalld", table(&["firewalld"])),
        ("Docker", table(&["docker-bridges"]) || chain("DOCKER")),
        ("netavark", chain("NETAVARK")),
        ("libvirt", chain("LIBVIRT_")),
        ("ufw", chain("ufw-")),
    ];
    known.into_iter().filter_map(|(name, found)| found.then_some(name)).collect()
}

fn kube_proxy(facts: &NodeFacts, others: &Others) -> Finding {
    const CHECK: &str = "kube-proxy";
    let mut modes = Vec::new();
    if others.tables.iter().any(|table| table.name == "kube-proxy") {
        modes.push("nftables");
    }
    // The services' addresses are on it in that mode. keepalived and others have services of IPVS too.
    let in_ipvs_mode = facts.links.iter().any(|link| link.name.to_string() == "kube-ipvs0");
    if in_ipvs_mode {
        modes.push("ipvs");
    }
    // In IPVS mode a few chains of that name are there as well.
    if others.chains.contains("KUBE-SERVICES") && !in_ipvs_mode {
        modes.push("iptables");
    }
    match modes.as_slice() {
        [] if facts.legacy_tables.iter().any(|table| table == "nat") => Finding::green(
            CHECK,
            "can't be told: iptables-legacy has a nat table, which doctor can't look into; its connections are offloaded like other ones",
        ),
        [] if facts.ipvs_services > 0 => Finding::green(
            CHECK,
            "no rules of kube-proxy; services of IPVS stay on the normal path, since requests to them don't pass the forward hook",
        ),
        [] => Finding::green(CHECK, "no rules of kube-proxy"),
        ["ipvs"] => Finding::green(
            CHECK,
            "ipvs mode: connections to Services stay on the normal path, since their requests don't pass the forward hook; other connections are offloaded",
        ),
        [mode] => Finding::green(
            CHECK,
            format!("{mode} mode: connections to Services are offloaded with their NAT"),
        ),
        several => Finding::amber(
            CHECK,
            format!("rules of several modes ({}): one of them is a leftover", several.join(", ")),
            "remove the leftover with `kube-proxy --cleanup`, then restart kube-proxy",
        ),
    }
}

fn hardware(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "hardware-offload";
    let has = |on: bool| facts.hardware.iter().filter(move |(_, is_on)| **is_on == on).map(|(name, _)| name);
    let capable = match facts.hardware.len() {
        0 => "no interface has hw-tc-offload".to_owned(),
        _ => format!("hw-tc-offload on: {}; off: {}", or_none(some(has(true))), or_none(some(has(false)))),
    };
    match (facts.policy.hw_offload, our_flowtable(facts).map(|flowtable| flowtable.hw_offload)) {
        (false, _) => Finding::green(CHECK, format!("not asked for (--hw-offload=off); {capable}")),
        (true, Some(true)) => Finding::green(CHECK, format!("in use; {capable}")),
        (true, _) => Finding::amber(
            CHECK,
            format!("asked for, but flows are forwarded in software; {capable}"),
            "leave interfaces without it out with --exclude-interfaces, switch it on with `ethtool -K DEV hw-tc-offload on`, or drop --hw-offload=auto",
        ),
    }
}

fn or_none(list: String) -> String {
    if list.is_empty() { "none".to_owned() } else { list }
}

fn interfaces(facts: &NodeFacts) -> Vec<Finding> {
    const CHECK: &str = "interface";
    let in_set = our_table(facts).and_then(ObservedTable::managed);
    let absent: BTreeSet<IfIndex> = absent(facts).into_iter().map(|link| link.index).collect();
    let line = |link: &Link| {
        let kind = match &link.kind {
            Some(kind) => kind,
            None if link.loopback => "no kind",
            None => "no kind, probably hardware",
        };
        let what = format!("{kind}, MTU {}", link.mtu);
        if let Some(reason) = facts.policy.selection.reject(link) {
            return Finding::green(CHECK, format!("not managed: {reason} ({what})"));
        }
        if is_port(facts, link) {
            return Finding::green(CHECK, format!("not managed: its bridge is, for its ports ({what})"));
        }
        if our_flowtable(facts).is_none() {
            return Finding::green(CHECK, format!("would be managed; no ruleset is installed ({what})"));
        }
        if absent.contains(&link.index) {
            return match taken_by(facts, &link.name) {
                Some(other) => Finding::amber(
                    CHECK,
                    format!(
                        "not in the flowtable: flowtable {other} in the same table has it, so the kernel refuses it ({what})"
                    ),
                    format!("delete that flowtable with `nft delete flowtable inet {TABLE} {other}`"),
                ),
                None => Finding::amber(
                    CHECK,
                    format!("not in the flowtable although it should be ({what})"),
                    match facts.agent {
                        Some(_) => {
                            "run doctor again; if it stays so, read the agent's log for the kernel's reason"
                        }
                        None => "start fastpath-agent, which follows the interfaces",
                    },
                ),
            };
        }
        if in_set.is_some_and(|set| !set.contains(&link.index)) {
            return Finding::amber(
                CHECK,
                format!("in the flowtable, but the rule doesn't know it ({what})"),
                "start fastpath-agent, or read its log if it runs",
            );
        }
        let note = match link.kind.as_deref() {
            Some("ipvlan") => "; flows over it may be accelerated in one direction only (docs/interfaces.md)",
            _ => "",
        };
        Finding::green(CHECK, format!("managed ({what}){note}"))
    };
    facts.links.iter().map(|link| line(link).about(link.name.as_str())).collect()
}

/// Another flowtable in our table that has the device.
fn taken_by<'f>(facts: &'f NodeFacts, device: &IfName) -> Option<&'f str> {
    let has = |flowtable: &&ObservedFlowtable| {
        flowtable.name != FLOWTABLE
            && flowtable.devices.as_ref().is_some_and(|devices| devices.contains(device))
    };
    Some(our_table(facts)?.flowtables.iter().find(has)?.name.as_str())
}

fn ebpf(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = at_ingress(facts);
    if facts.without_ebpf {
        findings.push(Finding::green("ebpf", "switched off (--ebpf=off): flows aren't counted"));
        return findings;
    }
    let ebpf = match &facts.ebpf {
        Ok(ebpf) => ebpf,
        Err(why) => {
            findings.push(Finding::amber("ebpf", format!("can't be read: {why}"), "run doctor as root"));
            return findings;
        }
    };
    let Some(maps) = &ebpf.maps else {
        let remedy = match facts.agent {
            Some(_) => "read the agent's log for why its programs couldn't be loaded",
            None => "start fastpath-agent",
        };
        findings.push(Finding::amber(
            "ebpf",
            format!("nothing is pinned in {}: flows aren't counted", facts.pin_path),
            remedy,
        ));
        return findings;
    };
    let expected = watched(&facts.links, &managed(facts).map(|link| link.index).collect());
    let missing: Vec<_> = facts
        .links
        .iter()
        .filter(|link| expected.contains(&link.index) && !ebpf.attached.contains(&link.index))
        .map(|link| &link.name)
        .collect();
    findings.push(if missing.is_empty() {
        Finding::green(
            "ebpf",
            format!(
                "{} of {} interfaces counted, {} of {} entries of the flow map in use",
                expected.len(),
                expected.len(),
                maps.flows,
                maps.max_flows
            ),
        )
    } else {
        Finding::amber(
            "ebpf",
            format!(
                "the agent has no program on {}: packets that come in there aren't counted",
                some(missing)
            ),
            match facts.agent {
                Some(_) => "run doctor again; if it stays so, read the agent's log for the kernel's reason",
                None => "start fastpath-agent",
            },
        )
    });
    findings.extend(loss(maps));
    findings
}

/// Programs at ingress run before the flowtable's hook, whatever their order among themselves.
fn at_ingress(facts: &NodeFacts) -> Vec<Finding> {
    const CHECK: &str = "ebpf-order";
    let programs = match &facts.at_ingress {
        Ok(programs) => programs,
        Err(why) => {
            let why = format!("other programs' eBPF programs can't be read: {why}");
            return vec![Finding::amber(CHECK, why, "run doctor as root")];
        }
    };
    let mut findings = Vec::new();
    for link in managed(facts) {
        for program in programs.get(&link.index).into_iter().flatten() {
            let order = match (facts.without_ebpf, program.before_ours) {
                (true, _) => "before the flowtable",
                (false, true) => "before the agent's counters and the flowtable",
                (false, false) => "after the agent's counters and before the flowtable",
            };
            let cilium = if program.name.starts_with("cil_") { " (Cilium's)" } else { "" };
            findings.push(
                Finding::amber(
                    CHECK,
                    format!(
                        "{} {}{cilium} runs {order}: packets that it redirects or drops never get there, so those flows aren't accelerated",
                        program.kind, program.name
                    ),
                    format!(
                        "look at what it does (`bpftool net show dev {name}`, `tc filter show dev {name} ingress`); if it forwards packets itself, leave {name} to it with --exclude-interfaces",
                        name = link.name
                    ),
                )
                .about(link.name.as_str()),
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::green(CHECK, "no other program at ingress of the managed interfaces"));
    }
    findings
}

fn loss(maps: &super::facts::MapFacts) -> Vec<Finding> {
    const CHECK: &str = "ebpf-loss";
    let mut findings = Vec::new();
    if maps.events_lost > 0 {
        findings.push(
            Finding::amber(
                CHECK,
                format!(
                    "{} crossings of the threshold were found late, since the ring was full",
                    maps.events_lost
                ),
                "check that the agent gets enough processor time; flows are offloaded anyway",
            )
            .about("events"),
        );
    }
    if maps.no_room > 0 {
        findings.push(
            Finding::amber(
                CHECK,
                format!("{} packets weren't counted, since the flow map had no room", maps.no_room),
                "give the flow map more entries with --max-flows",
            )
            .about("flow map"),
        );
    }
    // Ten thousandths: a stray broken packet is no finding.
    if maps.malformed * 10_000 > maps.counted {
        findings.push(
            Finding::amber(
            CHECK,
            format!("{} packets beside {} counted ones weren't what their headers say", maps.malformed, maps.counted),
            "capture some with `tcpdump -nne` at the interface with most errors (`ip -s link`): some host sends broken packets",
            )
            .about("malformed packets"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::green(CHECK, format!("none: {} packets counted", maps.counted)));
    }
    findings
}
