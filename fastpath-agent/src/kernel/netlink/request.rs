//! Requests under construction: headers, then attributes.

use libc::NLM_F_REQUEST;
use netlink_packet_core::{Emitable, NLA_F_NESTED, NetlinkHeader};

use super::HEADER_BYTES;

/// One or several messages to the kernel, in one datagram.
pub(in crate::kernel) struct Request {
    bytes: Vec<u8>,
    /// Where the last message begins.
    start: usize,
}

impl Request {
    /// A message of this type (`nlmsg_type`) and with these flags besides `NLM_F_REQUEST`. `header` is what messages of
    /// the type begin with, such as a `struct nfgenmsg`.
    pub(in crate::kernel) fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        Self::with_capacity(0).and(kind, flags, 0, header)
    }

    /// No message yet, with room for `bytes`.
    pub(in crate::kernel) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), start: 0 }
    }

    /// Adds a message behind those that are there.
    pub(in crate::kernel) fn and(mut self, kind: u16, flags: i32, sequence: u32, header: &[u8]) -> Self {
        self.start = self.bytes.len();
        self.bytes.resize(self.start + HEADER_BYTES, 0);
        self.bytes.extend(header);
        let mut about = NetlinkHeader::default();
        about.message_type = kind;
        about.flags = (NLM_F_REQUEST | flags) as u16;
        about.sequence_number = sequence;
        about.emit(&mut self.bytes[self.start..]);
        self.set_length();
        self
    }

    /// Appends an attribute to the last message.
    pub(in crate::kernel) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        const HEADER: usize = 4;
        self.bytes.extend(((HEADER + value.len()) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.set_length();
        self
    }

    /// Appends a name, with a closing NUL.
    pub(in crate::kernel) fn name(self, kind: u16, name: impl AsRef<[u8]>) -> Self {
        self.attribute(kind, &[name.as_ref(), &[0]].concat())
    }

    /// Appends an attribute that holds the attributes that `inside` appends.
    pub(in crate::kernel) fn nested(self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        let mut request = inside(self.attribute(kind | NLA_F_NESTED, &[]));
        let length = (request.bytes.len() - start) as u16;
        request.bytes[start..start + size_of::<u16>()].copy_from_slice(&length.to_ne_bytes());
        request
    }

    /// Gives the last message this sequence number.
    pub(super) fn number(&mut self, sequence: u32) {
        const AT: usize = 8;
        let at = self.start + AT;
        self.bytes[at..at + size_of::<u32>()].copy_from_slice(&sequence.to_ne_bytes());
    }

    /// What goes into the socket.
    pub(in crate::kernel) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn set_length(&mut self) {
        let length = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + size_of::<u32>()].copy_from_slice(&length.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Message, attributes},
        *,
    };

    #[test]
    fn messages_and_attributes_have_their_lengths() {
        let request = Request::new(7, libc::NLM_F_DUMP, &[2, 0, 0, 0])
            .name(1, "abc")
            .nested(2, |inside| inside.attribute(3, &[5]).nested(4, |inside| inside.attribute(6, &[7, 8])));
        let message = Message::new(request.bytes());
        assert_eq!((message.kind(), message.family()), (7, Some(2)));
        assert_eq!(i32::from(message.flags()), NLM_F_REQUEST | libc::NLM_F_DUMP);
        let [name, nested] = *message.attributes().collect::<Vec<_>>() else { panic!("two attributes") };
        assert_eq!((name.kind(), name.value()), (1, &b"abc\0"[..]));
        let [first, second] = *attributes(nested.value()).collect::<Vec<_>>() else { panic!("two inside") };
        assert_eq!((nested.kind(), first.kind(), first.value()), (2, 3, &[5][..]));
        assert_eq!(attributes(second.value()).next().map(|nla| nla.value()), Some(&[7, 8][..]));
    }

    #[test]
    fn several_messages_stand_behind_each_other() {
        let mut request =
            Request::with_capacity(64).and(1, 0, 10, &[0; 4]).attribute(1, &[0; 3]).and(2, 0, 11, &[0; 4]);
        request.number(12);
        let (first, second) = request.bytes().split_at(HEADER_BYTES + 4 + 8);
        assert_eq!((Message::new(first).sequence(), Message::new(second).sequence()), (10, 12));
    }
}
