//! Links and the names of everything that the agent owns.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

use super::printable::printable;

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

/// Value of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Index of a network interface in its namespace, host byte order, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Name of a network interface: 1 to 15 bytes (`IFNAMSIZ` less the closing NUL), nearly always text. Shown and written as JSON it is
/// [`printable`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName {
    /// To be shown. Different for different names.
    shown: String,
    /// What the kernel has, where that is something else.
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
        valid.then(|| match printable(name) {
            Cow::Borrowed(shown) => Self { shown: shown.to_owned(), bytes: None },
            Cow::Owned(shown) => Self { shown, bytes: Some(name.into()) },
        })
    }

    /// The name as it is shown.
    pub fn as_str(&self) -> &str {
        &self.shown
    }

    /// The name as the kernel has it.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or(self.shown.as_bytes())
    }

    /// Whether the kernel's name is text (UTF-8).
    pub fn is_text(&self) -> bool {
        str::from_utf8(self.as_bytes()).is_ok()
    }

    /// The name as the kernel has it, if that is text; for what takes nothing else, and for patterns that people write. One that
    /// isn't is as it is shown, and not the name of any interface.
    pub fn as_text(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or(&self.shown)
    }
}

impl Serialize for IfName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown)
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.shown)
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
    /// The link below this one (`IFLA_LINK`), if that is in the same namespace: the trunk of a VLAN, the
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
        let clear = IfName::new("\x1b[2J").unwrap();
        assert_eq!((clear.to_string().as_str(), clear.as_text()), (r"\x1b[2J", "\x1b[2J"));
        assert_eq!(serde_json::to_string(&clear).unwrap(), r#""\\x1b[2J""#);
        assert_eq!(IfName::new("eth0"), IfName::from_bytes(b"eth0"));
        assert_eq!(IfName::new("grün").unwrap().as_bytes(), "grün".as_bytes());
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert_eq!(IfName::new(bad), None, "{bad}");
        }
    }
}
