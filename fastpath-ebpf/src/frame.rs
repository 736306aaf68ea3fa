//! What a program can ask about the packet that it runs for: the same questions for TC, which sees skbs, and for XDP,
//! which sees frames before there is an skb. Reads, changes nothing.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use fastpath_common::limits::{MAX_VLAN_TAGS, MAX_VLAN_TAGS_XDP};

/// Bytes of a header, aligned so that the compiler needn't put words together byte by byte.
#[repr(C, align(8))]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> Bytes<N> {
    /// A number in network byte order.
    #[inline(always)]
    pub fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    /// A word as it lies there.
    #[inline(always)]
    pub fn word32(&self, at: usize) -> u64 {
        let b = &self.0;
        u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]).into()
    }

    /// Two words as they lie there.
    #[inline(always)]
    pub fn word64(&self, at: usize) -> u64 {
        self.word32(at) | self.word32(at + 4) << 32
    }
}

/// A packet with its context.
pub trait Frame {
    /// VLAN tags in the data that are looked behind.
    const VLAN_TAGS: usize;
    /// Address of the first byte.
    fn data(&self) -> usize;
    /// Address behind the last byte of the linear part.
    fn data_end(&self) -> usize;
    /// Bytes, those outside the linear part too.
    fn len(&self) -> u32;
    /// Index of the interface that it came in on.
    fn ifindex(&self) -> u32;
    /// Packets on the wire that make up a GSO packet; `None` if it isn't one.
    fn gso_segments(&self) -> Option<u32>;
    /// Copies the bytes at `offset`, wherever they lie; `None` if the packet ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>>;
}

impl Frame for TcContext {
    // The kernel has taken the outermost one out before TC.
    const VLAN_TAGS: usize = MAX_VLAN_TAGS;

    #[inline(always)]
    fn data(&self) -> usize {
        TcContext::data(self)
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        TcContext::data_end(self)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        TcContext::len(self)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is a valid __sk_buff for the whole run.
        unsafe { (*self.skb.skb).ifindex }
    }

    /// Packets from a guest may know the size of their segments only (`SKB_GSO_DODGY`).
    #[inline(always)]
    fn gso_segments(&self) -> Option<u32> {
        // SAFETY: the context is a valid __sk_buff for the whole run.
        let size = unsafe { (*self.skb.skb).gso_size };
        if size == 0 {
            return None;
        }
        // SAFETY: as above.
        match unsafe { (*self.skb.skb).gso_segs } {
            0 => Some(self.len().div_ceil(size)),
            segments => Some(segments),
        }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let mut bytes = MaybeUninit::<Bytes<N>>::uninit();
        // SAFETY: the helper writes N bytes or fails.
        unsafe {
            let failed = bpf_skb_load_bytes(self.as_ptr(), offset, bytes.as_mut_ptr().cast(), N as u32) != 0;
            if failed { None } else { Some(bytes.assume_init()) }
        }
    }
}

impl Frame for XdpContext {
    const VLAN_TAGS: usize = MAX_VLAN_TAGS_XDP;

    #[inline(always)]
    fn data(&self) -> usize {
        XdpContext::data(self)
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        XdpContext::data_end(self)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is a valid xdp_md for the whole run.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    /// A frame is what the driver received as one; what GSO made of it isn't told.
    #[inline(always)]
    fn gso_segments(&self) -> Option<u32> {
        None
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let mut bytes = MaybeUninit::<Bytes<N>>::uninit();
        // SAFETY: the helper writes N bytes or fails.
        unsafe {
            let failed = bpf_xdp_load_bytes(self.ctx, offset, bytes.as_mut_ptr().cast(), N as u32) != 0;
            if failed { None } else { Some(bytes.assume_init()) }
        }
    }
}
