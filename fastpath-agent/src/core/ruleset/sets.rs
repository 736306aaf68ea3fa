//! The sets of our table: what each is for and how it is made. No elements, and nothing of how the kernel is told.

use std::{
    borrow::Cow,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::expr::Direction;

/// Flags of a set (enum nft_set_flags, include/uapi/linux/netfilter/nf_tables.h).
pub mod flags {
    /// `NFT_SET_TIMEOUT`: elements may have a timeout.
    pub const TIMEOUT: u32 = 0x10;
    /// `NFT_SET_EVAL`: rules may add elements (`dynamic` in nft's words).
    pub const DYNAMIC: u32 = 0x20;
}

/// Types of set keys as nft numbers them (enum datatypes in its src/datatype.h); to the kernel only the length counts.
mod key_type {
    pub(super) const INTEGER: u32 = 4;
    pub(super) const IFACE_INDEX: u32 = 20;
    pub(super) const IPV4_ADDR: u32 = 7;
    pub(super) const IPV6_ADDR: u32 = 8;
    pub(super) const ETHER_ADDR: u32 = 9;
    pub(super) const INET_PROTO: u32 = 12;
    pub(super) const INET_SERVICE: u32 = 13;

    /// Type of a concatenation (nft's concat_subtype_add, 6 bits a part).
    pub(super) const fn concat(parts: &[u32]) -> u32 {
        let (mut number, mut part) = (0, 0);
        while part < parts.len() {
            number = number << 6 | parts[part];
            part += 1;
        }
        number
    }
}

/// One of our sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnSet {
    /// Indices of the interfaces that are in the flowtable.
    Devices,
    /// The meter: conntrack ids of flows that have had packets on the forward path although they were eligible, with
    /// a counter each. Rules fill it, elements go by themselves.
    SlowPath,
    /// Conntrack ids of connections without packet counters that should be offloaded. The agent fills it, elements go
    /// by themselves.
    Assist,
    /// Conntrack ids of connections that aren't to be offloaded any more. `fastpath-agent revoke` makes it and fills it,
    /// and each packet of such a connection puts off the time when it is forgotten. It is there only if it was needed.
    Revoked,
    /// Evidence: packets of this direction that were accepted, as conntrack id, input and output interface. Rules fill it,
    /// elements go by themselves, and with every emptying of the flowtable.
    Seen(Direction),
    /// Indices of interfaces that policy rules name as input. Has keys.
    RuleInputs,
    /// Every managed bridge, twice: what comes in and leaves by the same one. Has keys.
    Bridges,
    /// Ethernet addresses of the managed bridges. Has keys.
    BridgeAddresses,
    /// Flows that are never offloaded. Has keys.
    Exclude(ExcludeSet),
}

/// A set of what is never offloaded. All are hash sets, in which 100,000 keys cost a packet what ten do; hence one for
/// each length of network prefixes in use, and port by port. Their size is fixed when they are made: while a set without
/// one grows, the kernel lists a part of it only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExcludeSet {
    /// IPv4 networks of this prefix length.
    V4(u8),
    /// IPv6 networks of this prefix length.
    V6(u8),
    /// TCP ports.
    TcpPorts,
    /// UDP ports.
    UdpPorts,
    /// IP protocols.
    Protocols,
}

/// Key of an [`ExcludeSet`]: at most 16 bytes in network byte order, which is the order of keys too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u128);

impl Key {
    /// Most bytes of a key.
    pub const MAX: usize = size_of::<u128>();

    /// From its bytes, at most 16.
    pub fn new(bytes: &[u8]) -> Self {
        let mut padded = [0; Self::MAX];
        padded[..bytes.len()].copy_from_slice(bytes);
        Self(u128::from_be_bytes(padded))
    }

    /// Its bytes, zeros behind it.
    pub fn bytes(self) -> [u8; Self::MAX] {
        self.0.to_be_bytes()
    }
}

/// Size for a set of so many keys: room for as many again, so that it is seldom made again.
pub fn size_for(keys: usize) -> u32 {
    u32::try_from(keys.next_power_of_two().saturating_mul(2).max(1024)).unwrap_or(u32::MAX)
}

impl ExcludeSet {
    const PREFIX: &str = "kindnet-exclude-";

    fn name(self) -> String {
        let prefix = Self::PREFIX;
        match self {
            Self::V4(length) => format!("{prefix}v4-{length}"),
            Self::V6(length) => format!("{prefix}v6-{length}"),
            Self::TcpPorts => format!("{prefix}tcp"),
            Self::UdpPorts => format!("{prefix}udp"),
            Self::Protocols => format!("{prefix}protocols"),
        }
    }

    fn named(name: &str) -> Option<Self> {
        let set = match name.strip_prefix(Self::PREFIX)? {
            "tcp" => Self::TcpPorts,
            "udp" => Self::UdpPorts,
            "protocols" => Self::Protocols,
            other => match other.split_once('-')? {
                ("v4", length) => Self::V4(length.parse().ok().filter(|length| *length <= 32)?),
                ("v6", length) => Self::V6(length.parse().ok().filter(|length| *length <= 128)?),
                _ => return None,
            },
        };
        (set.name() == name).then_some(set)
    }

    /// A key as people write it.
    pub fn describe(self, key: Key) -> String {
        let bytes = key.bytes();
        match self {
            Self::V4(32) => v4(&bytes).to_string(),
            Self::V4(length) => format!("{}/{length}", v4(&bytes)),
            Self::V6(128) => Ipv6Addr::from(bytes).to_string(),
            Self::V6(length) => format!("{}/{length}", Ipv6Addr::from(bytes)),
            Self::TcpPorts => format!("tcp/{}", u16::from_be_bytes([bytes[0], bytes[1]])),
            Self::UdpPorts => format!("udp/{}", u16::from_be_bytes([bytes[0], bytes[1]])),
            Self::Protocols => format!("protocol/{}", bytes[0]),
        }
    }

    /// A key as an element in nft's language.
    pub fn element(self, key: Key) -> String {
        let bytes = key.bytes();
        match self {
            Self::V4(_) => v4(&bytes).to_string(),
            Self::V6(_) => Ipv6Addr::from(bytes).to_string(),
            Self::TcpPorts | Self::UdpPorts => u16::from_be_bytes([bytes[0], bytes[1]]).to_string(),
            Self::Protocols => bytes[0].to_string(),
        }
    }
}

fn v4(bytes: &[u8; 16]) -> Ipv4Addr {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])
}

/// How a set is made. A set of our name that is made otherwise is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetShape {
    /// Type of the keys as nft numbers them.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Most elements that it takes; 0 for any number.
    pub size: u32,
    /// Time in ms after which an element goes unless it says otherwise; 0 for never.
    pub timeout_ms: u64,
}

impl OwnSet {
    /// All but exclusions.
    const SINGLE: [Self; 9] = [
        Self::Devices,
        Self::SlowPath,
        Self::Assist,
        Self::Revoked,
        Self::Seen(Direction::Original),
        Self::Seen(Direction::Reply),
        Self::RuleInputs,
        Self::Bridges,
        Self::BridgeAddresses,
    ];

    /// Whether the agent keeps keys in it, all of which it knows.
    pub fn has_keys(self) -> bool {
        matches!(self, Self::RuleInputs | Self::Bridges | Self::BridgeAddresses | Self::Exclude(_))
    }

    /// Its name.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::Devices => "kindnet-set-devices".into(),
            Self::SlowPath => "kindnet-slow-path".into(),
            Self::Assist => "kindnet-assist".into(),
            Self::Revoked => "kindnet-revoked".into(),
            Self::Seen(Direction::Original) => "kindnet-seen-original".into(),
            Self::Seen(Direction::Reply) => "kindnet-seen-reply".into(),
            Self::RuleInputs => "kindnet-rule-inputs".into(),
            Self::Bridges => "kindnet-bridges".into(),
            Self::BridgeAddresses => "kindnet-bridge-addresses".into(),
            Self::Exclude(set) => set.name().into(),
        }
    }

    /// The set of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::SINGLE
            .into_iter()
            .find(|set| set.name() == name)
            .or_else(|| ExcludeSet::named(name).map(Self::Exclude))
    }

    /// Its keys' type, as nft writes it.
    pub fn key_words(self) -> &'static str {
        match self {
            Self::Devices | Self::RuleInputs => "type iface_index",
            Self::Seen(_) => "typeof ct id . iif . oif",
            Self::Bridges => "type iface_index . iface_index",
            Self::BridgeAddresses => "type ether_addr",
            Self::SlowPath | Self::Assist | Self::Revoked => "typeof ct id",
            Self::Exclude(set) => match set {
                ExcludeSet::V4(_) => "type ipv4_addr",
                ExcludeSet::V6(_) => "type ipv6_addr",
                ExcludeSet::TcpPorts | ExcludeSet::UdpPorts => "type inet_service",
                ExcludeSet::Protocols => "type inet_proto",
            },
        }
    }

    /// How it is made; the size of a set with keys is another matter.
    pub fn shape(self) -> SetShape {
        let plain = |key_type, key_len| SetShape { key_type, key_len, flags: 0, size: 0, timeout_ms: 0 };
        match self {
            Self::Devices => plain(key_type::IFACE_INDEX, 4),
            // When it is full, packets of further flows aren't counted, and nothing else happens. A flow that closes
            // leaves its last packets here, hence the short timeout: it makes room for 1,000 of them a second.
            Self::SlowPath => SetShape {
                flags: flags::TIMEOUT | flags::DYNAMIC,
                size: 65_536,
                timeout_ms: 60_000,
                ..plain(key_type::INTEGER, 4)
            },
            Self::Assist => SetShape { flags: flags::TIMEOUT, size: 65_536, ..plain(key_type::INTEGER, 4) },
            Self::Exclude(set) => match set {
                ExcludeSet::V4(_) => plain(key_type::IPV4_ADDR, 4),
                ExcludeSet::V6(_) => plain(key_type::IPV6_ADDR, 16),
                ExcludeSet::TcpPorts | ExcludeSet::UdpPorts => plain(key_type::INET_SERVICE, 2),
                ExcludeSet::Protocols => plain(key_type::INET_PROTO, 1),
            },
            // When it is full, further flows stay on the normal path. A trace is evidence for as long as nothing has changed
            // that the kernel doesn't announce: hence the short time.
            Self::Seen(_) => SetShape {
                flags: flags::TIMEOUT | flags::DYNAMIC,
                size: 65_536,
                timeout_ms: 2_000,
                ..plain(
                    key_type::concat(&[key_type::INTEGER, key_type::IFACE_INDEX, key_type::IFACE_INDEX]),
                    12,
                )
            },
            Self::RuleInputs => plain(key_type::IFACE_INDEX, 4),
            Self::Bridges => plain(key_type::concat(&[key_type::IFACE_INDEX, key_type::IFACE_INDEX]), 8),
            Self::BridgeAddresses => plain(key_type::ETHER_ADDR, 6),
            // As long as conntrack keeps an established connection without packets by default.
            Self::Revoked => SetShape {
                flags: flags::TIMEOUT | flags::DYNAMIC,
                size: 1 << 20,
                timeout_ms: 5 * 24 * 3_600_000,
                ..plain(key_type::INTEGER, 4)
            },
        }
    }

    /// Whether a set of this shape will do for our `keys` (which matters for sets with keys only).
    pub fn fits(self, shape: &SetShape, keys: usize) -> bool {
        if self.has_keys() {
            SetShape { size: 0, ..*shape } == self.shape() && keys <= shape.size as usize
        } else {
            *shape == self.shape()
        }
    }

    /// How often in ms the kernel collects elements whose time is up; `None` for its own choice (every second). It
    /// walks the whole set for that.
    pub fn gc_interval_ms(self) -> Option<u32> {
        match self {
            Self::Seen(_) => Some(2_000),
            _ => (self.shape().flags & flags::TIMEOUT != 0).then_some(10_000),
        }
    }

    /// A key of a set with keys, in words.
    pub fn describe(self, key: Key) -> String {
        let bytes = key.bytes();
        let index = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        match self {
            Self::Exclude(set) => set.describe(key),
            Self::BridgeAddresses => {
                let hex: Vec<String> = bytes[..6].iter().map(|byte| format!("{byte:02x}")).collect();
                hex.join(":")
            }
            Self::Bridges => format!("{index} . {index}"),
            _ => index.to_string(),
        }
    }

    /// A key of a set with keys as an element in nft's language.
    pub fn element(self, key: Key) -> String {
        match self {
            Self::Exclude(set) => set.element(key),
            _ => self.describe(key),
        }
    }
}

impl fmt::Display for OwnSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Keys in order, without repetition.
pub type Keys = Vec<Key>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_their_names() {
        let exclude = [
            ExcludeSet::V4(0),
            ExcludeSet::V4(32),
            ExcludeSet::V6(128),
            ExcludeSet::TcpPorts,
            ExcludeSet::UdpPorts,
            ExcludeSet::Protocols,
        ];
        for set in exclude.map(OwnSet::Exclude).into_iter().chain(OwnSet::SINGLE) {
            assert_eq!(OwnSet::named(&set.name()), Some(set));
        }
        for name in
            ["kindnet-exclude-v4-33", "kindnet-exclude-v4-024", "kindnet-exclude-", "kindnet-exclude-v4"]
        {
            assert_eq!(OwnSet::named(name), None);
        }
    }

    #[test]
    fn keys_are_in_the_order_of_their_bytes() {
        assert!(Key::new(&[1, 0]) < Key::new(&[1, 1]) && Key::new(&[0, 255]) < Key::new(&[1, 0]));
        assert_eq!(ExcludeSet::V4(16).describe(Key::new(&[10, 1, 0, 0])), "10.1.0.0/16");
        assert_eq!(ExcludeSet::TcpPorts.describe(Key::new(&443_u16.to_be_bytes())), "tcp/443");
    }
}
