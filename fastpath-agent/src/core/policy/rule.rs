//! What one rule does to packets of established connections. Conditions aren't evaluated, but for connection state.

use super::{
    expr::Expr,
    lookups::Lookups,
    traits::{ADDRESS, Sorted, Sorter, Traits},
    varying::Beside,
};
use crate::core::{
    policy::{
        copy::Looked,
        lookups::Elements,
        outcome::{ESTABLISHED, Established, Lead, Outcome, outcome},
    },
    ruleset::conditions::Conditions,
};

/// `NFT_CT_STATE` (enum nft_ct_keys).
const CT_STATE: u32 = 0;
/// `NFT_CT_MARK` and `NFT_META_MARK`.
const CT_MARK: u32 = 3;
const META_MARK: u32 = 3;
/// `XT_CONNTRACK_STATE` (include/uapi/linux/netfilter/xt_conntrack.h).
const XT_CONNTRACK_STATE: u16 = 1;

/// Targets of xtables that let every packet go on.
const HARMLESS_TARGETS: [&str; 20] = [
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DNAT",
    "DSCP",
    "HL",
    "LOG",
    "MARK",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "REDIRECT",
    "SECMARK",
    "SNAT",
    "TCPMSS",
    "TEE",
    "TOS",
    "TTL",
];

/// Statements that let every packet go on.
const STATEMENTS: [&str; 8] = ["counter", "dup", "flow_offload", "last", "log", "masq", "nat", "notrack"];

/// Targets and statements behind which no rule sees the packet.
const ENDS: [&str; 5] = ["NFQUEUE", "QUEUE", "REJECT", "queue", "reject"];

/// Expressions that load or compare something, or let packets go on up to some number.
const CONDITIONS: [&str; 25] = [
    "bitwise",
    "byteorder",
    "cmp",
    "connlimit",
    "ct",
    "dynset",
    "exthdr",
    "fib",
    "hash",
    "immediate",
    "inner",
    "limit",
    "lookup",
    "meta",
    "numgen",
    "objref",
    "osf",
    "payload",
    "quota",
    "range",
    "redir",
    "rt",
    "socket",
    "tunnel",
    "xfrm",
];

/// A rule, as much of it as is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The kernel's handle, unique within the table.
    pub handle: u64,
    /// The fate of packets that match.
    pub outcome: Outcome,
    /// Which packets of established connections match.
    pub established: Established,
    /// What it asks besides headers and connection; `None` for most rules.
    pub traits: Option<Box<Traits>>,
    /// Sets and maps without which it isn't understood, until they are read.
    pub lookups: Option<Box<Lookups>>,
    /// Only packets match it that take the normal path anyway.
    pub beside: Beside,
    /// Where it leads, if only packets go there that meet conditions which can be copied.
    pub leads: Box<[Lead]>,
    /// It asks for a mark, of the packet or the connection.
    pub asks_mark: bool,
    /// It asks for something that rules can edit: that, a priority, a header but for addresses and ports.
    pub asks_edits: bool,
    /// It asks for something of the connection.
    pub asks_connection: bool,
    /// Ahead of conntrack, it decides whether a packet belongs to its connection: `notrack`, zones, addresses and ports.
    pub untracks: bool,
}

impl Rule {
    /// A rule with nothing but a verdict.
    pub(super) fn asking_nothing(handle: u64, outcome: Outcome, established: Established) -> Self {
        Self {
            handle,
            outcome,
            established,
            traits: None,
            lookups: None,
            beside: Beside::default(),
            leads: Box::default(),
            asks_mark: false,
            asks_edits: false,
            asks_connection: false,
            untracks: false,
        }
    }

    /// Reads a rule's expressions in order. `family` is its table's (`NFPROTO_*`).
    pub fn new<'a>(family: u8, handle: u64, exprs: impl IntoIterator<Item = Expr<'a>>) -> Self {
        let mut reader =
            Reader { state: State::Unread, established: Established::All, lookups: Lookups::default() };
        let mut sorter = Sorter::of_family(family);
        let mut rule = Self::asking_nothing(handle, Outcome::Continue, Established::All);
        for expr in exprs {
            sorter.read(&expr, reader.is_of_state(&expr));
            rule.asks_mark |= asks_mark(&expr);
            rule.asks_edits |= asks_edits(&expr);
            rule.asks_connection |= asks_connection(&expr);
            rule.untracks |= untracks(&expr);
            if let Some(outcome) = reader.read(expr) {
                rule.outcome = outcome;
                if rule.outcome != Outcome::Continue {
                    break;
                }
            }
        }
        rule.established = reader.established;
        let reached = rule.established != Established::None;
        let by_map = reader.lookups.asks_a_map();
        let leads = reached && (by_map || matches!(rule.outcome, Outcome::Jump(_) | Outcome::Goto(_)));
        let Sorted { traits, conditions, key, beside, clock, set } = sorter.sorted(reached, leads);
        (rule.traits, rule.beside) = (traits, beside);
        reader.lookups.asks_by_clock(clock);
        match &rule.outcome {
            _ if by_map => reader.lookups.lead_by(conditions, key),
            Outcome::Jump(to) | Outcome::Goto(to) if !conditions.0.is_empty() || set.is_some() => {
                rule.leads = [Lead { to: to.clone(), conditions }].into();
            }
            _ => {}
        }
        reader.lookups.asks_own_set(set);
        rule.lookups = reader.lookups.boxed(&mut rule.established);
        rule
    }

    /// Takes in what the sets and maps have that it looks up; `None` for those that couldn't be read. Gives the name of the map
    /// on which the rule hangs from now on.
    pub fn look_up<'e>(&mut self, elements: impl Fn(&str) -> Option<&'e Elements>) -> Option<Box<str>> {
        let lookups = self.lookups.take()?;
        let mut established = lookups.established.unwrap_or(Established::Some);
        if let Some((set, inverted)) = &lookups.state {
            match elements(set) {
                Some(elements) if elements.of_established().is_some() == *inverted => {
                    established = Established::None;
                }
                Some(_) => {}
                None => established = Established::Some,
            }
        }
        if let Some((map, by_state)) = &lookups.verdict {
            match elements(map) {
                Some(elements) if *by_state => match elements.of_established() {
                    Some(outcome) => {
                        if let Outcome::Jump(to) | Outcome::Goto(to) = outcome {
                            let conditions = lookups.lead.0.clone();
                            self.leads = [Lead { to: to.clone(), conditions }].into();
                        }
                        self.outcome = outcome.clone();
                    }
                    None => established = Established::None,
                },
                Some(elements) => {
                    self.leads = elements.leads(&lookups.lead);
                    self.outcome = Outcome::Choose(elements.verdicts.as_slice().into());
                }
                None => established = Established::Some,
            }
        }
        if let (Some((set, clock)), Some(traits)) = (&lookups.clock, &mut self.traits) {
            let keys = elements(set).and_then(|elements| elements.all.as_ref());
            let keys = keys.map(|keys| keys.iter().filter(|(key, _)| !key.is_empty()).map(|(key, _)| &**key));
            traits.when.look_up(*clock, keys);
        }
        if let Some(Looked { set, load }) = &lookups.own
            && let Some(one_of) = elements(set).and_then(|elements| elements.one_of(load))
        {
            let each = |lead: &Lead| {
                let to = &lead.to;
                let and = |one| Lead { to: to.clone(), conditions: lead.conditions.and(one) };
                one_of.iter().map(and).collect::<Vec<_>>()
            };
            self.leads = self.leads.iter().flat_map(each).collect();
            if let Some(traits) = &mut self.traits {
                traits.one_of = one_of;
            }
        }
        self.established = established;
        if established == Established::None {
            self.traits.take_if(|traits| !traits.gives_timeout());
        }
        lookups.map().map(Into::into)
    }
}

impl Rule {
    /// The same, without what packets meet that it sends on to other chains.
    pub fn without_leads(self) -> Self {
        Self { leads: Box::default(), ..self }
    }

    /// The chains that packets of established connections go to by it.
    pub fn leads_to(&self) -> impl Iterator<Item = &str> {
        let reached = self.established != Established::None;
        self.outcome.each().iter().filter(move |_| reached).filter_map(|outcome| match outcome {
            Outcome::Jump(chain) | Outcome::Goto(chain) => Some(&**chain),
            _ => None,
        })
    }

    /// What packets meet that go to this chain by it: one of these. Empty if that isn't known.
    pub(super) fn leads_to_by(&self, chain: &str) -> Vec<&Conditions> {
        self.leads.iter().filter(|lead| &*lead.to == chain).map(|lead| &lead.conditions).collect()
    }
}

fn asks_mark(expr: &Expr<'_>) -> bool {
    matches!(
        expr,
        Expr::Meta { key: META_MARK, .. }
            | Expr::Ct { key: CT_MARK, .. }
            | Expr::Match { name: "mark" | "connmark", .. }
    )
}

fn asks_connection(expr: &Expr<'_>) -> bool {
    const MATCHES: [&str; 7] =
        ["connbytes", "connlabel", "connlimit", "connmark", "conntrack", "helper", "state"];
    match expr {
        Expr::Ct { .. } | Expr::Other { name: "connlimit" } => true,
        Expr::Match { name, .. } => MATCHES.contains(name),
        _ => false,
    }
}

/// Packets that leave their connection are lost where only conntrack knows their way, and the flowtable wouldn't let them go.
fn untracks(expr: &Expr<'_>) -> bool {
    matches!(
        expr,
        Expr::Other { name: "notrack" } | Expr::Target { name: "CT" } | Expr::Edit { name: "ct" | ADDRESS }
    )
}

fn asks_edits(expr: &Expr<'_>) -> bool {
    const META_PRIORITY: u32 = 2;
    const NETWORK: u32 = 1;
    match *expr {
        Expr::Meta { key: META_PRIORITY, .. } => true,
        // Protocol and addresses of IPv4 and IPv6.
        Expr::Payload { base: NETWORK, offset, length, .. } => {
            let same = offset >= 12 || offset == 8 && length > 1 || matches!((offset, length), (9 | 6, 1));
            !same
        }
        Expr::Match { name, .. } => {
            ![
                "addrtype",
                "comment",
                "conntrack",
                "limit",
                "mac",
                "multiport",
                "physdev",
                "state",
                "tcp",
                "udp",
            ]
            .contains(&name)
                || asks_mark(expr)
        }
        Expr::Option { .. } | Expr::Other { name: "exthdr" | "inner" } => true,
        Expr::Other { name } => !STATEMENTS.contains(&name) && !CONDITIONS.contains(&name),
        _ => asks_mark(expr),
    }
}

/// What is known of the connection's state in a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unread,
    /// The whole of it.
    Whole(u32),
    /// Bits of it.
    Masked(u32, u32),
}

impl State {
    fn is_in(self, register: u32) -> bool {
        matches!(self, Self::Whole(at) | Self::Masked(at, _) if at == register)
    }
}

struct Reader {
    state: State,
    established: Established,
    lookups: Lookups,
}

impl Reader {
    /// Whether the expression says something of the connection's state and of nothing else.
    fn is_of_state(&self, expr: &Expr<'_>) -> bool {
        match *expr {
            Expr::Ct { key, .. } => key == CT_STATE,
            Expr::Mask { source: register, .. } | Expr::Compare { register, .. } => {
                self.state.is_in(register)
            }
            Expr::Match { name, info } => xt_states(name, info).is_some(),
            _ => false,
        }
    }

    /// The fate of a packet that gets to this expression, if the expression decides it.
    fn read(&mut self, expr: Expr<'_>) -> Option<Outcome> {
        match expr {
            Expr::Ct { .. } | Expr::Meta { .. } | Expr::Payload { .. }
                if !matches!(expr, Expr::Ct { key: CT_STATE, .. }) =>
            {
                // A look-up in the state's register asks for more than the state from here on.
                self.state = State::Unread;
                self.condition();
            }
            Expr::Ct { register, .. } => {
                self.state = State::Whole(register);
                return None;
            }
            Expr::Mask { source, destination, mask } if self.state == State::Whole(source) => {
                self.state = State::Masked(destination, mask);
                return None;
            }
            Expr::Compare { register, equal, value } => self.compare(register, equal, value),
            Expr::Lookup { set, register, inverted }
                if self.state == State::Whole(register) && self.lookups.asks_for_state(set, inverted) => {}
            Expr::Match { name: "comment", .. } => {}
            Expr::Match { name, info } => match xt_states(name, info) {
                Some(states) if states & ESTABLISHED == 0 => self.established = Established::None,
                Some(_) => {}
                None => self.condition(),
            },
            Expr::Mask { .. }
            | Expr::MaskBytes { .. }
            | Expr::CompareBytes { .. }
            | Expr::Range { .. }
            | Expr::Swap { .. }
            | Expr::Meta { .. }
            | Expr::Payload { .. }
            | Expr::Lookup { .. }
            | Expr::Fill { .. }
            | Expr::Object { .. } => self.condition(),
            Expr::Option { .. } | Expr::Route { .. } => {
                self.state = State::Unread;
                self.condition();
            }
            Expr::Edit { .. } => {}
            Expr::Verdict(verdict) => return Some(outcome(verdict)),
            Expr::VerdictMap { map, register } => {
                let of_state = self.state == State::Whole(register);
                if !of_state {
                    self.condition();
                }
                self.lookups.asks_for_verdict(map, of_state);
                return Some(Outcome::Deny);
            }
            Expr::Target { name: "ACCEPT" } => return Some(Outcome::Accept),
            Expr::Target { name: "RETURN" } => return Some(Outcome::Return),
            Expr::Target { name } if HARMLESS_TARGETS.contains(&name) => {}
            Expr::Other { name } if STATEMENTS.contains(&name) => {}
            Expr::Other { name } if CONDITIONS.contains(&name) => {
                self.state = State::Unread;
                self.condition();
            }
            Expr::Target { name } | Expr::Other { name } => {
                // What isn't known may let packets go on to the next rule.
                if !ENDS.contains(&name) {
                    self.condition();
                }
                return Some(Outcome::Deny);
            }
        }
        None
    }

    /// What a packet of an established connection has in the register is known.
    fn compare(&mut self, register: u32, equal: bool, value: u32) {
        let state = match self.state {
            State::Whole(at) if at == register => ESTABLISHED,
            State::Masked(at, mask) if at == register => ESTABLISHED & mask,
            _ => return self.condition(),
        };
        if (state == value) != equal {
            self.established = Established::None;
        }
    }

    fn condition(&mut self) {
        if self.established == Established::All {
            self.established = Established::Some;
        }
    }
}

/// The states that a match of xtables asks for, if it asks for nothing else.
fn xt_states(name: &str, info: &[u8]) -> Option<u32> {
    // Of struct xt_conntrack_mtinfo3; those of mtinfo2 are at the same places.
    const MATCH_FLAGS: usize = 146;
    const INVERT_FLAGS: usize = 148;
    const STATE_MASK: usize = 150;
    /// Also met by packets of established connections that are translated (`XT_CONNTRACK_STATE_SNAT`, `_DNAT`).
    const TRANSLATED: u16 = 0b11 << 6;
    let u16_at = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    match name {
        // struct xt_state_info
        "state" => Some(u32::from_ne_bytes(*info.first_chunk()?)),
        "conntrack" if u16_at(MATCH_FLAGS)? == XT_CONNTRACK_STATE => {
            let states = u16_at(STATE_MASK).filter(|states| states & TRANSLATED == 0)?.into();
            Some(if u16_at(INVERT_FLAGS)? & XT_CONNTRACK_STATE == 0 { states } else { !states })
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
