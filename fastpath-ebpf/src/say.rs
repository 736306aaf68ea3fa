//! What the programs log about single packets, for debugging. Only the object that is built with the feature `log` logs
//! anything; in the other these functions are empty and cost nothing. Never on the short way of hot flows.

/// An event in a flow's life.
#[derive(Clone, Copy)]
pub enum Fate {
    Entered,
    NoRoom,
    Signalled,
    NotSignalled,
}

#[cfg(feature = "log")]
mod log {
    use aya_log_ebpf::{debug, trace};
    use fastpath_common::{Family, FlowKey};

    use super::Fate;
    use crate::{frame::Frame, parse::Uncounted};

    /// Logs an event in a flow's life.
    #[inline(always)]
    pub fn flow(fate: Fate, key: &FlowKey, packets: u64) {
        match fate {
            Fate::Entered => entered(key, packets),
            Fate::NoRoom => no_room(key, packets),
            Fate::Signalled => signalled(key, packets),
            Fate::NotSignalled => not_signalled(key, packets),
        }
    }

    /// Functions of their own: together with the caller's variables the messages' parts wouldn't fit on the stack.
    macro_rules! messages {
        ($($name:ident: $what:literal,)+) => {
            $(
                #[inline(never)]
                fn $name(key: &FlowKey, packets: u64) {
                    let (from, to) = (key.src_port, key.dst_port);
                    let protocol = key.protocol;
                    if key.family == Family::V4 as u8 {
                        let (src, dst) = (first(&key.src), first(&key.dst));
                        debug!((), $what, src, from, dst, to, protocol, packets);
                    } else {
                        let (src, dst) = (key.src, key.dst);
                        debug!((), $what, src, from, dst, to, protocol, packets);
                    }
                }
            )+
        };
    }

    messages! {
        entered: "entered {:i} {} to {:i} {} protocol {}, packets {}",
        no_room: "no room for {:i} {} to {:i} {} protocol {}, packets {}",
        signalled: "crossing signalled: {:i} {} to {:i} {} protocol {}, packets {}",
        not_signalled: "crossing without room in the ring: {:i} {} to {:i} {} protocol {}, packets {}",
    }

    /// Logs a packet that belongs to no flow.
    #[inline(always)]
    pub fn uncounted(reason: &Uncounted, frame: &impl Frame) {
        let reason = match reason {
            Uncounted::NotIp => 0,
            Uncounted::Malformed => 1,
            Uncounted::LaterFragment => 2,
            Uncounted::OtherProtocol => 3,
            Uncounted::TooManyHeaders => 4,
        };
        refused(reason, frame.len(), frame.ifindex());
    }

    #[inline(never)]
    fn refused(reason: u32, len: u32, ifindex: u32) {
        match reason {
            0 => trace!((), "not_ip, {} bytes, interface {}", len, ifindex),
            1 => trace!((), "malformed, {} bytes, interface {}", len, ifindex),
            2 => trace!((), "later_fragment, {} bytes, interface {}", len, ifindex),
            3 => trace!((), "other_protocol, {} bytes, interface {}", len, ifindex),
            _ => trace!((), "too_many_headers, {} bytes, interface {}", len, ifindex),
        }
    }

    fn first(address: &[u8; 16]) -> [u8; 4] {
        [address[0], address[1], address[2], address[3]]
    }
}

#[cfg(feature = "log")]
pub use log::{flow, uncounted};

#[cfg(not(feature = "log"))]
mod silent {
    use fastpath_common::FlowKey;

    use super::Fate;
    use crate::{frame::Frame, parse::Uncounted};

    #[inline(always)]
    pub fn flow(_: Fate, _: &FlowKey, _: u64) {}

    #[inline(always)]
    pub fn uncounted(_: &Uncounted, _: &impl Frame) {}
}

#[cfg(not(feature = "log"))]
pub use silent::{flow, uncounted};
