//! Chains and rules of nftables and xtables that operations are made of.

use proptest::{prelude::*, sample::select};

use super::{Ip, choices};

choices! {
    /// Family of a table of nftables.
    TableFamily { Inet = "inet", Ip = "ip", Ip6 = "ip6", Bridge = "bridge", Netdev = "netdev", }
}
choices! {
    /// Place of a base chain.
    Hook {
        Prerouting = "prerouting",
        Input = "input",
        Forward = "forward",
        Output = "output",
        Postrouting = "postrouting",
        IngressClient = "ingress device c0",
        IngressServer = "ingress device s0",
        EgressClient = "egress device c0",
        EgressServer = "egress device s0",
    }
}
choices! {
    /// Which packets a rule is for.
    Match {
        Requests = "meta l4proto { tcp, udp } th dport 7001-7012",
        Answers = "meta l4proto { tcp, udp } th sport 7001-7012",
        TcpRequests = "tcp dport 7001-7012",
        UdpAnswers = "udp sport 7001-7012",
        SomeRequests = "meta l4proto { tcp, udp } th dport 7001-7006",
        FromClient = "ip saddr { 10.1.0.2, 10.101.0.2 }",
        FromServer6 = "ip6 saddr { fd00:2::2, fd00:102::2 }",
        InClient = "iifname c0",
        OutServer = "oifname s0",
        Established = "ct state established,related",
        Invalid = "ct state invalid",
        Marked = "meta mark 7",
        ConnectionMarked = "ct mark 7",
        Others = "udp dport 9",
        Everything = "",
    }
}
choices! {
    /// What a rule does.
    Verdict {
        Drop = "drop",
        Accept = "accept",
        Reject = "reject",
        Reset = "meta l4proto tcp reject with tcp reset",
        Mark = "meta mark set 7",
        ConnectionMark = "ct mark set 7",
        Count = "counter",
        // Of TCP a retransmission may carry all that was lost, so what arrives is a matter of luck.
        FewOnly = "meta l4proto udp limit rate over 10/second drop",
        NotTooMany = "limit rate over 1000000/second drop",
        NothingMore = "quota over 1 bytes drop",
        Notrack = "notrack",
    }
}
choices! {
    /// What an xtables rule does.
    Target {
        Drop = "DROP",
        Accept = "ACCEPT",
        Reject = "REJECT",
        Mark = "MARK --set-mark 7",
        ConnectionMark = "CONNMARK --set-mark 7",
        Return = "RETURN",
    }
}
choices! {
    /// Table and chain of xtables.
    XtablesChain {
        Forward = "-t filter FORWARD",
        Input = "-t filter INPUT",
        RawPrerouting = "-t raw PREROUTING",
        ManglePrerouting = "-t mangle PREROUTING",
        MangleForward = "-t mangle FORWARD",
        ManglePostrouting = "-t mangle POSTROUTING",
    }
}

/// A base chain of nftables, of type filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Family of its table, which is named `edge`.
    pub family: TableFamily,
    /// Its place.
    pub hook: Hook,
    /// When it is asked.
    pub priority: i32,
}

/// Earlier than conntrack, in between, with and behind the agent's, and equal ones.
const PRIORITIES: &[i32] = &[-300, -150, -1, 0, 0, 7, 100, 299, 300, 301, 500];

/// A table that asks sets, unless it is there.
pub(super) const SETS: &str = "nft list table inet sets >/dev/null 2>&1 || nft 'table inet sets {
    set bad { type ipv4_addr; }
    set bad6 { type ipv6_addr; }
    map verdicts { type inet_service : verdict; }
    chain forward {
        type filter hook forward priority 10;
        ip saddr @bad drop
        ip6 saddr @bad6 drop
        meta l4proto { tcp, udp } th dport vmap @verdicts
    }
}'";

pub(super) fn chain() -> impl Strategy<Value = Chain> {
    let hooked = |families: &'static [TableFamily], hooks: &'static [Hook]| (select(families), select(hooks));
    use {Hook::*, TableFamily::*};
    let hook = prop_oneof![
        6 => hooked(&[Inet, Ip, Ip6], &[Forward, Forward, Forward, Prerouting, Postrouting]),
        1 => hooked(&[Inet, Ip, Ip6], &[Input, Output]),
        2 => hooked(&[Netdev], &[IngressClient, IngressServer, EgressClient, EgressServer]),
        1 => hooked(&[Inet], &[IngressClient, IngressServer]),
        1 => hooked(&[Bridge], &[Prerouting, Input, Forward, Output, Postrouting]),
    ];
    (hook, select(PRIORITIES)).prop_map(|((family, hook), priority)| Chain { family, hook, priority })
}

impl Chain {
    fn name(self) -> String {
        format!("{}{}", self.hook.text().replace(" device ", "-"), self.priority)
    }

    /// Commands that make table and chain, if they aren't there.
    fn made(self, policy: &str) -> String {
        let (family, hook, priority) = (self.family.text(), self.hook.text(), self.priority);
        format!(
            "add table {family} edge; add chain {family} edge {} {{ type filter hook {hook} priority {priority}; {policy} }}",
            self.name()
        )
    }

    pub(super) fn with_rule(self, matching: Match, verdict: Verdict) -> String {
        let (family, name) = (self.family.text(), self.name());
        let rule = format!("{} {}", matching.text(), verdict.text());
        format!("nft '{}; add rule {family} edge {name} {}'", self.made(""), rule.trim())
    }

    pub(super) fn with_policy(self, policy: &str) -> String {
        format!("nft '{}'", self.made(&format!("policy {policy};")))
    }

    pub(super) fn flushed(self) -> String {
        format!("nft flush chain {} edge {}", self.family.text(), self.name())
    }

    pub(super) fn table_deleted(self) -> String {
        format!("nft delete table {} edge", self.family.text())
    }
}

/// A chain of xtables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xtables {
    /// IPv4 or IPv6.
    pub ip: Ip,
    /// Which one.
    pub chain: XtablesChain,
}

pub(super) fn xtables() -> impl Strategy<Value = Xtables> {
    (select(Ip::ALL), select(XtablesChain::ALL)).prop_map(|(ip, chain)| Xtables { ip, chain })
}

impl Xtables {
    /// The beginning of a command of that kind.
    pub(super) fn command(self, kind: &str) -> String {
        let (table, chain) = self.chain.text().rsplit_once(' ').expect("a table and a chain");
        format!("ip{}tables-nft {table} {kind} {chain}", self.ip.text())
    }
}

impl Target {
    /// Match and target. What the chain doesn't take is replaced by what it does.
    pub(super) fn words(self, chain: Xtables, matching: Match) -> String {
        let matching = match matching {
            Match::Requests | Match::TcpRequests => "-p tcp --dport 7001:7012",
            Match::Answers | Match::UdpAnswers => "-p udp --sport 7001:7012",
            Match::SomeRequests => "-p udp --dport 7001:7006",
            Match::FromClient | Match::InClient => "-i c0",
            Match::OutServer if chain.chain.text().contains("PREROUTING") => "-i s0",
            Match::OutServer if chain.chain == XtablesChain::Input => "-i s0",
            Match::OutServer => "-o s0",
            Match::FromServer6 if chain.ip == Ip::V6 => "-s fd00:2::2",
            Match::FromServer6 => "-s 10.2.0.2",
            Match::Established => "-m conntrack --ctstate ESTABLISHED,RELATED",
            Match::Invalid => "-m conntrack --ctstate INVALID",
            Match::Marked => "-m mark --mark 7",
            Match::ConnectionMarked => "-m connmark --mark 7",
            Match::Others => "-p udp --dport 9",
            Match::Everything => "",
        };
        let matching = match chain.chain {
            XtablesChain::ManglePostrouting => matching.replace("-i c0", "-o c0"),
            _ => matching.to_owned(),
        };
        let target = match (self, chain.chain) {
            (Self::Reject, XtablesChain::Forward | XtablesChain::Input) => "REJECT",
            (Self::Reject, XtablesChain::RawPrerouting) => "CT --notrack",
            (Self::Reject, _) => "DROP",
            (Self::Mark, XtablesChain::Forward | XtablesChain::Input) => "DROP",
            (target, _) => target.text(),
        };
        format!("{matching} -j {target}")
    }
}
