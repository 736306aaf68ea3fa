//! The sets of our table: what each is for and how it is made. No elements, and nothing of how the kernel is told.

use std::fmt;

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
}

/// A set of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnSet {
    /// Indices of the interfaces that are in the flowtable.
    Devices,
    /// The meter: conntrack ids of flows that have had packets on the forward path although they were eligible, with
    /// a counter each. Rules fill it, elements go by themselves.
    SlowPath,
    /// Conntrack ids of connections without packet counters that are to be offloaded. The agent fills it, elements go
    /// by themselves.
    Assist,
}

/// How a set is made. A set of our name that is made otherwise is made anew.
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
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Devices, Self::SlowPath, Self::Assist];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Devices => "kindnet-set-devices",
            Self::SlowPath => "kindnet-slow-path",
            Self::Assist => "kindnet-assist",
        }
    }

    /// The set of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// How it is made.
    pub fn shape(self) -> SetShape {
        let key_len = size_of::<u32>() as u32;
        match self {
            Self::Devices => {
                SetShape { key_type: key_type::IFACE_INDEX, key_len, flags: 0, size: 0, timeout_ms: 0 }
            }
            // When it is full, packets of further flows aren't counted, and nothing else happens. A flow that closes
            // leaves its last packets here, hence the short timeout: it makes room for 1,000 of them a second.
            Self::SlowPath => SetShape {
                key_type: key_type::INTEGER,
                key_len,
                flags: flags::TIMEOUT | flags::DYNAMIC,
                size: 65_536,
                timeout_ms: 60_000,
            },
            Self::Assist => SetShape {
                key_type: key_type::INTEGER,
                key_len,
                flags: flags::TIMEOUT,
                size: 65_536,
                timeout_ms: 0,
            },
        }
    }

    /// How often in ms the kernel collects elements whose time is up; `None` for its own choice (every second). It
    /// walks the whole set for that.
    pub fn gc_interval_ms(self) -> Option<u32> {
        (self.shape().flags & flags::TIMEOUT != 0).then_some(10_000)
    }

    /// The key is the conntrack id (`ct id`), in the bytes of `CTA_ID`.
    pub fn is_by_conntrack_id(self) -> bool {
        matches!(self, Self::SlowPath | Self::Assist)
    }
}

impl fmt::Display for OwnSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
