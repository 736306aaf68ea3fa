//! One feature of a network card, as `ethtool -k` shows it. Reads only.
#![expect(unsafe_code, reason = "the ethtool ioctl takes pointers")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::core::model::IfName;

// include/uapi/linux/ethtool.h
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// The feature by which a driver offers to forward flows itself.
const FEATURE: &str = "hw-tc-offload";
/// Most features that are asked for (the kernel has about 65).
const MAX_FEATURES: usize = 1024;

/// Asks about features; the names are the same for all devices.
pub(super) struct Ethtool {
    socket: OwnedFd,
    /// Number of features, and which one it is; found with the first device.
    feature: Option<(usize, usize)>,
}

impl Ethtool {
    /// In the calling thread's network namespace. A socket of any family will do (`sock_do_ioctl`, net/socket.c); a running agent
    /// may make no other than these and netlink.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, feature: None })
    }

    /// Whether the device's `hw-tc-offload` is on; `None` if it has none.
    pub(super) fn hw_tc_offload(&mut self, device: &IfName) -> io::Result<Option<bool>> {
        let (count, index) = match self.feature {
            Some(feature) => feature,
            None => *self.feature.insert(self.find(device)?),
        };
        let blocks = count.div_ceil(32);
        // struct ethtool_gfeatures: cmd, size; then available, requested, active, never_changed of each block.
        let mut features = vec![0; 2 + 4 * blocks];
        features[0] = ETHTOOL_GFEATURES;
        features[1] = blocks as u32;
        self.ask(device, &mut features)?;
        let bit = |word: usize| features[2 + 4 * (index / 32) + word] >> (index % 32) & 1 == 1;
        let (available, active) = (bit(0), bit(2));
        Ok((available || active).then_some(active))
    }

    /// Whether checksums may be left to the device (`tx-checksumming`).
    pub(super) fn sums_up(&self, device: &IfName) -> io::Result<bool> {
        // struct ethtool_value: cmd, data.
        let mut value = [ETHTOOL_GTXCSUM, 0];
        self.ask(device, &mut value)?;
        Ok(value[1] != 0)
    }

    /// Number of features, and the position of the wanted one among them.
    fn find(&self, device: &IfName) -> io::Result<(usize, usize)> {
        // struct ethtool_sset_info: cmd, reserved, sset_mask (u64), data.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        let mask = (1u64 << ETH_SS_FEATURES).to_ne_bytes();
        let (low, high) = mask.split_at(4);
        info[2] = u32::from_ne_bytes(low.try_into().map_err(io::Error::other)?);
        info[3] = u32::from_ne_bytes(high.try_into().map_err(io::Error::other)?);
        self.ask(device, &mut info)?;
        let count = info[4] as usize;
        if count > MAX_FEATURES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // struct ethtool_gstrings: cmd, string_set, len, then the names.
        let mut names = vec![0; 3 + count * ETH_GSTRING_LEN / 4];
        (names[0], names[1], names[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32);
        self.ask(device, &mut names)?;
        let bytes: Vec<u8> = names[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let name = |name: &[u8]| name.split(|byte| *byte == 0).next() == Some(FEATURE.as_bytes());
        let index = bytes.chunks(ETH_GSTRING_LEN).position(name).ok_or(io::ErrorKind::NotFound)?;
        Ok((count, index))
    }

    /// The kernel reads and writes as much of `request` as its header says, which the callers made room for.
    fn ask(&self, device: &IfName, request: &mut [u32]) -> io::Result<()> {
        // SAFETY: all zero is a valid ifreq.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in ifreq.ifr_name.iter_mut().zip(device.as_bytes().iter()) {
            // Signed on some processors, not on others.
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
        // SAFETY: the name is NUL-terminated (at most 15 bytes), and `request` is as long as its header says.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut ifreq) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
