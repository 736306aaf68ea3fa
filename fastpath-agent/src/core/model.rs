//! Links and the names of everything that the agent owns.

use std::fmt;

use serde::Serialize;

/// Name of the table, family inet.
pub const TABLE: &str = "kindnet-fastpath";
/// Comment on the table, as `nft list` prints it.
pub const TABLE_COMMENT: &str = "rules for kindnet fastpath";
/// Name of the flowtable in [`TABLE`].
pub const FLOWTABLE: &str = "kindnet-flowtables";
/// Name of the base chain in [`TABLE`].
pub const CHAIN: &str = "kindnet-fastpath-chain";
/// Most devices that one netlink message carries. The kernel refuses more than 256 (`NFT_NETDEVICE_MAX`,
/// net/netfilter/nf_tables_api.c), and its notification of more than about 180 doesn't fit `NLMSG_GOODSIZE`,
/// which costs every listener of nftables notifications an overrun.
pub const MAX_DEVICES_PER_MESSAGE: usize = 128;

/// Index of a network interface in its namespace, host byte order, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Name of a network interface: 1 to 15 bytes (`IFNAMSIZ` less the closing NUL), nearly always text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName {
    /// To be shown.
    text: String,
    /// What the kernel has, where that is no text (UTF-8).
    bytes: Option<Box<[u8]>>,
}

impl IfName {
    /// Takes a name as the kernel gives it; `None` if it is empty, too long, or holds `/`, NUL or white space
    /// (`dev_valid_name`, net/core/dev.c).
    pub fn new(name: &str) -> Option<Self> {
        Self::from_bytes(name.as_bytes())
    }

    /// The same where it may be no text.
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        let valid = !name.is_empty()
            && name.len() <= 15
            && name != b"."
            && name != b".."
            && !name.iter().any(|b| *b == b'/' || *b == b':' || *b == 0 || b.is_ascii_whitespace());
        valid.then(|| match str::from_utf8(name) {
            Ok(text) => Self { text: text.to_owned(), bytes: None },
            Err(_) => Self { text: name.escape_ascii().to_string(), bytes: Some(name.into()) },
        })
    }

    /// The name; where it is no text, with `\x..` for what isn't ASCII.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name as the kernel has it.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or(self.text.as_bytes())
    }
}

impl Serialize for IfName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Operational state of a link (RFC 2863, `IFLA_OPERSTATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperState {
    /// The driver doesn't say (WireGuard, tun, dummy).
    Unknown,
    /// Ready to pass packets.
    Up,
    /// Anything else: down, lower layer down, dormant, not present, testing.
    Down,
}

/// A network interface as rtnetlink describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Index in this namespace.
    pub index: IfIndex,
    /// Current name.
    pub name: IfName,
    /// `IFF_UP`: switched on by the administrator.
    pub admin_up: bool,
    /// Operational state.
    pub oper_state: OperState,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// `IFLA_INFO_KIND`: "veth", "bridge", "vlan", "wireguard" …; `None` for most hardware.
    pub kind: Option<String>,
    /// The bridge or bond that this link is a port of (`IFLA_MASTER`).
    pub master: Option<IfIndex>,
    /// The link that this one stands on (`IFLA_LINK`), if that is in the same namespace: the trunk of a VLAN, the
    /// device of a macvlan; for a veth its peer.
    pub lower: Option<IfIndex>,
    /// Its Ethernet address (`IFLA_ADDRESS`), if it has one.
    pub address: Option<[u8; 6]>,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// Has an Ethernet header (`ARPHRD_ETHER`); without one packets begin with the IP header.
    pub ethernet: bool,
}

/// An Ethernet link that is up, for tests.
#[cfg(test)]
pub(crate) fn test_link(name: &str) -> Link {
    Link {
        index: IfIndex(7),
        name: IfName::new(name).expect("a valid name"),
        admin_up: true,
        oper_state: OperState::Up,
        loopback: false,
        kind: None,
        master: None,
        lower: None,
        address: None,
        mtu: 1500,
        ethernet: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bytes_and_shown_as_text() {
        let odd = IfName::from_bytes(b"p\xff\xfe").unwrap();
        assert_eq!((odd.as_str(), odd.as_bytes()), (r"p\xff\xfe", &b"p\xff\xfe"[..]));
        assert_ne!(Some(odd), IfName::new(r"p\xff\xfe"), "another interface may have that name");
        assert_eq!(IfName::new("eth0"), IfName::from_bytes(b"eth0"));
        assert_eq!(IfName::new("grün").unwrap().as_bytes(), "grün".as_bytes());
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert_eq!(IfName::new(bad), None, "{bad}");
        }
    }
}
