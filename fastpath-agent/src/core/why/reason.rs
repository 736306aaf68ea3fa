//! The reasons why packets take the forward path: name, words, and what can be done.

use serde::Serialize;

use super::facts::{Facts, NotManaged};

/// Why packets of a flow take the forward path. Listed in the order in which they are looked at: what would keep the flow
/// from ever being accelerated comes before what time may cure, and that before what concerns single packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Reason {
    /// Neither TCP nor UDP.
    Protocol,
    /// Begins or ends on this node.
    Local,
    /// Goes from port to port of a bridge.
    Bridged {
        /// The bridge.
        bridge: String,
    },
    /// In a flowtable, but not in ours.
    OtherFlowtable {
        /// Family, table and name.
        flowtable: String,
    },
    /// A rule says `notrack`.
    Untracked {
        /// Table and chain of the first such rule.
        rule: String,
    },
    /// A program or filter of somebody else takes its packets before conntrack gets them.
    Redirected {
        /// Its name.
        program: String,
        /// Where it is attached.
        interface: String,
    },
    /// Its packets are counted and conntrack doesn't have it.
    UnknownToConntrack,
    /// No rule offloads flows.
    NoRule,
    /// There is no route for one direction.
    NoRoute {
        /// The kernel's errno.
        errno: i32,
    },
    /// It goes through an interface that isn't in the flowtable.
    Interface {
        /// Which.
        interface: String,
        /// Why it isn't.
        #[serde(flatten)]
        problem: NotManaged,
    },
    /// An exclusion names it.
    Excluded {
        /// Which.
        exclusion: String,
    },
    /// `fastpath-agent revoke` holds it out.
    Revoked,
    /// A rule of another program wants to see every packet.
    EveryPacket {
        /// Family, table, chain, handle and comment; where the rule isn't found any more, what it asked for.
        rule: String,
        /// By which of its expressions.
        asks: String,
    },
    /// An IPsec policy applies.
    Ipsec {
        /// In words.
        policy: String,
    },
    /// A conntrack helper reads along.
    Helper {
        /// Its name.
        helper: String,
    },
    /// Conntrack corrects its sequence numbers.
    SequenceAdjusted,
    /// A FIN or RST was seen.
    Closing,
    /// Packets in one direction only.
    OneWay,
    /// The TCP handshake isn't complete.
    NotEstablished,
    /// Older than the rule: conntrack doesn't count its packets.
    NotCounted {
        /// The agent has listed it: its next packet offloads it.
        pending: bool,
    },
    /// Hasn't had more packets than the threshold.
    BelowThreshold {
        /// So far.
        packets: u64,
        /// The threshold.
        threshold: u32,
    },
    /// Its packets carry IPv4 options.
    IpOptions,
    /// Its packets come in fragments.
    Fragments,
    /// Its packets are larger than the MTU of the way out.
    Mtu {
        /// Average size in bytes.
        size: u64,
        /// Largest that fits.
        mtu: u32,
    },
    /// IPVS takes its requests: they don't pass the forward path, so nothing is known of that direction there.
    Ipvs,
    /// Only packets of one direction got as far as our rule.
    OneDirection {
        /// "original" or "reply".
        direction: String,
    },
    /// Its two directions take different interfaces.
    Asymmetric {
        /// Way of the original direction, in words.
        original: String,
        /// Way of the reply direction.
        reply: String,
    },
    /// A policy rule decides one direction's route by what the kernel doesn't ask when it offloads.
    RouteRule {
        /// The rule, as `ip rule` writes it.
        rule: String,
    },
    /// The route back to where its packets come from doesn't lead out where they come in.
    NoWayBack {
        /// Where they come in.
        interface: String,
    },
    /// It is offloaded, and a next hop doesn't answer.
    DeadNeighbour {
        /// Its address.
        neighbour: String,
        /// Where it is looked for.
        interface: String,
    },
    /// It is offloaded, packets come in, and none leaves.
    Lost {
        /// Of which direction: "the original", "the reply", or "either" where that isn't counted.
        direction: &'static str,
    },
    /// Its packets don't get as far as our rule.
    Blocked,
    /// No packets just now.
    Idle,
    /// None of these.
    Unknown,
}

impl Reason {
    /// Name, as JSON has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Local => "local",
            Self::Bridged { .. } => "bridged",
            Self::OtherFlowtable { .. } => "other-flowtable",
            Self::Untracked { .. } => "untracked",
            Self::Redirected { .. } => "redirected",
            Self::UnknownToConntrack => "unknown-to-conntrack",
            Self::NoRule => "no-rule",
            Self::NoRoute { .. } => "no-route",
            Self::Interface { .. } => "interface",
            Self::Excluded { .. } => "excluded",
            Self::Revoked => "revoked",
            Self::EveryPacket { .. } => "every-packet",
            Self::Ipsec { .. } => "ipsec",
            Self::Helper { .. } => "helper",
            Self::SequenceAdjusted => "sequence-adjusted",
            Self::Closing => "closing",
            Self::OneWay => "one-way",
            Self::NotEstablished => "not-established",
            Self::NotCounted { .. } => "not-counted",
            Self::BelowThreshold { .. } => "below-threshold",
            Self::IpOptions => "ip-options",
            Self::Fragments => "fragments",
            Self::Mtu { .. } => "mtu",
            Self::Ipvs => "ipvs",
            Self::OneDirection { .. } => "one-direction",
            Self::Asymmetric { .. } => "asymmetric",
            Self::RouteRule { .. } => "route-rule",
            Self::NoWayBack { .. } => "no-way-back",
            Self::DeadNeighbour { .. } => "dead-neighbour",
            Self::Lost { .. } => "lost",
            Self::Blocked => "blocked",
            Self::Idle => "idle",
            Self::Unknown => "unknown",
        }
    }

    /// What it says, to stand behind "not accelerated: ".
    pub fn text(&self, facts: &Facts) -> String {
        match self {
            Self::Protocol => "neither TCP nor UDP".to_owned(),
            Self::Local => "it begins or ends on this node, it isn't forwarded".to_owned(),
            Self::Bridged { bridge } => format!("bridged, not routed: it goes from port to port of {bridge}"),
            Self::OtherFlowtable { flowtable } => format!("in the flowtable {flowtable}, which isn't ours"),
            Self::Untracked { rule } => {
                format!("conntrack is told to leave it alone: `notrack` in {rule}")
            }
            Self::Redirected { program, interface } => {
                format!("{program} on {interface}, which isn't ours, takes its packets before conntrack")
            }
            Self::UnknownToConntrack if facts.moved() > 0 => {
                "its packets come in, and conntrack doesn't have it (its table is full, or it takes them for invalid)"
                    .to_owned()
            }
            Self::UnknownToConntrack => {
                "it was counted, and conntrack doesn't have it any more: it ended, timed out or was deleted".to_owned()
            }
            Self::NoRule => "no rule of ours offloads flows on this node".to_owned(),
            Self::NoRoute { errno } => {
                format!("no route: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Interface { interface, problem } => match problem {
                NotManaged::Layered { upper } => format!(
                    "packets come in on {interface}, which isn't in the flowtable; {upper} above it is"
                ),
                problem => format!("{interface} isn't in the flowtable: {problem}"),
            },
            Self::Excluded { exclusion } => format!("excluded: {exclusion}"),
            Self::Revoked => "revoked: `fastpath-agent revoke` holds it out for as long as it lives".to_owned(),
            Self::EveryPacket { rule, asks } => {
                format!("a rule of another program wants every packet: `{rule}` ({asks})")
            }
            Self::Ipsec { policy } => format!("an IPsec policy applies ({policy}), and the flowtable asks none"),
            Self::Helper { helper } => format!("the conntrack helper {helper} reads along"),
            Self::SequenceAdjusted => "conntrack corrects its sequence numbers".to_owned(),
            Self::Closing => "closing: a FIN or RST was seen".to_owned(),
            Self::OneWay => "packets in one direction only".to_owned(),
            Self::NotEstablished => "not established: the TCP handshake isn't complete".to_owned(),
            Self::NotCounted { pending: true } => {
                "older than the ruleset, and listed by the agent: its next packet offloads it".to_owned()
            }
            Self::NotCounted { pending: false } => {
                "older than the ruleset: conntrack doesn't count its packets, and the agent hasn't listed it".to_owned()
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
                "IPVS handles it: requests don't pass the forward path, and without both directions there a flow isn't offloaded"
                    .to_owned()
            }
            Self::OneDirection { direction } => format!(
                "only packets of the {direction} direction were accepted here in the last 2 s; a flow is offloaded once both directions \
                 were"
            ),
            Self::Asymmetric { original, reply } => format!(
                "its directions take different interfaces: {original} and {reply}; the flowtable knows one way for both"
            ),
            Self::RouteRule { rule } => format!(
                "the policy rule `{rule}` may decide the route of one direction by what the kernel doesn't ask when it offloads"
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
            Self::Blocked => {
                "its packets don't get as far as our rule: a filter drops them, or something else takes them".to_owned()
            }
            Self::Idle => match facts.idle_ms() {
                Some(idle) if idle >= facts.flow_timeout_ms => format!(
                    "idle: the flowtable lets go of a flow after {} s without packets, the next one takes it back",
                    facts.flow_timeout_ms / 1000
                ),
                _ => "no packets just now, so nothing was to be seen of them".to_owned(),
            },
            Self::Unknown if facts.offloaded() => {
                "conntrack calls it offloaded, yet its packets take the forward path".to_owned()
            }
            Self::Unknown => "it passes our rule, and the kernel doesn't take it into the flowtable".to_owned(),
        }
    }

    /// What can be done about it; `None` where nothing need be or can be.
    pub fn remedy(&self, facts: &Facts) -> Option<String> {
        Some(match self {
            Self::Bridged { .. } => {
                "none here: the flowtable forwards what is routed, a bridge has its own fast path".to_owned()
            }
            Self::OtherFlowtable { .. } => {
                "let one of the two own acceleration: remove the other's rules, or stop this agent".to_owned()
            }
            Self::Untracked { .. } => "remove the rule, or leave the flow to it".to_owned(),
            Self::Redirected { program, interface } => {
                format!("see what {program} does (`bpftool net`, `tc filter show dev {interface} ingress`)")
            }
            Self::UnknownToConntrack if facts.moved() > 0 => {
                "compare nf_conntrack_count with nf_conntrack_max, and look at `conntrack -S`".to_owned()
            }
            Self::NoRule => {
                "start the agent, with a threshold above 0; `fastpath-agent status` says more".to_owned()
            }
            Self::NoRoute { .. } => "add a route".to_owned(),
            Self::Interface { interface, problem } => match problem {
                NotManaged::Loopback => return None,
                NotManaged::Down => format!("bring it up: ip link set {interface} up"),
                NotManaged::NotYet => "see whether the agent runs, and its log".to_owned(),
                NotManaged::Excluded
                | NotManaged::FlowsExcluded
                | NotManaged::NotIncluded
                | NotManaged::LeftOut
                | NotManaged::Layered { .. } => {
                    format!("let --interfaces and --exclude-interfaces take in {interface}")
                }
                NotManaged::Refused { .. } => "none here: its driver or kind takes no flowtable".to_owned(),
            },
            Self::Excluded { exclusion } => {
                format!(
                    "take {exclusion} out of --exclude, or out of --exclude-file and send the agent a SIGHUP"
                )
            }
            Self::Revoked => {
                "none for this connection; the next one between the same ends isn't held out".to_owned()
            }
            Self::EveryPacket { .. } => {
                "none while the rule matches it; --ignore-rule has the rule passed by".to_owned()
            }
            Self::Helper { helper } => {
                format!("none while {helper} is needed; otherwise remove the rule that assigns it")
            }
            Self::OneWay => "none until the other end answers".to_owned(),
            Self::NotCounted { pending: true } => return None,
            Self::NotCounted { pending: false } => {
                "run the agent with --assist=on and --ebpf=tc or xdp, or have the flow begin anew".to_owned()
            }
            Self::BelowThreshold { .. } => "none needed; --fastpath-threshold sets it".to_owned(),
            Self::IpOptions => "have the sender leave them out".to_owned(),
            Self::Fragments => {
                "have the sender discover the path's MTU, or send smaller datagrams".to_owned()
            }
            Self::Mtu { .. } => {
                "let ICMP `fragmentation needed` and `packet too big` through to the sender, or clamp the MSS"
                    .to_owned()
            }
            Self::Ipvs => "none here; kube-proxy in iptables or nftables mode leaves connections that can be offloaded".to_owned(),
            Self::OneDirection { .. } => {
                "none for a stream that nobody answers, while some rule could deny an answer or marks choose routes; else find where the other direction is dropped (`nft monitor trace`) or which way \
                 it takes (`ip route get`)"
                    .to_owned()
            }
            Self::Asymmetric { .. } => {
                "none while that is so; give both directions the same two interfaces (routes, `ip rule`) to have it accelerated"
                    .to_owned()
            }
            Self::RouteRule { .. } => {
                "none while the rule is there; a rule by mark, source or destination doesn't stand in the way"
                    .to_owned()
            }
            Self::NoWayBack { interface } => format!("add a route back through {interface}"),
            Self::DeadNeighbour { interface, .. } => {
                format!("see `ip neigh show dev {interface}`; `fastpath-agent revalidate` has the flow judged anew")
            }
            Self::Lost { .. } => "see what drops them on the way out, or gives them other addresses: `tc -s filter show dev … egress`, `tc -s qdisc`, `nft list ruleset netdev`, \
                 `ip neigh`; `fastpath-agent revalidate` has the flow judged anew"
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
            | Self::Idle => return None,
        })
    }
}

impl std::fmt::Display for NotManaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Down => f.write_str("down"),
            Self::Excluded => f.write_str("excluded by --exclude-interfaces"),
            Self::FlowsExcluded => f.write_str("excluded by --exclude"),
            Self::NotIncluded => f.write_str("not among --interfaces"),
            Self::LeftOut => {
                f.write_str("left out by --interfaces or --exclude-interfaces, or new while no agent runs")
            }
            Self::NotYet => f.write_str("the agent hasn't taken it in yet"),
            Self::Refused { error } => write!(f, "the kernel refuses it: {error}"),
            Self::Layered { upper } => write!(f, "{upper} above it is"),
        }
    }
}
