//! Checks of the kernel, the agent's privileges, and the settings below `/proc/sys`.

use super::{
    Finding, Level,
    facts::{KernelFacts, NodeFacts, Unread},
};
use crate::core::{
    capability::{BPF, NET_ADMIN, PERFMON, has, missing},
    known_bugs::{KernelNames, KernelVersion, bugs_of},
    model::Link,
    ruleset::observed::Owner,
};

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = kernel(&facts.kernel);
    findings.extend(known_bugs(facts));
    findings.push(agent(facts));
    findings.push(capabilities(facts));
    findings.push(bpffs(facts));
    findings.extend(forwarding(facts));
    findings.push(rp_filter(facts));
    findings.extend(conntrack(facts));
    findings
}

fn kernel(kernel: &KernelFacts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for feature in &kernel.features {
        let Some(missing) = &feature.missing else { continue };
        // Where one is missing, others are for the same reason.
        if findings.iter().any(|finding| finding.level == Level::Red || finding.found == missing.reason) {
            continue;
        }
        let level = if missing.certain && feature.vital { Level::Red } else { Level::Amber };
        let remedy = match (missing.certain, feature.vital) {
            (false, _) => "run doctor with CAP_NET_ADMIN, so that it can try it out".to_owned(),
            (true, true) => {
                format!("load the module that is named, or give this node a kernel with {}", feature.name)
            }
            (true, false) => {
                "use a newer kernel: on this one conntrack doesn't count packets of offloaded flows"
                    .to_owned()
            }
        };
        let finding = Finding::amber("kernel", &missing.reason, remedy).about(feature.name);
        findings.push(Finding { level, ..finding });
    }
    if findings.is_empty() {
        let names: Vec<_> = kernel.features.iter().map(|feature| feature.name).collect();
        findings.push(Finding::green("kernel", format!("{} has {}", kernel.release, names.join(", "))));
    }
    findings
}

fn known_bugs(facts: &NodeFacts) -> Vec<Finding> {
    const CHECK: &str = "known-bugs";
    let KernelFacts { release, version, signature, .. } = &facts.kernel;
    let names = KernelNames { release, version, signature: signature.as_deref() };
    let Some(kernel) = KernelVersion::of(&names) else {
        return vec![Finding::green(CHECK, format!("{release} has no version to look up"))];
    };
    let findings: Vec<_> = bugs_of(kernel)
        .map(|bug| {
            let found = format!("{release} has a known bug ({}): {}", bug.name, bug.what);
            let use_another = format!("use a kernel with the fix (Linux {})", bug.fixed_in);
            if facts.ignores_known_bugs {
                Finding::red(
                    CHECK,
                    format!("{found}; the agent offloads anyway (--ignore-known-bugs)"),
                    format!("{use_another}, or remove --ignore-known-bugs, so that nothing is offloaded"),
                )
            } else {
                Finding::red(CHECK, format!("{found}; so the agent doesn't offload here"), use_another)
            }
        })
        .collect();
    match (findings.is_empty(), kernel.patch) {
        (false, _) => findings,
        (true, Some(_)) => vec![Finding::green(CHECK, format!("none for {release}"))],
        (true, None) => {
            vec![Finding::green(
                CHECK,
                format!("{release} doesn't tell which fixes it has; the canary tests it"),
            )]
        }
    }
}

fn agent(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "agent";
    let installed =
        facts.observed.as_ref().is_ok_and(|o| o.table.as_ref().is_some_and(|t| t.owner == Owner::Agent));
    let pinned = facts.ebpf.as_ref().is_ok_and(|ebpf| ebpf.maps.is_some());
    match &facts.agent {
        Some(agent) => match &agent.unread {
            None => Finding::green(CHECK, format!("runs as process {}", agent.pid)),
            Some(Unread::Exclusions(why)) => Finding::amber(
                CHECK,
                format!("runs as process {}, but its exclusions can't be read any more: {why}", agent.pid),
                "correct the file and send the agent a SIGHUP; until then the agent keeps the exclusions that it has",
            ),
            Some(Unread::Flags(why)) => Finding::amber(
                CHECK,
                format!("runs as process {}, but its flags can't be read: {why}", agent.pid),
                "run doctor as the same user and in the same process namespace, or give it the agent's flags",
            ),
        },
        None => {
            let found = match (installed, pinned) {
                (true, _) => {
                    "no agent runs in this network namespace; its ruleset still accelerates flows, but doesn't follow new interfaces"
                }
                (false, true) => "no agent runs in this network namespace; its pinned maps are there",
                (false, false) => "no agent runs in this network namespace",
            };
            Finding::amber(CHECK, found, "start fastpath-agent")
        }
    }
}

fn capabilities(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "capabilities";
    let who = if facts.agent.is_some() { "the agent" } else { "this process" };
    let set = match &facts.capabilities {
        Ok(set) => set,
        Err(why) => {
            return Finding::amber(
                CHECK,
                format!("those of {who} can't be read: {why}"),
                "run doctor as root in the agent's process namespace",
            );
        }
    };
    let missing = missing(*set, &[BPF, PERFMON]);
    if !has(*set, NET_ADMIN) {
        return Finding::red(
            CHECK,
            format!("{who} has no CAP_NET_ADMIN: the ruleset can't be read or written"),
            "run it as root, or add CAP_NET_ADMIN (and CAP_BPF and CAP_PERFMON for the counters)",
        );
    }
    if !missing.is_empty() && !facts.without_ebpf {
        return Finding::amber(
            CHECK,
            format!("{who} has no {}: flows are offloaded but not counted", missing.join(" and no ")),
            format!("run it as root, add {}, or switch counting off with --ebpf=off", missing.join(" and ")),
        );
    }
    Finding::green(CHECK, format!("{who} has what it needs"))
}

fn bpffs(facts: &NodeFacts) -> Finding {
    const CHECK: &str = "bpffs";
    let place = &facts.pin_path;
    match &facts.bpffs {
        Ok(true) => Finding::green(CHECK, format!("{place} is on a bpf file system")),
        Ok(false) if facts.without_ebpf => {
            Finding::green(CHECK, "not mounted, and not needed with --ebpf=off")
        }
        Ok(false) => Finding::amber(
            CHECK,
            format!("no bpf file system at {place}: flows are offloaded but not counted"),
            "mount one with `mount -t bpf bpf /sys/fs/bpf`, in a container mount the host's, or name another place with --pin-path",
        ),
        Err(why) => Finding::amber(
            CHECK,
            format!("can't look at {place}: {why}"),
            "run doctor as root in the agent's mount namespace",
        ),
    }
}

fn forwarding(facts: &NodeFacts) -> Vec<Finding> {
    let reachable = facts.reachable;
    vec![
        family_forwarding(facts, "ipv4", reachable.v4 || !reachable.v6, Level::Red),
        // Nodes with an IPv6 address that forward only IPv4 are common.
        family_forwarding(facts, "ipv6", reachable.v6, if reachable.v4 { Level::Amber } else { Level::Red }),
    ]
}

fn family_forwarding(facts: &NodeFacts, family: &str, used: bool, level_if_off: Level) -> Finding {
    const CHECK: &str = "forwarding";
    let get = |name: &str| facts.sysctls.get(&format!("net.{family}.conf.{name}.forwarding")).copied();
    let on = |name: &str| get(name).is_some_and(|value| value != 0);
    let sysctl = if family == "ipv4" { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
    let managed: Vec<&Link> = managed(facts).collect();
    // IPv6 forwards only with the setting for all; IPv4 asks the interface that the packet came in on.
    let some_forward = on("all") || (family == "ipv4" && managed.iter().any(|link| on(link.name.as_str())));
    let finding = if get("all").is_none() {
        Finding::green(CHECK, "not in this kernel")
    } else if !some_forward && !used {
        Finding::green(CHECK, "off, and this node has no address of that family")
    } else if !some_forward {
        let finding = Finding::amber(
            CHECK,
            "off: this node forwards no packet, so there is nothing to accelerate",
            format!("switch it on with `sysctl -w {sysctl}=1`, and for good in /etc/sysctl.d"),
        );
        Finding { level: level_if_off, ..finding }
    } else if family == "ipv6" {
        // That of a single interface doesn't matter here (ip6_forward, net/ipv6/ip6_output.c).
        Finding::green(CHECK, "on")
    } else {
        let off: Vec<_> =
            managed.iter().filter(|link| get(link.name.as_str()) == Some(0)).map(|link| &link.name).collect();
        if let Some(first) = off.first() {
            let remedy =
                format!("switch it on with `sysctl -w net.ipv4.conf.{first}.forwarding=1` and so on");
            Finding::amber(CHECK, format!("off for packets that come in on {}", super::some(&off)), remedy)
        } else if get("default") == Some(0) {
            Finding::amber(
                CHECK,
                "on, but off for new interfaces (conf.default)",
                "switch it on with `sysctl -w net.ipv4.conf.default.forwarding=1`",
            )
        } else {
            Finding::green(CHECK, "on")
        }
    };
    finding.about(family)
}

fn rp_filter(facts: &NodeFacts) -> Finding {
    const STRICT: i64 = 1;
    const CHECK: &str = "rp_filter";
    let get =
        |name: &str| facts.sysctls.get(&format!("net.ipv4.conf.{name}.rp_filter")).copied().unwrap_or(0);
    // The larger of the two holds (Documentation/networking/ip-sysctl.rst).
    let strict: Vec<_> = managed(facts)
        .filter(|link| get("all").max(get(link.name.as_str())) == STRICT)
        .map(|link| &link.name)
        .collect();
    if strict.is_empty() {
        return Finding::green(CHECK, "not strict on any managed interface");
    }
    // No amber: it is what many distributions set, and harms no flow that is offloaded.
    let found = format!(
        "strict on {}: packets that come in on another interface than answers would leave by are dropped before they can be offloaded",
        super::some(strict)
    );
    Finding::green(CHECK, found)
}

fn conntrack(facts: &NodeFacts) -> Vec<Finding> {
    const CHECK: &str = "conntrack";
    let get = |name: &str| facts.sysctls.get(&format!("net.netfilter.{name}")).copied();
    let mut findings = Vec::new();
    let installed =
        facts.observed.as_ref().is_ok_and(|o| o.table.as_ref().is_some_and(|t| t.owner == Owner::Agent));
    findings.push(match get("nf_conntrack_acct") {
        Some(0) if installed => Finding::red(
            CHECK,
            "accounting is off although the ruleset is there: new connections have no packet counter and never cross the threshold",
            "switch it on with `sysctl -w net.netfilter.nf_conntrack_acct=1`, and find out what switches it off",
        ),
        Some(0) => Finding::green(CHECK, "accounting is off; the ruleset switches it on"),
        Some(_) => Finding::green(CHECK, "accounting is on"),
        None => Finding::green(CHECK, "not loaded in this namespace yet; the ruleset loads it"),
    }
    .about("accounting"));
    if let (Some(count), Some(max @ 1..)) = (get("nf_conntrack_count"), get("nf_conntrack_max")) {
        let percent = count * 100 / max;
        let found = format!("{count} of {max} entries in use ({percent} %)");
        let remedy = "raise it with `sysctl -w net.netfilter.nf_conntrack_max=…` (about 320 bytes an entry), or find out who opens so many connections";
        findings.push(
            match percent {
                ..75 => Finding::green(CHECK, found),
                75..90 => Finding::amber(
                    CHECK,
                    format!("{found}: when it is full, new connections are dropped"),
                    remedy,
                ),
                _ => Finding::red(
                    CHECK,
                    format!("{found}: when it is full, new connections are dropped"),
                    remedy,
                ),
            }
            .about("table"),
        );
    }
    if let Some(liberal) = get("nf_conntrack_tcp_be_liberal") {
        let found = match liberal {
            0 => "0: the kernel makes an exception for each flow that it offloads, so nothing needs doing",
            _ => "windows aren't checked (nf_conntrack_tcp_be_liberal), which suits offloaded flows",
        };
        findings.push(Finding::green(CHECK, found).about("tcp_be_liberal"));
    }
    for (protocol, of_flow, of_connection) in [
        ("tcp", "nf_flowtable_tcp_timeout", "nf_conntrack_tcp_timeout_established"),
        ("udp", "nf_flowtable_udp_timeout", "nf_conntrack_udp_timeout_stream"),
    ] {
        let (Some(flow), Some(connection)) = (get(of_flow), get(of_connection)) else { continue };
        let found = format!(
            "an idle flow leaves the flowtable after {flow} s, its connection ends after {connection} s"
        );
        findings.push(
            // The kernel gives a flow that leaves what is left of its connection's time (flow_offload_fixup_ct).
            match flow < connection {
                true => Finding::green(CHECK, found),
                false => Finding::red(
                    CHECK,
                    format!("{found}: connections end when their flow leaves the flowtable"),
                    format!("make it shorter with `sysctl -w net.netfilter.{of_flow}=30`"),
                ),
            }
            .about(format!("{protocol}-timeout")),
        );
    }
    findings
}

/// Links that belong into the flowtable.
pub(super) fn managed(facts: &NodeFacts) -> impl Iterator<Item = &Link> {
    facts.links.iter().filter(|link| facts.policy.selection.reject(link).is_none())
}
