//! Copies a rule's conditions, those that say the same of every packet of one direction of a connection: interfaces,
//! protocol, addresses, ports, the connection's mark and labels. What varies from packet to packet is left out, as is what can't be
//! written into another table (sets).

use super::expr::Expr as Other;
use crate::core::ruleset::{
    conditions::{Conditions, cmp_op, ct_key, meta_key, payload_base},
    expr::{CmpOp, Expr, PayloadBase},
};

/// Keys of enum nft_meta_keys: IIF, OIF, IIFNAME, OIFNAME, IIFTYPE, OIFTYPE, NFPROTO, L4PROTO.
const META: [u32; 8] = [4, 5, 6, 7, 8, 9, NFPROTO, 16];
const NFPROTO: u32 = 15;
/// `NFT_CT_MARK` and `NFT_CT_LABELS`.
const CT: [u32; 2] = [3, 13];
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Copies condition by condition: what a register is loaded with, then what is done with it.
#[derive(Default)]
pub(super) struct Copier {
    /// The register, and the expressions that filled it until one compares it.
    loaded: Option<(u32, Vec<Expr>)>,
    /// Whether what was loaded last is the family.
    is_family: bool,
    /// The family, where a condition has said it.
    family: Option<u8>,
    /// What fills the register by which a verdict map is asked.
    key: Option<Vec<Expr>>,
    /// The first anonymous set that packets are looked up in by something that can be copied.
    set: Option<Looked>,
}

/// A condition that is in a set of the rule's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Looked {
    /// The set's name.
    pub set: Box<str>,
    /// What fills the register with its key.
    pub load: Vec<Expr>,
}

impl Copier {
    /// For a rule in a table of this family (`NFPROTO_*`), which is a condition that no expression has to say.
    pub(super) fn of_family(family: u8, conditions: &mut Conditions) -> Self {
        *conditions = Conditions::of_family(family);
        Self { family: (!conditions.0.is_empty()).then_some(family), ..Self::default() }
    }

    /// How many expressions are copied so far.
    pub(super) fn copied(&self, conditions: &Conditions) -> usize {
        conditions.0.len()
    }

    /// Whether the rule has asked a set of its own so far.
    pub(super) fn has_looked(&self) -> bool {
        self.set.is_some()
    }

    /// False if that is a condition that isn't copied, or the beginning of one.
    pub(super) fn read(&mut self, expr: &Other<'_>, conditions: &mut Conditions) -> bool {
        match *expr {
            Other::Meta { key, register } => {
                let load = Expr::Meta { key: meta_key(key), dreg: register };
                self.load(register, load, META.contains(&key));
                self.is_family = key == NFPROTO;
            }
            Other::Ct { key, register } => {
                self.load(register, Expr::Ct { key: ct_key(key), dreg: register }, CT.contains(&key));
            }
            Other::Payload { base, offset, length, register } => {
                let Some(base) = payload_base(base) else {
                    self.loaded = None;
                    return false;
                };
                let same = match base {
                    PayloadBase::Link => false,
                    PayloadBase::Transport => offset.checked_add(length).is_some_and(|last| last <= 4),
                    PayloadBase::Network => self.is_same(offset, length),
                };
                self.load(register, Expr::Payload { base, offset, len: length, dreg: register }, same);
            }
            Other::Mask { source, destination, mask } if source == destination => {
                self.also(source, |reg| Expr::Bitwise {
                    reg,
                    mask: mask.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                });
            }
            Other::MaskBytes { register, mask, toggled } if toggled.iter().all(|byte| *byte == 0) => {
                self.also(register, |reg| Expr::Bitwise { reg, mask: mask.to_vec(), xor: toggled.to_vec() });
            }
            Other::Compare { register, equal, value } => {
                let op = if equal { CmpOp::Eq } else { CmpOp::Neq };
                return self.compare(register, op, &value.to_ne_bytes(), conditions);
            }
            Other::CompareBytes { register, op, data } => match cmp_op(op) {
                Some(op) => return self.compare(register, op, data, conditions),
                None => self.loaded = None,
            },
            Other::Match { name: name @ ("tcp" | "udp"), info } => {
                self.loaded = None;
                xt_ports(name, info, conditions);
                return false;
            }
            Other::Lookup { set, register, inverted: false } if is_anonymous(set) && self.set.is_none() => {
                let load = self.loaded.take().filter(|(at, _)| *at == register).map(|(_, exprs)| exprs);
                let load = load.filter(|exprs| !exprs.is_empty());
                self.set = load.map(|load| Looked { set: set.into(), load });
                return false;
            }
            Other::VerdictMap { register, .. } => {
                self.key = self.loaded.take().filter(|(at, _)| *at == register).map(|(_, exprs)| exprs);
                // What was compared before belongs to the conditions.
                self.key.take_if(|exprs| exprs.is_empty());
            }
            _ => self.loaded = None,
        }
        let asks_nothing = matches!(
            expr,
            Other::Verdict(_)
                | Other::Match { name: "comment", .. }
                | Other::Other { name: "counter" | "log" }
        );
        asks_nothing || self.loaded.is_some()
    }

    /// The packets' family, where a condition has said it.
    pub(super) fn family(&self) -> Option<u8> {
        self.family
    }

    /// What fills the register by which the rule asks a verdict map, and a set of its own that it asks, if these can be copied.
    pub(super) fn into_looked_up(self) -> (Option<Vec<Expr>>, Option<Looked>) {
        (self.key, self.set)
    }

    fn load(&mut self, register: u32, load: Expr, copied: bool) {
        self.loaded = copied.then(|| (register, vec![load]));
        self.is_family = false;
    }

    fn also(&mut self, register: u32, expr: impl FnOnce(u32) -> Expr) {
        match &mut self.loaded {
            Some((at, exprs))
                if *at == register && matches!(exprs[..], [Expr::Payload { .. } | Expr::Ct { .. }]) =>
            {
                exprs.push(expr(register));
            }
            _ => self.loaded = None,
        }
    }

    fn compare(&mut self, register: u32, op: CmpOp, data: &[u8], conditions: &mut Conditions) -> bool {
        let Some((at, exprs)) = &mut self.loaded else { return false };
        if *at != register {
            return false;
        }
        conditions.0.append(exprs);
        conditions.0.push(Expr::Cmp { sreg: register, op, data: data.to_vec() });
        if let (true, CmpOp::Eq, [family]) = (self.is_family, op, data) {
            self.family = Some(*family);
        }
        true
    }

    /// Whether these bytes of the network header are the same in every packet of one direction, and as the forward hook
    /// sees them: addresses, and the protocol of IPv4.
    fn is_same(&self, offset: u32, length: u32) -> bool {
        let within = |first: u32, end: u32| {
            offset >= first && offset.checked_add(length).is_some_and(|last| last <= end)
        };
        match self.family {
            Some(IPV4) => within(9, 10) || within(12, 20),
            Some(IPV6) => within(8, 40),
            _ => false,
        }
    }
}

/// Sets that belong to one rule never change (nft's names for them, nf_tables_api.c has the pattern).
pub(super) fn is_anonymous(set: &str) -> bool {
    set.starts_with("__set") || set.starts_with("__map")
}

/// Ports of struct xt_tcp and struct xt_udp, in host byte order: first and last source, first and last destination.
fn xt_ports(name: &str, info: &[u8], conditions: &mut Conditions) {
    let inverted_at = if name == "tcp" { 11 } else { 8 };
    let (Some(ports), Some(inverted)) = (info.get(..8), info.get(inverted_at)) else { return };
    let port = |at: usize| u16::from_ne_bytes([ports[2 * at], ports[2 * at + 1]]);
    for (offset, first, last, bit) in [(0, port(0), port(1), 1), (2, port(2), port(3), 2)] {
        if inverted & bit != 0 || (first, last) == (0, u16::MAX) {
            continue;
        }
        conditions.add_ports(offset, first..=last);
    }
}
