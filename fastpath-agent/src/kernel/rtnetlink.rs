//! Dumps over rtnetlink that no crate decodes: policy rules and forwarding settings. Reads only.

use std::io;

use libc::{NLM_F_DUMP, NLM_F_REQUEST};
use mnl::Bus;
use netlink_packet_core::{Emitable, NetlinkHeader};

use super::nfnetlink::{Completion, HEADER_BYTES, Message, Socket};

/// How often it is read again after a change in the midst of it.
const ATTEMPTS: u32 = 8;

/// Reads all objects of a kind (`RTM_GET*`) and family; `header` is what comes first in a message of that kind, with the
/// family as its first byte. Families that the kernel doesn't have, have none.
pub(super) fn dump<T>(
    kind: u16,
    header: &[u8],
    mut parse: impl FnMut(&Message<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut socket = Socket::open_on(Bus::Route)?;
    let mut request = vec![0; HEADER_BYTES];
    request.extend(header);
    for _ in 0..ATTEMPTS {
        let mut about = NetlinkHeader::default();
        about.length = request.len() as u32;
        about.message_type = kind;
        about.flags = (NLM_F_REQUEST | NLM_F_DUMP) as u16;
        about.sequence_number = socket.reserve_sequence(1);
        about.emit(&mut request[..HEADER_BYTES]);
        let mut found = Vec::new();
        match socket.request(&request, |message| found.extend(parse(message))) {
            Ok(Completion::Consistent) => return Ok(found),
            Ok(Completion::Interrupted) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => return Ok(Vec::new()),
                _ => return Err(error),
            },
        }
    }
    Err(io::Error::other("it keeps changing"))
}
