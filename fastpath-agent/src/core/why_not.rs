//! Why a flow isn't on the fast path: each reason with its name, its words and its row in the documents.
//!
//! A new reason is a variant here, a line where it is found (`flow` or `why::obstacles`), and what `why` says of it
//! (`why::reason`). JSON, metrics, `top` and the tables in docs/ follow.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
use strum::{
    EnumDiscriminants, EnumIter, EnumMessage, EnumProperty, EnumString, IntoEnumIterator, IntoStaticStr,
};

use super::link::select::Unmanaged;

/// Why packets of a flow take the normal path. Listed in the order in which they are checked: what would keep the flow
/// from ever being accelerated comes before what time may cure, and that before what concerns single packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, EnumDiscriminants)]
#[serde(rename_all = "kebab-case", tag = "reason")]
#[strum_discriminants(
    name(WhyNot),
    doc = "A reason by its name alone; what it means, for the documents.",
    derive(PartialOrd, Ord, EnumIter, EnumMessage, EnumProperty, EnumString, IntoStaticStr),
    strum(serialize_all = "kebab-case")
)]
pub enum Reason {
    /// Neither TCP nor UDP.
    #[strum_discriminants(strum(message = "neither TCP nor UDP", props(flows = "neither TCP nor UDP")))]
    Protocol,
    /// Begins or ends on this node.
    #[strum_discriminants(strum(
        message = "begins or ends on this node: not forwarded",
        props(flows = "local, not forwarded")
    ))]
    Local,
    /// Goes from port to port of a bridge.
    #[strum_discriminants(strum(
        message = "goes from port to port of a bridge",
        detailed_message = "`bridge`"
    ))]
    Bridged {
        /// The bridge.
        bridge: String,
    },
    /// In another program's flowtable.
    #[strum_discriminants(strum(
        message = "accelerated by another program's flowtable",
        detailed_message = "`flowtable`"
    ))]
    OtherFlowtable {
        /// Family, table and name.
        flowtable: String,
    },
    /// A rule says `notrack`.
    #[strum_discriminants(strum(
        message = "a rule says `notrack`, and conntrack has no such connection",
        detailed_message = "`rule`: table and chain of the first"
    ))]
    Untracked {
        /// Table and chain of the first such rule.
        rule: String,
    },
    /// Another program's eBPF program or filter takes its packets before conntrack gets them.
    #[strum_discriminants(strum(
        message = "another program or filter takes its packets before conntrack",
        detailed_message = "`program`, `interface`"
    ))]
    Redirected {
        /// Its name.
        program: String,
        /// Where it is attached.
        interface: String,
    },
    /// Its packets are counted and conntrack doesn't have it.
    #[strum_discriminants(strum(
        message = "counted, but not in conntrack: it has ended, the table is full, or its packets are invalid",
        props(flows = "not in conntrack")
    ))]
    UnknownToConntrack,
    /// No rule offloads flows.
    #[strum_discriminants(strum(
        message = "no rule of the agent offloads flows",
        props(
            flows = "no rule offloads flows",
            todo = "start the agent, with --mode=accelerate and a threshold above 0"
        )
    ))]
    NoRule,
    /// There is no route for one direction.
    #[strum_discriminants(strum(message = "one direction has no route", detailed_message = "`errno`"))]
    NoRoute {
        /// The kernel's errno.
        errno: i32,
    },
    /// It goes through an interface that isn't in the flowtable.
    #[strum_discriminants(strum(
        message = "uses an interface that isn't in the flowtable",
        detailed_message = "`interface`, `problem` (below)",
        props(
            flows = "{} isn't in the flowtable",
            todo = "put the interface into the flowtable (`status` says why it isn't)"
        )
    ))]
    Interface {
        /// Which.
        interface: String,
        /// Why it isn't.
        #[serde(flatten)]
        problem: Unmanaged,
    },
    /// One direction comes in on an interface that isn't managed. Told by `flows` only.
    #[strum_discriminants(strum(
        message = "one direction comes in on an interface that isn't managed (down, excluded, left out)",
        props(
            flows = "one direction comes in on an interface that isn't managed",
            todo = "put both interfaces into the flowtable (`status` lists them)"
        )
    ))]
    NotWatched,
    /// An exclusion names it.
    #[strum_discriminants(strum(
        message = "an exclusion names it (marks of packets: probable)",
        detailed_message = "`exclusion`",
        props(flows = "excluded by {}")
    ))]
    Excluded {
        /// Which.
        exclusion: String,
    },
    /// `fastpath-agent revoke` holds it out.
    #[strum_discriminants(strum(
        message = "`fastpath-agent revoke` keeps it on the normal path",
        props(flows = "revoked")
    ))]
    Revoked,
    /// A rule of another program wants to see every packet.
    #[strum_discriminants(strum(
        message = "a rule of another program [wants every packet](policy.md#rules-that-want-every-packet) (with a label: probable)",
        detailed_message = "`rule`: family, table, chain, handle, comment; `asks`: limit, queue …",
        props(flows = "{} wants every packet", todo = "--ignore-rule, if the rule needn't see every packet")
    ))]
    EveryPacket {
        /// Family, table, chain, handle and comment; where the rule isn't found any more, what it asked for.
        rule: String,
        /// By which of its expressions.
        asks: String,
    },
    /// An IPsec policy applies.
    #[strum_discriminants(strum(message = "an IPsec policy applies", detailed_message = "`policy`"))]
    Ipsec {
        /// In words.
        policy: String,
    },
    /// A conntrack helper reads along.
    #[strum_discriminants(strum(
        message = "a conntrack helper reads along",
        detailed_message = "`helper`",
        props(flows = "conntrack helper {}")
    ))]
    Helper {
        /// Its name.
        helper: String,
    },
    /// Conntrack corrects its sequence numbers.
    #[strum_discriminants(strum(message = "conntrack corrects its sequence numbers (SYNPROXY)"))]
    SequenceAdjusted,
    /// A FIN or RST was seen.
    #[strum_discriminants(strum(message = "a FIN or RST was seen"))]
    Closing,
    /// Packets in one direction only.
    #[strum_discriminants(strum(
        message = "packets in one direction only",
        props(flows = "one direction only", todo = "nothing: the other end has to answer")
    ))]
    OneWay,
    /// The TCP handshake isn't complete.
    #[strum_discriminants(strum(
        message = "the TCP handshake isn't complete",
        props(flows = "not established", todo = "nothing: its handshake has to be complete")
    ))]
    NotEstablished,
    /// Older than the rule: conntrack doesn't count its packets.
    #[strum_discriminants(strum(
        message = "older than the ruleset, so conntrack doesn't count its packets. Doesn't last: the agent helps it (`--assist`)",
        detailed_message = "`pending`: its next packet offloads it",
        props(
            flows = "older than the ruleset",
            todo = "nothing if a running agent helps it (--assist); else ask `why`"
        )
    ))]
    NotCounted {
        /// The agent has listed it: its next packet offloads it.
        pending: bool,
    },
    /// Hasn't had more packets than the threshold.
    #[strum_discriminants(strum(
        message = "not more packets than the threshold",
        detailed_message = "`packets`, `threshold`",
        props(todo = "nothing: it needs more packets than --fastpath-threshold")
    ))]
    BelowThreshold {
        /// So far.
        packets: u64,
        /// The threshold.
        threshold: u32,
    },
    /// Its packets carry IPv4 options.
    #[strum_discriminants(strum(message = "its packets carry IPv4 options"))]
    IpOptions,
    /// Its packets come in fragments.
    #[strum_discriminants(strum(message = "its packets come in fragments"))]
    Fragments,
    /// Its packets are larger than the MTU of the way out.
    #[strum_discriminants(strum(
        message = "its packets are larger than the MTU of the way out (from the forward path only: probable)",
        detailed_message = "`size`, `mtu`",
        props(todo = "raise the MTU of the way out")
    ))]
    Mtu {
        /// Average size in bytes.
        size: u64,
        /// Largest that fits.
        mtu: u32,
    },
    /// IPVS takes its requests: they don't pass the forward hook, so nothing is known of that direction there.
    #[strum_discriminants(strum(
        message = "IPVS takes its requests past the forward hook, so only one direction is seen there"
    ))]
    Ipvs,
    /// Only packets of one direction reached our rule.
    #[strum_discriminants(strum(
        message = "only one direction was accepted here in the last 2 s: the other one is dropped, goes another way, or has nothing to send",
        detailed_message = "`direction`: \"original\" or \"reply\"",
        props(
            flows = "one direction only since the threshold",
            todo = "find out where the other direction goes"
        )
    ))]
    OneDirection {
        /// "original" or "reply".
        direction: String,
    },
    /// Its two directions take different interfaces.
    #[strum_discriminants(strum(
        message = "the directions take different interfaces; the flowtable knows one way for both",
        detailed_message = "`original`, `reply`: input and output of each",
        props(
            flows = "the directions take different interfaces",
            todo = "route both directions through the same interfaces"
        )
    ))]
    Asymmetric {
        /// Way of the original direction, in words.
        original: String,
        /// Way of the reply direction.
        reply: String,
    },
    /// A policy rule decides one direction's route by what the kernel doesn't ask when it offloads.
    #[strum_discriminants(strum(
        message = "`ip rule` may route one direction by what the kernel ignores when it offloads (input interface, protocol, ports, DSCP, tunnel) (probable)",
        detailed_message = "`rule`",
        props(todo = "let the route not depend on what the rule asks")
    ))]
    RouteRule {
        /// The rule, as `ip rule` writes it.
        rule: String,
    },
    /// The route back to where its packets come from doesn't lead out where they come in.
    #[strum_discriminants(strum(
        message = "the route back doesn't lead out where its packets come in (probable)",
        detailed_message = "`interface`",
        props(todo = "route back out where packets come in")
    ))]
    NoWayBack {
        /// Where they come in.
        interface: String,
    },
    /// It is offloaded, and a next hop doesn't answer.
    #[strum_discriminants(strum(
        message = "offloaded, but the next hop doesn't answer: packets are lost",
        detailed_message = "`neighbour`, `interface`",
        props(todo = "see why the next hop doesn't answer")
    ))]
    DeadNeighbour {
        /// Its address.
        neighbour: String,
        /// Where it is looked for.
        interface: String,
    },
    /// It is offloaded, packets come in, and none leaves.
    #[strum_discriminants(strum(
        message = "offloaded, but no packet leaves with the addresses that conntrack has: dropped or rewritten on the way out (netdev chain, tc). Takes CAP_NET_RAW",
        detailed_message = "`direction`: \"the original\", \"the reply\", or \"either\"",
        props(todo = "see which chain or filter takes its packets on the way out")
    ))]
    Lost {
        /// Of which direction: "the original", "the reply", or "either" where that isn't counted.
        direction: &'static str,
    },
    /// Its packets don't reach our rule.
    #[strum_discriminants(strum(message = "a filter drops its packets before the agent's rule"))]
    Blocked,
    /// No packets just now.
    #[strum_discriminants(strum(
        message = "no packets just now; after 30 s a flow leaves the flowtable (`nf_flowtable_tcp_timeout`, `nf_flowtable_udp_timeout`)",
        props(todo = "nothing: its next packet brings it back")
    ))]
    Idle,
    /// None of these.
    #[strum_discriminants(strum(
        message = "none of these",
        props(flows = "cause unknown here: ask `why`", todo = "ask `why`")
    ))]
    Unknown,
}

impl WhyNot {
    /// Its name, as JSON and metrics have it.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// What to do about it, in a few words; `None` if nothing can be done, or it was chosen.
    pub fn todo(self) -> Option<&'static str> {
        self.get_str("todo")
    }

    /// All that `flows` tells ([`Cause`]).
    pub fn of_flows() -> impl Iterator<Item = Self> {
        Self::iter().filter(|why| why.words().is_some())
    }

    /// Whether `flows` says what it is about: an exclusion, a helper …
    pub fn is_about_something(self) -> bool {
        self.words().is_some_and(|words| words.contains("{}"))
    }

    /// What `flows` says; `{}` is replaced by what it is about.
    fn words(self) -> Option<&'static str> {
        self.get_str("flows")
    }
}

impl Reason {
    /// Its name, as JSON has it.
    pub fn name(&self) -> &'static str {
        WhyNot::from(self).name()
    }
}

/// Why a flow isn't offloaded, as far as a list of flows can tell. In JSON its name, or `{name: what it is about}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    /// The first reason that can be told.
    pub why: WhyNot,
    /// What it is about: an exclusion, an interface, a helper's name, another program's rule.
    pub about: Option<String>,
}

impl Cause {
    /// With what it is about.
    pub fn about(why: WhyNot, what: impl Into<String>) -> Self {
        Self { why, about: Some(what.into()) }
    }
}

impl From<WhyNot> for Cause {
    fn from(why: WhyNot) -> Self {
        Self { why, about: None }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.why.words().unwrap_or_else(|| self.why.name());
        f.write_str(&words.replace("{}", self.about.as_deref().unwrap_or("something")))
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(about) = &self.about else { return serializer.serialize_str(self.why.name()) };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.why.name(), about)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Name(String),
            About(std::collections::BTreeMap<String, String>),
        }
        let (name, about) = match Written::deserialize(deserializer)? {
            Written::Name(name) => (name, None),
            Written::About(map) => {
                let (name, about) = map.into_iter().next().ok_or_else(|| de::Error::custom("no cause"))?;
                (name, Some(about))
            }
        };
        Ok(Self { why: name.parse().map_err(de::Error::custom)?, about })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_read_as_it_is_written() {
        for why in WhyNot::of_flows() {
            let cause = if why.is_about_something() { Cause::about(why, "x") } else { why.into() };
            let json = serde_json::to_string(&cause).unwrap();
            assert_eq!(serde_json::from_str::<Cause>(&json).unwrap(), cause, "{json}");
            assert!(!cause.to_string().contains("{}"), "{cause}");
        }
        assert_eq!(serde_json::to_string(&Cause::from(WhyNot::OneWay)).unwrap(), "\"one-way\"");
        assert_eq!(
            serde_json::to_string(&Cause::about(WhyNot::Helper, "ftp")).unwrap(),
            r#"{"helper":"ftp"}"#
        );
        for other in ["\"nonsense\"", "{}", "7"] {
            assert!(serde_json::from_str::<Cause>(other).is_err(), "{other}");
        }
    }
}
