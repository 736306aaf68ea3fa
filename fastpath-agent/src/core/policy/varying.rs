//! Which of a rule's expressions ask for what differs between packets of one flow, and which only packets meet that never take the
//! flowtable. Reads one rule's expressions in order.
//! The flowtable leaves to the normal path (net/netfilter/nf_flow_table_ip.c): protocols but TCP, UDP and GRE, fragments, IPv4
//! options, IPv6 extension headers, a TTL or hop limit of at most 1, and before Linux 6.14 FIN and RST.

use super::expr::Expr;

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// enum nft_payload_bases.
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `NFT_META_LEN`, and `NFT_META_PRIORITY`, which forwarding takes from the TOS. `NFT_META_PKTTYPE` isn't one of them: forwarded
/// packets are all addressed to this host (`ip_forward`, `ip6_forward`).
const META: [(u32, &str); 2] = [(0, "meta length"), (2, "meta priority")];
/// `NFT_EXTHDR_OP_TCPOPT`. Of the others, IPv4 options and IPv6 extension headers keep packets off the flowtable; flows of SCTP and
/// DCCP never enter it.
const TCP_OPTION: u32 = 1;
/// `NFT_META_L4PROTO`.
const PROTOCOL: u32 = 16;
/// TCP, UDP and GRE, which the flowtable takes.
const TAKEN: [u8; 3] = [6, 17, 47];
/// Matches of xtables.
const MATCHES: [&str; 7] = ["dscp", "ecn", "l2tp", "length", "osf", "tcpmss", "tos"];

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;
const ECE: u8 = 64;
const CWR: u8 = 128;
/// Flags that TCP sends together, each with any of those beside it. Conntrack calls most other combinations invalid
/// (`tcp_valid_flags`), so packets with them belong to no connection.
const SENT: [(u8, u8); 6] = [
    (SYN, ECE | CWR),
    (SYN | ACK, ECE | CWR),
    (ACK, PSH | URG | ECE | CWR),
    (FIN | ACK, PSH | URG | ECE | CWR),
    (RST, 0),
    (RST | ACK, PSH | ECE | CWR),
];

/// What an expression says of packets that the flowtable would take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// It holds for some packets of a flow and not for others, by this.
    pub(super) varies: Option<Box<str>>,
    /// It holds for none of them.
    pub(super) beside: Beside,
}

/// When only packets match that take the normal path anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// In every hook.
    pub always: bool,
    /// Before they are routed, where the TTL is as it came in.
    pub prerouting: bool,
    /// On kernels whose flowtable leaves FIN and RST to the normal path.
    pub ends: bool,
}

impl Beside {
    pub(super) fn also(&mut self, other: Self) {
        self.always |= other.always;
        self.prerouting |= other.prerouting;
        self.ends |= other.ends;
    }
}

/// What was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// TTL or hop limit.
    Ttl,
    /// The protocol above IP, which is the same in all packets.
    Protocol,
    /// The byte with the TCP flags.
    TcpFlags,
    /// IPv4's fragment offset and flags.
    Fragment,
    /// So many bits at the beginning are the same in all packets.
    Leading(u32),
    /// Anything else that is the same in all packets.
    Same,
    /// Anything else.
    Unknown,
}

impl Field {
    fn varies(self) -> bool {
        !matches!(self, Self::Protocol | Self::Same)
    }

    fn altered(self) -> Self {
        if self.varies() { Self::Unknown } else { Self::Same }
    }
}

/// A register with something that varies.
#[derive(Debug)]
struct Loaded {
    register: u32,
    field: Field,
    name: &'static str,
    /// Mask and what is toggled behind it.
    masked: Option<(Vec<u8>, Vec<u8>)>,
}

/// Follows what is in the registers.
#[derive(Debug, Default)]
pub(super) struct Varying(Vec<Loaded>);

impl Varying {
    /// `family` of the packets that come here, where that is known (`NFPROTO_*`).
    pub(super) fn read(&mut self, expr: &Expr<'_>, family: Option<u8>) -> Said {
        match *expr {
            Expr::Meta { key: PROTOCOL, register } => {
                self.load(register, Some((Field::Protocol, "protocol")))
            }
            Expr::Meta { key, register } => {
                let name = META.iter().find(|(varies, _)| *varies == key).map(|(_, name)| *name);
                self.load(register, name.map(|name| (Field::Unknown, name)));
            }
            Expr::Ct { register, .. } => self.load(register, None),
            Expr::Payload { base, offset, length, register } => {
                self.load(register, payload(family, base, offset, length));
            }
            Expr::Option { kind: TCP_OPTION, register } => {
                self.load(register, Some((Field::Unknown, "tcp option")));
            }
            Expr::Option { register, .. } => self.load(register, None),
            Expr::Mask { source, destination, mask } if source == destination => {
                self.mask(source, &mask.to_ne_bytes(), &[0; 4]);
            }
            Expr::MaskBytes { register, mask, toggled } => self.mask(register, mask, toggled),
            Expr::Compare { register, equal, value } => {
                return self.compare(register, u32::from(!equal), &value.to_ne_bytes());
            }
            Expr::CompareBytes { register, op, data } => return self.compare(register, op, data),
            Expr::VerdictMap { .. } | Expr::Edit { name: "meta mark" | "ct mark" } => return self.anything(),
            Expr::Lookup { .. }
            | Expr::Range { .. }
            | Expr::Swap { .. }
            | Expr::Other { name: "byteorder" | "bitwise" | "hash" | "range" } => {
                let said = self.anything();
                self.alter();
                return said;
            }
            Expr::Other { name: name @ ("inner" | "osf") } => {
                self.alter();
                return varies(name);
            }
            Expr::Match { name, info } => return xt_match(name, info),
            Expr::Verdict(_)
            | Expr::Target { .. }
            | Expr::Edit { .. }
            | Expr::Fill { .. }
            | Expr::Object { .. }
            | Expr::Other { name: "counter" | "limit" | "log" | "quota" } => {}
            // May have filled a register.
            Expr::Mask { .. } | Expr::Route { .. } | Expr::Other { .. } => {
                self.alter();
            }
        }
        Said::default()
    }

    fn load(&mut self, register: u32, what: Option<(Field, &'static str)>) {
        self.0.retain(|loaded| loaded.register != register);
        self.0.extend(what.map(|(field, name)| Loaded { register, field, name, masked: None }));
    }

    fn mask(&mut self, register: u32, mask: &[u8], toggled: &[u8]) {
        for loaded in self.0.iter_mut().filter(|loaded| loaded.register == register) {
            match &loaded.masked {
                None => loaded.masked = Some((mask.to_vec(), toggled.to_vec())),
                Some(_) => loaded.field = loaded.field.altered(),
            }
        }
    }

    /// What is in the registers is no longer what was loaded, or may not be.
    fn alter(&mut self) {
        self.0.iter_mut().for_each(|loaded| loaded.field = loaded.field.altered());
    }

    /// Whatever is in whichever register is asked.
    fn anything(&self) -> Said {
        let loaded = self.0.iter().find(|loaded| loaded.field.varies());
        loaded.map_or_else(Said::default, |loaded| varies(loaded.name))
    }

    /// `op` is one of enum nft_cmp_ops.
    fn compare(&self, register: u32, op: u32, data: &[u8]) -> Said {
        let Some(loaded) = self.0.iter().find(|loaded| loaded.register == register) else {
            return Said::default();
        };
        let holds = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            if let Some((mask, toggled)) = &loaded.masked {
                for (byte, (mask, toggled)) in bytes.iter_mut().zip(mask.iter().zip(toggled)) {
                    *byte = *byte & mask ^ toggled;
                }
            }
            let order = bytes.as_slice().cmp(data);
            match op {
                0 => order.is_eq(),
                1 => order.is_ne(),
                2 => order.is_lt(),
                3 => order.is_le(),
                4 => order.is_gt(),
                _ => order.is_ge(),
            }
        };
        match loaded.field {
            Field::Ttl => of_ttl(loaded.name, |ttl| holds(&[ttl])),
            Field::Protocol if TAKEN.iter().any(|protocol| holds(&[*protocol])) => Said::default(),
            Field::Protocol => Said { varies: None, beside: Beside { always: true, ..Beside::default() } },
            Field::TcpFlags => of_flags(|flags| holds(&[flags])),
            // "Don't fragment" and the reserved bit.
            Field::Fragment => {
                let found = [0x00, 0x40, 0x80, 0xc0].map(|first| holds(&[first, 0]));
                match (found.contains(&true), found.contains(&false)) {
                    (false, _) => Said { beside: Beside { always: true, ..Beside::default() }, varies: None },
                    (true, false) => Said::default(),
                    (true, true) => varies(loaded.name),
                }
            }
            Field::Leading(same) => {
                let asked = loaded.masked.as_ref().map(|(mask, _)| bits(mask));
                if asked.is_some_and(|asked| asked <= same) { Said::default() } else { varies(loaded.name) }
            }
            Field::Same => Said::default(),
            Field::Unknown => varies(loaded.name),
        }
    }
}

fn varies(name: &str) -> Said {
    Said { varies: Some(name.into()), beside: Beside::default() }
}

/// Bits from the beginning to the last one that is set.
fn bits(mask: &[u8]) -> u32 {
    let last = mask.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| 8 * last as u32 + 8 - mask[last].trailing_zeros())
}

/// What of a header isn't the same in all packets of one direction, with nft's name for it; `None` if nothing is.
fn payload(family: Option<u8>, base: u32, offset: u32, length: u32) -> Option<(Field, &'static str)> {
    let within =
        |first: u32, end: u32| offset >= first && offset.checked_add(length).is_some_and(|last| last <= end);
    match (base, family) {
        (LINK, _) => None,
        (TRANSPORT, _) if within(0, 4) => None,
        (TRANSPORT, _) if (offset, length) == (13, 1) => Some((Field::TcpFlags, "tcp flags")),
        (TRANSPORT, _) => Some((Field::Unknown, "transport header")),
        // Version, length of the header, protocol, addresses.
        (NETWORK, Some(IPV4)) if within(0, 1) || within(12, 20) => None,
        (NETWORK, Some(IPV4)) => Some(match (offset, length) {
            (8, 1) => (Field::Ttl, "ip ttl"),
            (9, 1) => (Field::Protocol, "protocol"),
            (6, 2) => (Field::Fragment, "ip frag-off"),
            (1, 1) => (Field::Unknown, "ip dscp"),
            (2, 2) => (Field::Unknown, "ip length"),
            (4, 2) => (Field::Unknown, "ip id"),
            _ => (Field::Unknown, "ip header"),
        }),
        (NETWORK, Some(IPV6)) if within(8, 40) => None,
        (NETWORK, Some(IPV6)) => Some(match (offset, length) {
            (6, 1) => (Field::Protocol, "protocol"),
            (7, 1) => (Field::Ttl, "ip6 hoplimit"),
            // The version.
            (0, _) => (Field::Leading(4), "ip6 dscp"),
            (4, 2) => (Field::Unknown, "ip6 length"),
            _ => (Field::Unknown, "ip6 header"),
        }),
        // The same in both.
        (NETWORK, _) if within(9, 10) || within(12, 20) => None,
        (NETWORK, _) => Some((Field::Unknown, "network header")),
        _ => Some((Field::Unknown, "payload")),
    }
}

/// Forwarded packets have spent one of it by the forward hook. One that has none to spend isn't forwarded at all.
fn of_ttl(name: &'static str, holds: impl Fn(u8) -> bool) -> Said {
    let (least, others) = (holds(1), (2..=u8::MAX).map(&holds));
    let (all, none) = others.fold((true, true), |(all, none), one| (all && one, none && !one));
    match (least, all, none) {
        (true, true, _) => Said::default(),
        (false, _, true) => Said { varies: None, beside: Beside { always: true, ..Beside::default() } },
        (_, _, prerouting) => Said { beside: Beside { prerouting, ..Beside::default() }, ..varies(name) },
    }
}

fn of_flags(holds: impl Fn(u8) -> bool) -> Said {
    let sent = (0..=u8::MAX).filter(|flags| {
        let of = |(set, beside): &(u8, u8)| flags & !beside == *set;
        SENT.iter().any(of)
    });
    let (ends, others): (Vec<u8>, Vec<u8>) = sent.partition(|flags| flags & (FIN | RST) != 0);
    let [ends, others] = [ends, others].map(|list| {
        let met = list.iter().filter(|flags| holds(**flags)).count();
        (met > 0, met == list.len())
    });
    match (ends, others) {
        ((_, true), (_, true)) => Said::default(),
        ((false, _), (false, _)) => {
            Said { varies: None, beside: Beside { always: true, ..Beside::default() } }
        }
        (_, (some, _)) => Said { beside: Beside { ends: !some, ..Beside::default() }, ..varies("tcp flags") },
    }
}

fn xt_match(name: &str, info: &[u8]) -> Said {
    match (name, info) {
        // struct xt_tcp: four ports, then the option, mask and value of the flags, and what is inverted.
        ("tcp", [_, _, _, _, _, _, _, _, option, mask, value, inverted, ..]) => {
            const INVERTED_FLAGS: u8 = 4;
            if *option != 0 {
                return varies("tcp option");
            }
            of_flags(|flags| (flags & mask == *value) != (inverted & INVERTED_FLAGS != 0))
        }
        // struct ipt_ttl_info, struct ip6t_hl_info.
        ("ttl" | "hl", [mode, value, ..]) => {
            of_ttl(if name == "hl" { "hl" } else { "ttl" }, |ttl| match mode {
                0 => ttl == *value,
                1 => ttl != *value,
                2 => ttl < *value,
                _ => ttl > *value,
            })
        }
        ("tcp" | "ttl" | "hl", _) => varies(name),
        _ if MATCHES.contains(&name) => varies(name),
        _ => Said::default(),
    }
}

#[cfg(test)]
#[path = "varying_tests.rs"]
mod tests;
