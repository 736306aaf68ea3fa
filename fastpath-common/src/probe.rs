//! What the program that sees flows offloaded has to know of this kernel and this node.

use crate::assert_layout;

/// The function of the kernel that puts a flow into a flowtable:
/// `int flow_offload_add(struct nf_flowtable *, struct flow_offload *)`, net/netfilter/nf_flow_table_core.c.
pub const PROBED_FUNCTION: &str = "flow_offload_add";

/// Where [`PROGRAM_ADDED`](crate::PROGRAM_ADDED) finds things, in bytes, and which of the node's flowtables it is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Probe {
    /// Number of the network namespace (the inode of `/proc/self/ns/net`); 0: nothing is noted.
    pub netns: u32,
    /// Not 0: crossings of offloaded flows are signalled too.
    pub tell_all: u32,
    /// `flow_offload.ct`.
    pub connection: u32,
    /// `nf_conn.ct_net`.
    pub net: u32,
    /// `net.ns.inum`.
    pub number: u32,
    /// From one element of `flow_offload.tuplehash` to the next.
    pub stride: u32,
}

assert_layout!(Probe, 24, netns @ 0, tell_all @ 4, connection @ 8, net @ 12, number @ 16, stride @ 20);

impl Probe {
    /// `flow_offload_tuple_rhash.tuple`.
    pub const TUPLE: u32 = 8;
    /// `flow_offload_tuple.src_port`; before it come two addresses of 16 bytes.
    pub const PORTS: u32 = 32;
    /// `flow_offload_tuple.l3proto`, with `l4proto` behind it.
    pub const PROTOCOLS: u32 = 40;
}
