//! What a rule asks besides headers and connection: something that changes by itself, or every packet. Expression by
//! expression, as the kernel has them; which of it matters is `concern`'s to say.

use super::{
    copy::{Copier, Looked, is_anonymous},
    expr::Expr,
    moments::{ClockReader, Read, When, is_clock},
    varying::{Beside, Said, Varying},
};
use crate::core::ruleset::{conditions::Conditions, expr::Expr as Instruction};

/// Something that a rule asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// One word, as `--ignore-rule` takes it: "limit", "set", "time" …
    pub word: &'static str,
    /// The set, or what the kernel calls it; empty where the word says it all.
    pub detail: Box<str>,
}

/// Words of rules that want every packet.
pub const EVERY_PACKET: [&str; 13] = [
    "limit",
    "quota",
    "queue",
    "ct-packets",
    "ct-bytes",
    "ct-count",
    "random",
    "content",
    "copy",
    "meter",
    HEADER,
    TIMEOUT,
    CONNECTION,
];
/// The word of rules that ask for what differs between packets of one flow: lengths, TTL, DSCP, TCP flags.
const HEADER: &str = "header";
/// The word of rules that give connections a timeout of their own, which the kernel forgets when it lets go of an offloaded
/// flow. Their packets may well be new ones only.
pub const TIMEOUT: &str = "timeout";
/// The word of rules behind the flowtable that ask for the connection, which offloaded packets come without.
pub const CONNECTION: &str = "connection";
/// Words of rules that change by themselves.
pub const CHANGING: [&str; 8] = ["set", "ipset", "time", "recent", "ct-mark", "realm", "legacy", "unknown"];
/// Words of rules that decide over no packet's fate.
pub const PASSIVE: [&str; 2] = [EDIT, "log"];
const EDIT: &str = "edit";
/// The edit of an address or a port, as the kernel has it decide where packets go.
pub const ADDRESS: &str = "address";
/// Edits of connections, which outlive the packet.
const OF_CONNECTIONS: [&str; 2] = ["ct", "CONNMARK"];

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word)?;
        if !self.detail.is_empty() && *self.detail != *self.word {
            write!(f, " {}", self.detail)?;
        }
        Ok(())
    }
}

/// What one rule asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// It wants every packet.
    pub every_packet: Option<Cause>,
    /// It asks for what differs between packets of one flow.
    pub header: Option<Cause>,
    /// It changes by itself or unannounced.
    pub changing: Option<Cause>,
    /// When it does.
    pub when: When,
    /// It only marks, logs or edits packets.
    pub passive: Option<Cause>,
    /// Named sets that it asks.
    pub sets: Vec<Asked>,
    /// Its conditions in front of what wants every packet, those that can be copied.
    pub conditions: Conditions,
    /// One of these is a condition as well, as a set of the rule's own has it; none if there is none.
    pub one_of: Vec<Conditions>,
    /// The conditions are all that it asks, besides the connection's state.
    pub exact: bool,
    /// It sets a mark, of the packet or the connection.
    pub marks: bool,
    /// Sets that it puts packets' keys into.
    pub fills: Vec<Box<str>>,
    /// A rule that decides asks one of them.
    pub fills_asked: bool,
    /// Its comment.
    pub comment: Option<Box<str>>,
}

/// A named set that a rule asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its name.
    pub set: Box<str>,
    /// The number of conditions in front of it.
    before: usize,
    /// A set of the rule's own is in front of it.
    behind_own: bool,
}

/// What is known of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKind {
    /// It changes by netlink only, which is announced.
    Static,
    /// Elements run out, and only netlink puts them in.
    Expiring,
    /// Packets put elements in.
    Changing,
    /// Its elements have limits or quotas.
    Meters,
}

impl Traits {
    /// Whether the rule gives connections a timeout of their own.
    pub fn gives_timeout(&self) -> bool {
        self.every_packet.as_ref().is_some_and(|cause| cause.word == TIMEOUT)
    }

    /// Whether flows may have to be left out because of it, if something hangs on it.
    pub fn wants_packets(&self) -> bool {
        self.every_packet.is_some() || self.header.is_some()
    }

    /// The same, where chains that offloaded packets pass may ask for what rules edit.
    pub fn may_want_packets(&self) -> bool {
        self.wants_packets() || self.edit().is_some()
    }

    /// The same before its sets are known.
    fn may_want_packets_or_meters(&self) -> bool {
        self.may_want_packets() || !self.sets.is_empty()
    }

    /// The edit by which later hooks see another packet: its mark, its header.
    pub fn edit(&self) -> Option<&Cause> {
        let edits = |cause: &&Cause| cause.word == EDIT && !OF_CONNECTIONS.contains(&&*cause.detail);
        self.passive.as_ref().filter(edits)
    }

    /// Takes in what is known of the sets; false if nothing is left to say about the rule.
    pub fn resolve(&mut self, kind: impl Fn(&str) -> SetKind) -> bool {
        for Asked { set, before, behind_own } in std::mem::take(&mut self.sets) {
            match kind(&set) {
                SetKind::Static => {}
                SetKind::Expiring => {
                    self.when.sets.insert(set.clone());
                    self.changing.get_or_insert(Cause { word: "set", detail: set });
                }
                SetKind::Changing => {
                    self.when.anytime = true;
                    self.changing.get_or_insert(Cause { word: "set", detail: set });
                }
                SetKind::Meters if self.every_packet.is_none() => {
                    if !behind_own {
                        self.one_of.clear();
                    }
                    self.conditions.0.truncate(before);
                    self.every_packet = Some(Cause { word: "meter", detail: set });
                }
                SetKind::Meters => {}
            }
        }
        let Self { every_packet, header, changing, passive, .. } = self;
        [every_packet, header, changing, passive].into_iter().any(|cause| cause.is_some())
    }
}

/// All that is kept of what one rule asks.
pub(super) struct Sorted {
    /// Nothing for most rules.
    pub(super) traits: Option<Box<Traits>>,
    /// The rule's conditions, those that can be copied; none if the table's family is the only one, and there is no key.
    pub(super) conditions: Conditions,
    /// What fills the register by which it asks a verdict map, if that can be copied.
    pub(super) key: Option<Vec<Instruction>>,
    /// Only packets match it that take the normal path anyway.
    pub(super) beside: Beside,
    /// A set that the clock is looked up in.
    pub(super) clock: Option<(Box<str>, Read)>,
    /// A set of the rule's own that says which packets match, where that matters.
    pub(super) set: Option<Looked>,
}

/// Reads a rule's expressions in order.
pub(super) struct Sorter {
    traits: Traits,
    copier: Copier,
    varying: Varying,
    clock: ClockReader,
    beside: Beside,
    /// Expressions of the condition that the table's family is.
    of_family: usize,
}

impl Sorter {
    /// For a rule in a table of this family (`NFPROTO_*`).
    pub(super) fn of_family(family: u8) -> Self {
        let mut traits = Traits { exact: true, ..Traits::default() };
        let copier = Copier::of_family(family, &mut traits.conditions);
        let of_family = traits.conditions.0.len();
        let (varying, clock, beside) = Default::default();
        Self { traits, copier, varying, clock, beside, of_family }
    }

    /// `of_state`: it says something of the connection's state only.
    pub(super) fn read(&mut self, expr: &Expr<'_>, of_state: bool) {
        // What is asked behind an edit says nothing of which packets are edited.
        if self.traits.every_packet.is_none() && self.traits.edit().is_none() {
            let copied = self.copier.read(expr, &mut self.traits.conditions);
            self.traits.exact &= copied || of_state;
        }
        let Said { varies, beside } = self.varying.read(expr, self.copier.family());
        if let Some(what) = varies {
            keep(&mut self.traits.header, HEADER, &what);
        }
        // What a limit has counted before is as it is.
        if self.traits.every_packet.is_none() {
            self.beside.also(beside);
        }
        self.traits.marks |= sets_mark(expr);
        if let Expr::Fill { set, .. } = *expr {
            self.traits.fills.push(set.into());
        }
        self.clock.read(expr, is_anonymous);
        match *expr {
            Expr::Lookup { set, .. } | Expr::VerdictMap { map: set, .. } if !is_anonymous(set) => {
                let before = self.copier.copied(&self.traits.conditions);
                let behind_own = self.copier.has_looked();
                self.traits.sets.push(Asked { set: set.into(), before, behind_own });
            }
            Expr::Match { name: "comment", info } => self.traits.comment = comment(info),
            _ => match kind(expr) {
                Kind::Static => {}
                Kind::EveryPacket(word, detail) => keep(&mut self.traits.every_packet, word, detail),
                Kind::Changing(word, detail) => {
                    self.traits.when.anytime |= !is_clock(expr);
                    keep(&mut self.traits.changing, word, detail);
                }
                Kind::Passive(word, detail) => {
                    // An edit says more than a log.
                    self.traits.passive.take_if(|cause| word == EDIT && cause.word != EDIT);
                    keep(&mut self.traits.passive, word, detail);
                }
            },
        }
    }

    /// What was found. `reached`: established connections reach the rule; `leads`: it leads them to other chains.
    pub(super) fn sorted(mut self, reached: bool, leads: bool) -> Sorted {
        let (when, clock) = self.clock.finish();
        self.traits.when.anytime |= when.anytime;
        self.traits.when.moments = when.moments;
        let Traits { every_packet, header, changing, passive, sets, .. } = &self.traits;
        let any =
            [every_packet, header, changing, passive].into_iter().any(Option::is_some) || !sets.is_empty();
        let kept = any && (reached || self.traits.gives_timeout());
        let (key, set) = self.copier.into_looked_up();
        let set = set.filter(|_| leads || kept && self.traits.may_want_packets_or_meters());
        let has_some = self.traits.conditions.0.len() > self.of_family || key.is_some() || set.is_some();
        let conditions = match (leads && has_some, kept) {
            (false, _) => Conditions::default(),
            (true, false) => std::mem::take(&mut self.traits.conditions),
            (true, true) => self.traits.conditions.clone(),
        };
        Sorted {
            conditions,
            key,
            clock,
            set,
            beside: self.beside,
            traits: kept.then(|| Box::new(self.traits)),
        }
    }
}

fn sets_mark(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Edit { name: "meta mark" | "ct mark" } | Expr::Target { name: "MARK" | "CONNMARK" })
}

fn keep(cause: &mut Option<Cause>, word: &'static str, detail: &str) {
    cause.get_or_insert_with(|| Cause { word, detail: detail.into() });
}

/// struct xt_comment_info.
fn comment(info: &[u8]) -> Option<Box<str>> {
    let text = info.split(|byte| *byte == 0).next()?;
    str::from_utf8(text).ok().filter(|text| !text.is_empty()).map(Into::into)
}

enum Kind<'a> {
    Static,
    EveryPacket(&'static str, &'a str),
    Changing(&'static str, &'a str),
    Passive(&'static str, &'a str),
}

/// Matches of xtables that ask headers, connection, interfaces or routes only; which headers is `varying`'s to say.
/// Packets that are forwarded have no socket, so `cgroup` and `owner` always say the same of them.
const STATIC_MATCHES: [&str; 43] = [
    "addrtype",
    "ah",
    "cgroup",
    "conntrack",
    "comment",
    "dccp",
    "devgroup",
    "dscp",
    "dst",
    "ecn",
    "esp",
    "eui64",
    "frag",
    "hbh",
    "helper",
    "hl",
    "icmp",
    "icmp6",
    "ipcomp",
    "ipv6header",
    "iprange",
    "ipvs",
    "l2tp",
    "length",
    "mac",
    "mark",
    "mh",
    "multiport",
    "osf",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "rpfilter",
    "rt",
    "sctp",
    "srh",
    "state",
    "tcp",
    "tcpmss",
    "tos",
    "ttl",
    "udp",
];

fn kind<'a>(expr: &Expr<'a>) -> Kind<'a> {
    match *expr {
        Expr::Verdict(super::expr::Verdict::Queue) => Kind::EveryPacket("queue", ""),
        Expr::Ct { key, .. } => ct(key),
        Expr::Meta { key, .. } => meta(key),
        // NFT_RT_CLASSID
        Expr::Route { key: 0 } => Kind::Changing("realm", "rt classid"),
        Expr::Fill { meters: Some(what), .. } => Kind::EveryPacket(meter(what), what),
        // NFT_OBJECT_QUOTA, _LIMIT, _CONNLIMIT, _CT_TIMEOUT, or whatever a map says.
        Expr::Object { kind: Some(2) } => Kind::EveryPacket("quota", ""),
        Expr::Object { kind: Some(4) } => Kind::EveryPacket("limit", ""),
        Expr::Object { kind: Some(5) } => Kind::EveryPacket("ct-count", ""),
        Expr::Object { kind: Some(7) } => Kind::EveryPacket(TIMEOUT, ""),
        Expr::Object { kind: None } => Kind::EveryPacket("meter", "an object that a map names"),
        Expr::Edit { name: ADDRESS } => Kind::EveryPacket(HEADER, ADDRESS),
        Expr::Edit { name } => Kind::Passive(EDIT, name),
        Expr::Match { name, info } => xt_match(name, info),
        Expr::Target { name } => xt_target(name),
        Expr::Other { name } => statement(name),
        _ => Kind::Static,
    }
}

fn meter(name: &str) -> &'static str {
    match name {
        "limit" => "limit",
        "quota" => "quota",
        "connlimit" => "ct-count",
        _ => "meter",
    }
}

/// enum nft_ct_keys. Marks and labels can be set by ctnetlink (`conntrack -U`), under an offloaded flow.
fn ct(key: u32) -> Kind<'static> {
    match key {
        14 => Kind::EveryPacket("ct-packets", "ct packets"),
        15 => Kind::EveryPacket("ct-bytes", "ct bytes"),
        16 => Kind::EveryPacket("ct-bytes", "ct avgpkt"),
        5 => Kind::Changing("time", "ct expiration"),
        3 => Kind::Changing("ct-mark", "ct mark"),
        13 => Kind::Changing("ct-mark", "ct label"),
        0..=23 => Kind::Static,
        _ => Kind::Changing("unknown", "ct"),
    }
}

/// enum nft_meta_keys.
fn meta(key: u32) -> Kind<'static> {
    match key {
        24 => Kind::EveryPacket("random", "meta random"),
        30..=32 => Kind::Changing("time", ["meta time", "meta day", "meta hour"][key as usize - 30]),
        13 => Kind::Changing("realm", "meta rtclassid"),
        20 => Kind::Changing("unknown", "meta cpu"),
        // Packets that are forwarded have no socket, so nothing of its owner (skuid, skgid, cgroup) either.
        0..=35 => Kind::Static,
        _ => Kind::Changing("unknown", "meta"),
    }
}

fn xt_match<'a>(name: &'a str, info: &[u8]) -> Kind<'a> {
    let any =
        |bytes: std::ops::Range<usize>| info.get(bytes).is_some_and(|part| part.iter().any(|b| *b != 0));
    match name {
        "limit" | "hashlimit" | "dstlimit" => Kind::EveryPacket("limit", name),
        "quota" | "quota2" => Kind::EveryPacket("quota", name),
        "statistic" | "nth" | "random" => Kind::EveryPacket("random", name),
        "connbytes" => Kind::EveryPacket("ct-bytes", name),
        "connlimit" => Kind::EveryPacket("ct-count", name),
        "nfacct" => Kind::EveryPacket("quota", name),
        "rateest" => Kind::EveryPacket("limit", name),
        // struct xt_recent_mtinfo: hit_count. struct xt_set_info_match_v4: counters to compare with.
        "recent" if any(4..8) => Kind::EveryPacket("limit", name),
        "set" if any(8..40) => Kind::EveryPacket("quota", name),
        "string" | "u32" | "bpf" | "layer7" | "ndpi" | "tls" => Kind::EveryPacket("content", name),
        "set" => Kind::Changing("ipset", ""),
        "time" => Kind::Changing("time", ""),
        "recent" => Kind::Changing("recent", ""),
        "connmark" | "connlabel" => Kind::Changing("ct-mark", name),
        "realm" => Kind::Changing("realm", ""),
        name if STATIC_MATCHES.contains(&name) => Kind::Static,
        name => Kind::Changing("unknown", name),
    }
}

fn xt_target(name: &str) -> Kind<'_> {
    match name {
        "NFQUEUE" | "QUEUE" => Kind::EveryPacket("queue", name),
        "TEE" => Kind::EveryPacket("copy", name),
        "LOG" | "NFLOG" | "ULOG" => Kind::Passive("log", name),
        "CLASSIFY" | "CONNMARK" | "DSCP" | "ECN" | "HL" | "MARK" | "TOS" | "TTL" => Kind::Passive(EDIT, name),
        _ => Kind::Static,
    }
}

/// Expressions by the kernel's name.
fn statement(name: &str) -> Kind<'_> {
    match name {
        "limit" => Kind::EveryPacket("limit", ""),
        "quota" => Kind::EveryPacket("quota", ""),
        "queue" => Kind::EveryPacket("queue", ""),
        "connlimit" => Kind::EveryPacket("ct-count", ""),
        "numgen" => Kind::EveryPacket("random", name),
        "dup" => Kind::EveryPacket("copy", name),
        "log" => Kind::Passive("log", ""),
        "bitwise" | "byteorder" | "cmp" | "counter" | "ct" | "dynset" | "exthdr" | "fib" | "flow_offload"
        | "hash" | "immediate" | "inner" | "last" | "lookup" | "masq" | "meta" | "nat" | "notrack"
        | "osf" | "payload" | "range" | "redir" | "reject" | "rt" | "synproxy" | "tproxy" | "tunnel"
        | "xfrm" => Kind::Static,
        name => Kind::Changing("unknown", name),
    }
}

#[cfg(test)]
#[path = "traits_tests.rs"]
mod tests;
