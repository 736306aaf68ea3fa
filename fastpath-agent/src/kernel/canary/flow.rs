//! One flow of the canary: requests from the client that the server answers, first until the flow is over the
//! threshold, then counted.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use super::{CanaryError, scratch::Scratch};
use crate::{core::doctor::facts::CanaryFlow, kernel::canary::scratch::Family};

/// Rounds until the flow is over the threshold, which is far below.
const WARM_UP: u32 = 20;
/// Rounds that are counted.
const ROUNDS: u32 = 50;
/// Losses after which there is no point in going on.
const MAX_LOSSES: u32 = 3;
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_millis(700);
/// Bytes of a request and of an answer.
const MESSAGE_BYTES: usize = 700;
const PORT: u16 = 7;

/// Transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// Sends one flow.
pub(super) fn send(scratch: &Scratch, protocol: Protocol, family: Family) -> CanaryFlow {
    let mut outcome = CanaryFlow {
        protocol: match protocol {
            Protocol::Tcp => "tcp".to_owned(),
            Protocol::Udp => "udp".to_owned(),
        },
        family: match family {
            Family::V4 => "ipv4".to_owned(),
            Family::V6 => "ipv6".to_owned(),
        },
        rounds: 0,
        intact: 0,
        ingress: 0,
        forwarded: 0,
        error: scratch.not_forwarded(family).map(str::to_owned),
    };
    if outcome.error.is_none()
        && let Err(error) = measure(scratch, protocol, family, &mut outcome)
    {
        outcome.error = Some(error.to_string());
    }
    outcome
}

fn measure(
    scratch: &Scratch,
    protocol: Protocol,
    family: Family,
    outcome: &mut CanaryFlow,
) -> Result<(), CanaryError> {
    let step = |step| move |source| CanaryError::Build { step, source };
    let mut flow =
        open(scratch, protocol, family).map_err(step("open a flow through the scratch namespaces"))?;
    for round in 0..WARM_UP {
        flow.round(round);
    }
    let counters = || counters(scratch, family);
    let before = counters()?;
    let mut losses = 0;
    for round in WARM_UP..WARM_UP + ROUNDS {
        outcome.rounds += 1;
        if flow.round(round) {
            outcome.intact += 1;
        } else {
            losses += 1;
            if losses == MAX_LOSSES {
                break;
            }
        }
    }
    let after = counters()?;
    outcome.ingress = after.ingress - before.ingress;
    outcome.forwarded = after.forwarded - before.forwarded;
    Ok(())
}

/// Both ends of a flow.
enum Ends {
    Tcp { client: TcpStream, server: TcpStream },
    Udp { client: UdpSocket, server: UdpSocket },
}

/// Opens it; the sockets stay in their namespaces whatever namespace the thread is in.
fn open(scratch: &Scratch, protocol: Protocol, family: Family) -> io::Result<Ends> {
    let at = SocketAddr::new(Scratch::server_address(family), PORT);
    let enter = |namespace: &super::scratch::Namespace| namespace.enter().map_err(io::Error::other);
    enter(&scratch.server)?;
    match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(at)?;
            enter(&scratch.client)?;
            let client = TcpStream::connect_timeout(&at, 3 * ANSWER_LIMIT)?;
            let (server, _) = listener.accept()?;
            for end in [&client, &server] {
                end.set_nodelay(true)?;
                end.set_read_timeout(Some(ANSWER_LIMIT))?;
                end.set_write_timeout(Some(ANSWER_LIMIT))?;
            }
            Ok(Ends::Tcp { client, server })
        }
        Protocol::Udp => {
            let server = UdpSocket::bind(at)?;
            enter(&scratch.client)?;
            let client = UdpSocket::bind(SocketAddr::new(
                if at.is_ipv4() { [0; 4].into() } else { [0; 16].into() },
                0,
            ))?;
            client.connect(at)?;
            for end in [&client, &server] {
                end.set_read_timeout(Some(ANSWER_LIMIT))?;
            }
            Ok(Ends::Udp { client, server })
        }
    }
}

impl Ends {
    /// A request and its answer; whether both arrived unaltered.
    fn round(&mut self, round: u32) -> bool {
        self.try_round(round).unwrap_or(false)
    }

    fn try_round(&mut self, round: u32) -> io::Result<bool> {
        let (request, answer) = (message(2 * round), message(2 * round + 1));
        let mut received = [0; MESSAGE_BYTES];
        match self {
            Self::Tcp { client, server } => {
                client.write_all(&request)?;
                server.read_exact(&mut received)?;
                let intact = received == request;
                server.write_all(&answer)?;
                client.read_exact(&mut received)?;
                Ok(intact && received == answer)
            }
            Self::Udp { client, server } => {
                client.send(&request)?;
                let (length, from) = server.recv_from(&mut received)?;
                let intact = length == MESSAGE_BYTES && received == request;
                server.send_to(&answer, from)?;
                let length = client.recv(&mut received)?;
                Ok(intact && length == MESSAGE_BYTES && received == answer)
            }
        }
    }
}

/// Bytes that differ from those of every other message, and from place to place (a linear congruential sequence).
fn message(number: u32) -> [u8; MESSAGE_BYTES] {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9);
    std::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
}

struct Counters {
    /// Packets that came in on the router's links.
    ingress: u64,
    /// Packets of the family that its forward path sent on.
    forwarded: u64,
}

/// The router's. The kernel counts what its forward path sends on (RFC 4293, ipForwDatagrams); the flowtable doesn't
/// go there.
fn counters(scratch: &Scratch, family: Family) -> Result<Counters, CanaryError> {
    scratch.router.enter()?;
    let read = |path: &str| {
        fs::read_to_string(path)
            .map_err(|source| CanaryError::Build { step: "read the counters of a scratch namespace", source })
    };
    let forwarded = match family {
        Family::V4 => column(&read("/proc/thread-self/net/snmp")?, "Ip: ", "ForwDatagrams"),
        Family::V6 => value(&read("/proc/thread-self/net/snmp6")?, "Ip6OutForwDatagrams"),
    };
    let forwarded = forwarded.ok_or_else(|| CanaryError::Build {
        step: "find the counter of forwarded packets",
        source: io::ErrorKind::NotFound.into(),
    })?;
    Ok(Counters { ingress: received(&read("/proc/thread-self/net/dev")?), forwarded })
}

/// The number below a heading: two lines with the same start, names and numbers.
fn column(table: &str, start: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(start));
    let position = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(position)?.parse().ok()
}

/// The number beside a name.
fn value(table: &str, name: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Packets received by all devices but loopback: the second column.
fn received(table: &str) -> u64 {
    let devices = table.lines().filter_map(|line| line.split_once(':'));
    devices
        .filter(|(name, _)| name.trim() != "lo")
        .filter_map(|(_, numbers)| numbers.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_procfs() {
        let snmp = "Ip: Forwarding DefaultTTL InReceives ForwDatagrams InDiscards\nIp: 1 64 123 99 0\nIcmp: InMsgs\nIcmp: 7\n";
        assert_eq!(column(snmp, "Ip: ", "ForwDatagrams"), Some(99));
        assert_eq!(column(snmp, "Ip: ", "Nothing"), None);
        let snmp6 = "Ip6InReceives                   \t5\nIp6OutForwDatagrams             \t42\n";
        assert_eq!(value(snmp6, "Ip6OutForwDatagrams"), Some(42));
        let dev = "Inter-|   Receive\n face |bytes    packets errs\n    lo:  10 9 0\nclient: 100 3 0 0\nserver:200 4 0 0\n";
        assert_eq!(received(dev), 7);
    }

    #[test]
    fn messages_differ() {
        let all: std::collections::HashSet<_> = (0..200).map(message).collect();
        assert_eq!(all.len(), 200);
    }
}
