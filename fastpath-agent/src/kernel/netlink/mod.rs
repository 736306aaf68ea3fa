//! Netlink: sockets, requests, the one way to list objects ([`Dump`]), and messages taken apart in place.
//!
//! Knows nothing of nftables, conntrack or routes: those are messages that other modules write and read.

pub(super) mod attribute;
mod dump;
pub(super) mod filter;
mod message;
mod request;
mod socket;

pub(super) use attribute::{Attribute, attributes, u32_at};
pub(super) use dump::{Dump, Dumped, Families, has_none, settle};
pub(super) use message::{HEADER_BYTES, Message, Refusal, messages};
pub(super) use request::Request;
pub(super) use socket::Socket;
