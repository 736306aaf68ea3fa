//! One expression of another program's rule, as far as it matters what the rule does. Borrows from the kernel's message.

/// An expression. Registers are numbered as the kernel numbers them (enum nft_registers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expr<'a> {
    /// `immediate` into the verdict register.
    Verdict(Verdict<'a>),
    /// `ct` that reads: key (enum nft_ct_keys) and the register that it fills.
    Ct {
        /// `NFT_CT_*`.
        key: u32,
        /// The register.
        register: u32,
    },
    /// `bitwise` with a mask of at most 32 bits and nothing toggled.
    Mask {
        /// Register that is read.
        source: u32,
        /// Register that is written.
        destination: u32,
        /// In host byte order.
        mask: u32,
    },
    /// `cmp` with at most 32 bits.
    Compare {
        /// The register.
        register: u32,
        /// Packets go on if both are equal; if not, if they differ.
        equal: bool,
        /// In host byte order.
        value: u32,
    },
    /// `cmp` of another length or with another operator than [`Compare`](Self::Compare) has.
    CompareBytes {
        /// The register.
        register: u32,
        /// `NFT_CMP_*`.
        op: u32,
        /// As in the register.
        data: &'a [u8],
    },
    /// `range`.
    Range {
        /// The register.
        register: u32,
        /// The first value, as in the register.
        from: &'a [u8],
        /// The last one.
        to: &'a [u8],
    },
    /// `byteorder` of one value, which stays in its register: from the host's to the network's, or back.
    Swap {
        /// The register.
        register: u32,
    },
    /// `bitwise` of one register, of another length than [`Mask`](Self::Mask) has, or with bits toggled.
    MaskBytes {
        /// Register that is read and written.
        register: u32,
        /// The mask.
        mask: &'a [u8],
        /// What is toggled behind it.
        toggled: &'a [u8],
    },
    /// `meta` that reads: key (enum nft_meta_keys) and the register that it fills.
    Meta {
        /// `NFT_META_*`.
        key: u32,
        /// The register.
        register: u32,
    },
    /// `payload` that reads.
    Payload {
        /// Which header (enum nft_payload_bases).
        base: u32,
        /// Bytes from its beginning.
        offset: u32,
        /// Bytes that are read.
        length: u32,
        /// The register.
        register: u32,
    },
    /// `exthdr` that reads an option or an extension header.
    Option {
        /// Of which protocol (`NFT_EXTHDR_OP_*`).
        kind: u32,
        /// The register.
        register: u32,
    },
    /// `rt`: key (enum nft_rt_keys).
    Route {
        /// `NFT_RT_*`.
        key: u32,
    },
    /// `lookup` in a set, or in a map whose values aren't verdicts.
    Lookup {
        /// Its name.
        set: &'a str,
        /// Register with the key.
        register: u32,
        /// Packets go on if it isn't in the set.
        inverted: bool,
    },
    /// `dynset`: the packet adds an element to a set, updates or deletes it.
    Fill {
        /// Name of the set.
        set: &'a str,
        /// What the element has that lets some packets pass only: `limit`, `quota`, `connlimit` …
        meters: Option<&'a str>,
    },
    /// `objref`: a named object; its kind (`NFT_OBJECT_*`), unless a map says which.
    Object {
        /// `NFT_OBJECT_*`.
        kind: Option<u32>,
    },
    /// Writes into the packet, its metadata or its connection: "meta", "payload", "ct", "exthdr".
    Edit {
        /// The kernel's name of the expression.
        name: &'a str,
    },
    /// `lookup` in a map whose values are verdicts.
    VerdictMap {
        /// Name of the map.
        map: &'a str,
        /// Register with the key.
        register: u32,
    },
    /// An xtables match (iptables-nft).
    Match {
        /// "conntrack", "comment", "limit" …
        name: &'a str,
        /// Its data, of a layout that depends on name and revision.
        info: &'a [u8],
    },
    /// An xtables target.
    Target {
        /// "REJECT", "MARK" …
        name: &'a str,
    },
    /// Any other, by the kernel's name.
    Other {
        /// "counter", "payload" …
        name: &'a str,
    },
}

/// A packet's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Goes on behind this base chain.
    Accept,
    /// Is dropped, or stolen.
    Drop,
    /// Goes to a program.
    Queue,
    /// Goes on with the next rule.
    Continue,
    /// Goes on in the chain that jumped here.
    Return,
    /// Passes another chain and comes back.
    Jump(&'a str),
    /// Passes another chain and doesn't come back.
    Goto(&'a str),
    /// A number that we don't know.
    Unknown,
}
