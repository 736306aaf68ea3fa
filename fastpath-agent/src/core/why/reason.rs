//! What `why` says of each reason, and what can be done about it.

use super::facts::FlowFacts;
use crate::core::{link::select::Unmanaged, why_not::Reason};

impl Reason {
    /// Its text, for the end of "not accelerated: ".
    pub fn text(&self, facts: &FlowFacts) -> String {
        match self {
            Self::Protocol => "neither TCP nor UDP".to_owned(),
            Self::Local => "it begins or ends on this node, so it isn't forwarded".to_owned(),
            Self::Bridged { bridge } => format!("bridged, not routed: it goes from port to port of {bridge}"),
            Self::OtherFlowtable { flowtable } => format!("in another program's flowtable: {flowtable}"),
            Self::Untracked { rule } => {
                format!("conntrack ignores it: `notrack` in {rule}")
            }
            Self::Redirected { program, interface } => {
                format!("another program's {program} on {interface} takes its packets before conntrack")
            }
            Self::UnknownToConntrack if facts.moved() > 0 => {
                "its packets come in, but conntrack doesn't have it: its table is full, or it calls the packets invalid"
                    .to_owned()
            }
            Self::UnknownToConntrack => {
                "it was counted, but conntrack doesn't have it any more: it ended, timed out or was deleted".to_owned()
            }
            Self::NoRule => "no rule of the agent offloads flows on this node".to_owned(),
            Self::NoRoute { errno } => {
                format!("no route: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Interface { interface, problem } => match problem {
                Unmanaged::Layered { upper } => format!(
                    "packets come in on {interface}, which isn't in the flowtable; {upper} above it is"
                ),
                problem => format!("{interface} isn't in the flowtable: {problem}"),
            },
            Self::Excluded { exclusion } => format!("excluded: {exclusion}"),
            Self::Revoked => "revoked: `fastpath-agent revoke` keeps it on the normal path until it ends".to_owned(),
            Self::EveryPacket { rule, asks } => {
                format!("a rule of another program wants every packet: `{rule}` ({asks})")
            }
            Self::Ipsec { policy } => format!("an IPsec policy applies ({policy}), which the flowtable doesn't check"),
            Self::Helper { helper } => format!("the conntrack helper {helper} reads along"),
            Self::SequenceAdjusted => "conntrack corrects its sequence numbers".to_owned(),
            Self::Closing => "closing: a FIN or RST was seen".to_owned(),
            Self::OneWay => "packets in one direction only".to_owned(),
            Self::NotEstablished => "not established: the TCP handshake isn't complete".to_owned(),
            Self::NotCounted { pending: true } => {
                "older than the ruleset, and listed by the agent: its next packet offloads it".to_owned()
            }
            Self::NotCounted { pending: false } => {
                "older than the ruleset: conntrack doesn't count its packets, so the rule never takes it".to_owned()
            }
            Self::BelowThreshold { packets, threshold } => {
                format!("below the threshold: {packets} packets so far, offloaded after {threshold}")
            }
            Self::IpOptions => "its packets carry IPv4 options".to_owned(),
            Self::Fragments => "its packets come in fragments".to_owned(),
            Self::Mtu { size, mtu } => {
                format!("its packets ({size} bytes on average) are larger than the MTU of the way out ({mtu})")
            }
            Self::Ipvs => {
                "IPVS handles it: requests don't pass the forward hook, and without both directions there a flow isn't offloaded"
                    .to_owned()
            }
            Self::OneDirection { direction } => format!(
                "only packets of the {direction} direction were accepted here in the last 2 s; a flow is offloaded once both directions \
                 were"
            ),
            Self::Asymmetric { original, reply } => format!(
                "its directions take different interfaces: {original} and {reply}; the flowtable has one way for both"
            ),
            Self::RouteRule { rule } => format!(
                "the policy rule `{rule}` may decide the route of one direction by what the kernel ignores when it offloads"
            ),
            Self::NoWayBack { interface } => format!(
                "the route back to where its packets come from doesn't lead out of {interface}, where they come in"
            ),
            Self::DeadNeighbour { neighbour, interface } => {
                format!("offloaded, but {neighbour} on {interface} doesn't answer: packets to it are lost")
            }
            Self::Lost { direction } => {
                format!("offloaded, but packets of {direction} direction come in and none leaves this node with its addresses and ports")
            }
            Self::NotWatched => "one direction comes in on an interface that isn't managed".to_owned(),
            Self::Blocked => {
                "its packets don't reach the agent's rule: a filter drops them, or another program takes them".to_owned()
            }
            Self::Idle => match facts.idle_ms() {
                Some(idle) if idle >= facts.flow_timeout_ms => format!(
                    "idle: a flow leaves the flowtable after {} s without packets; the next packet offloads it again",
                    facts.flow_timeout_ms / 1000
                ),
                _ => "no packets just now, so their path is unknown".to_owned(),
            },
            Self::Unknown if facts.offloaded() => {
                "offloaded, but its packets are still on the normal path".to_owned()
            }
            Self::Unknown => "it passes the agent's rule, but the kernel doesn't take it into the flowtable".to_owned(),
        }
    }

    /// What to do about it; `None` if nothing need or can be done.
    pub fn remedy(&self, facts: &FlowFacts) -> Option<String> {
        Some(match self {
            Self::Bridged { .. } => {
                "none: the flowtable forwards routed packets only; a bridge has its own fast path".to_owned()
            }
            Self::OtherFlowtable { .. } => {
                "let one of the two accelerate: remove the other program's rules, or stop this agent".to_owned()
            }
            Self::Untracked { .. } => "remove the rule, or accept that the flow stays slow".to_owned(),
            Self::Redirected { program, interface } => {
                format!("see what {program} does (`bpftool net`, `tc filter show dev {interface} ingress`)")
            }
            Self::UnknownToConntrack if facts.moved() > 0 => {
                "compare nf_conntrack_count with nf_conntrack_max, and look at `conntrack -S`".to_owned()
            }
            Self::NoRule => {
                "start the agent, in mode accelerate and with a threshold above 0; `fastpath-agent status` says more".to_owned()
            }
            Self::NoRoute { .. } => "add a route".to_owned(),
            Self::Interface { interface, problem } => match problem {
                Unmanaged::Loopback => return None,
                Unmanaged::Down => format!("bring it up: ip link set {interface} up"),
                Unmanaged::NotYet => "see whether the agent runs, and its log".to_owned(),
                Unmanaged::Excluded
                | Unmanaged::FlowsExcluded
                | Unmanaged::NotIncluded
                | Unmanaged::LeftOut
                | Unmanaged::Layered { .. } => {
                    format!("let --interfaces and --exclude-interfaces take in {interface}")
                }
                Unmanaged::Port | Unmanaged::NoRuleset => return None,
                Unmanaged::Refused { .. } => "none: its driver or kind takes no flowtable".to_owned(),
            },
            Self::Excluded { exclusion } => {
                format!(
                    "take {exclusion} out of --exclude, or out of --exclude-file and send the agent a SIGHUP"
                )
            }
            Self::Revoked => {
                "none for this connection; the next one between the same ends can be offloaded".to_owned()
            }
            Self::EveryPacket { .. } => {
                "none while the rule matches it; --ignore-rule offloads flows despite the rule".to_owned()
            }
            Self::Helper { helper } => {
                format!("none while {helper} is needed; otherwise remove the rule that assigns it")
            }
            Self::OneWay => "none until the other end answers".to_owned(),
            Self::NotCounted { pending: true } => return None,
            Self::NotCounted { pending: false } => {
                "run the agent with --assist=on and --ebpf=tc or xdp, or start the flow again".to_owned()
            }
            Self::BelowThreshold { .. } => "none needed; --fastpath-threshold sets it".to_owned(),
            Self::IpOptions => "configure the sender without them".to_owned(),
            Self::Fragments => {
                "let the sender discover the path's MTU, or send smaller datagrams".to_owned()
            }
            Self::Mtu { .. } => {
                "let ICMP `fragmentation needed` and `packet too big` through to the sender, or clamp the MSS"
                    .to_owned()
            }
            Self::Ipvs => "none; with kube-proxy in iptables or nftables mode such connections can be offloaded".to_owned(),
            Self::OneDirection { .. } => {
                "none for a stream without answers, while a rule could deny an answer or marks choose routes; else find where the other direction is dropped (`nft monitor trace`) or which way \
                 it takes (`ip route get`)"
                    .to_owned()
            }
            Self::Asymmetric { .. } => {
                "give both directions the same two interfaces (routes, `ip rule`)"
                    .to_owned()
            }
            Self::RouteRule { .. } => {
                "none while the rule is there; a rule by mark, source or destination is no obstacle"
                    .to_owned()
            }
            Self::NoWayBack { interface } => format!("add a route back through {interface}"),
            Self::DeadNeighbour { interface, .. } => {
                format!("see `ip neigh show dev {interface}`; `fastpath-agent revalidate` revalidates the flow")
            }
            Self::Lost { .. } => "find what drops them on the way out, or gives them other addresses: `tc -s filter show dev … egress`, `tc -s qdisc`, `nft list ruleset netdev`, \
                 `ip neigh`; `fastpath-agent revalidate` revalidates the flow"
                .to_owned(),
            Self::Blocked => "look at the forward chains: nft list ruleset, nft monitor trace".to_owned(),
            Self::Unknown => "report it with `fastpath-agent why -o json` and `nft list ruleset`".to_owned(),
            Self::Protocol
            | Self::Local
            | Self::UnknownToConntrack
            | Self::Ipsec { .. }
            | Self::SequenceAdjusted
            | Self::Closing
            | Self::NotEstablished
            | Self::NotWatched
            | Self::Idle => return None,
        })
    }
}
