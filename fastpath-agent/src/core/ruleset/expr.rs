//! The instructions of nf_tables that our rules consist of, as data: what the kernel layer encodes and decodes.

use crate::core::model::Counter;

/// One instruction of a rule (struct nft_expr, include/net/netfilter/nf_tables.h). Two rules are the same
/// when their instructions are equal; counters' values are no part of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// `ct load KEY => reg` (no direction: packets are the sum of both, u64, host byte order).
    Ct {
        /// What is loaded.
        key: CtKey,
        /// Destination register.
        dreg: u32,
    },
    /// `byteorder reg = hton(reg, size, len)`.
    HostToNet {
        /// Source and destination register.
        reg: u32,
        /// Bytes a value.
        size: u32,
        /// Bytes in all.
        len: u32,
    },
    /// `cmp OP reg DATA`.
    Cmp {
        /// Source register.
        sreg: u32,
        /// Comparison.
        op: CmpOp,
        /// What is compared with, as the bytes in the register.
        data: Vec<u8>,
    },
    /// `bitwise reg = (reg & mask) ^ xor`.
    Bitwise {
        /// Source and destination register.
        reg: u32,
        /// Mask; its length is the operation's.
        mask: Vec<u8>,
        /// Exclusive or, as long as the mask.
        xor: Vec<u8>,
    },
    /// `meta load KEY => reg`.
    Meta {
        /// What is loaded.
        key: MetaKey,
        /// Destination register.
        dreg: u32,
    },
    /// `payload load LEN @ BASE + OFFSET => reg`.
    Payload {
        /// Where the offset begins.
        base: PayloadBase,
        /// Bytes from there.
        offset: u32,
        /// Bytes that are loaded.
        len: u32,
        /// Destination register.
        dreg: u32,
    },
    /// `fib saddr . mark . iif oif exists`: 1 if the route back to the packet's source leads out of the interface that it
    /// came in on, for a packet with this one's mark that comes in where this one goes out; else 0 (u32, host byte order).
    RouteBack {
        /// Destination register.
        dreg: u32,
    },
    /// `rt load KEY => reg`: of the route that the packet takes.
    Rt {
        /// What is loaded.
        key: RtKey,
        /// Destination register.
        dreg: u32,
    },
    /// `lookup reg set NAME`: goes on when the set has the register's value.
    Lookup {
        /// Name of the set, same table.
        set: String,
        /// Source register.
        sreg: u32,
        /// Goes on when the set doesn't have it (`!= @NAME`).
        inverted: bool,
    },
    /// `update @NAME { reg counter }`: the element gets the set's timeout again and its counter counts the packet; one
    /// that isn't there is made. Ends the rule where the set has no room for it.
    UpdateCounter {
        /// Name of the set, same table.
        set: String,
        /// Source register of the key.
        sreg: u32,
    },
    /// `update @NAME { reg }`: the element gets the set's timeout again; one that isn't there is made. Ends the rule where the
    /// set has no room for it.
    Update {
        /// Name of the set, same table.
        set: String,
        /// First source register of the key.
        sreg: u32,
    },
    /// `flow add @NAME`.
    FlowAdd {
        /// Name of the flowtable, same table.
        flowtable: String,
    },
    /// `counter`.
    Counter,
    /// `counter` that doesn't begin at zero. Is only written: read back it is a [`Expr::Counter`].
    CounterFrom(Counter),
    /// `return`: to the chain that jumped here, or to the end of a base chain's evaluation.
    Return,
    /// `goto NAME`.
    Goto {
        /// Name of the chain, same table.
        chain: String,
    },
    /// Any instruction that our rules don't use, by its kernel name.
    Other {
        /// As in `NFTA_EXPR_NAME`.
        name: String,
    },
}

/// Keys of `ct` (enum nft_ct_keys, include/uapi/linux/netfilter/nf_tables.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// `NFT_CT_STATE`: u32 bit mask, host byte order.
    State,
    /// `NFT_CT_PKTS`: u64, host byte order.
    Packets,
    /// `NFT_CT_ID`: u32, as in `CTA_ID`.
    Id,
    /// `NFT_CT_STATUS`: u32 bit mask, host byte order.
    Status,
    /// `NFT_CT_MARK`: u32, host byte order.
    Mark,
    /// `NFT_CT_DIRECTION`: u8, 0 for the original direction.
    Direction,
    /// A part of one of the connection's tuples, network byte order. Ends the rule where the connection has no such
    /// part (IPv4 addresses of an IPv6 connection).
    Tuple(Direction, TuplePart),
    /// Any other key.
    Other(u32),
}

/// Where the offset of a payload begins (enum nft_payload_bases).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadBase {
    /// Ethernet header.
    Link,
    /// IP header.
    Network,
    /// TCP or UDP header.
    Transport,
}

/// Direction of a tuple (enum ip_conntrack_dir).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// As the first packet had it.
    Original,
    /// As answers have it.
    Reply,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Original, Self::Reply];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Original => "original",
            Self::Reply => "reply",
        })
    }
}

/// A part of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TuplePart {
    /// `NFT_CT_SRC_IP`: 4 bytes.
    SourceV4,
    /// `NFT_CT_DST_IP`: 4 bytes.
    DestinationV4,
    /// `NFT_CT_SRC_IP6`: 16 bytes.
    SourceV6,
    /// `NFT_CT_DST_IP6`: 16 bytes.
    DestinationV6,
    /// `NFT_CT_PROTO_SRC`: 2 bytes.
    SourcePort,
    /// `NFT_CT_PROTO_DST`: 2 bytes.
    DestinationPort,
}

/// Keys of `meta` (enum nft_meta_keys).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// `NFT_META_IIF`: u32 interface index, host byte order.
    InIfIndex,
    /// `NFT_META_OIF`: u32 interface index, host byte order.
    OutIfIndex,
    /// `NFT_META_MARK`: u32, host byte order.
    Mark,
    /// `NFT_META_L4PROTO`: u8.
    L4Proto,
    /// `NFT_META_NFPROTO`: u8.
    NfProto,
    /// `NFT_META_IIFTYPE`: u16, host byte order (`ARPHRD_*`).
    InIfType,
    /// `NFT_META_SDIF`: u32, host byte order: index of the interface that the packet came in on if that belongs to a VRF
    /// (then [`InIfIndex`](Self::InIfIndex) is the VRF's), else 0.
    SlaveIfIndex,
    /// Any other key.
    Other(u32),
}

/// Keys of `rt` (enum nft_rt_keys).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtKey {
    /// `NFT_RT_XFRM`: u8, 1 if an IPsec policy transforms the packet when it leaves.
    Ipsec,
    /// Any other key.
    Other(u32),
}

/// Comparisons of `cmp` (enum nft_cmp_ops).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum CmpOp {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
}
