//! Lists of rtnetlink's objects. Reads only.

use std::io;

use super::netlink::{Dump, Dumped, Families, Message, Socket, has_none, settle};

/// How often it is read again after a change in the midst of it.
const ATTEMPTS: u32 = 8;

/// Reads all objects of a kind (`RTM_GET*`); `header` is what such a request begins with. Families that the kernel doesn't
/// have, have none.
pub(super) fn list<const HEADER: usize, I: IntoIterator>(
    socket: &mut Socket,
    kind: u16,
    families: Families,
    header: [u8; HEADER],
    mut parse: impl FnMut(&Message<'_>) -> I,
) -> io::Result<Dumped<Vec<I::Item>>> {
    let listed = settle(ATTEMPTS, || {
        socket.dump(Dump::new(kind, families, header), Vec::new(), |found, message| {
            found.extend(parse(message))
        })
    });
    match listed {
        Err(error) if has_none(&error) => Ok(Dumped::Complete(Vec::new())),
        listed => listed,
    }
}

/// The same of IPv4 and IPv6, for lists that don't know all families at once; all of it belongs together.
pub(super) fn list_ip<const HEADER: usize, I: IntoIterator>(
    socket: &mut Socket,
    kind: u16,
    header: [u8; HEADER],
    mut parse: impl FnMut(&Message<'_>) -> I,
) -> io::Result<Vec<I::Item>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        match list(socket, kind, Families::One(family as u8), header, &mut parse)? {
            Dumped::Complete(of_family) => found.extend(of_family),
            Dumped::Interrupted(_) => return Err(io::Error::other("it keeps changing")),
        }
    }
    Ok(found)
}
