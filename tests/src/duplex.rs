//! Traffic whose ends don't wait for each other: each sends when told to, whatever has arrived, and counts what does.
//!
//! So it shows what becomes of each direction when one of them is denied, which rounds of request and answer can't.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, UdpSocket},
    ops::Sub,
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

use crate::traffic::{Direction, Ends, Flow};

/// Bytes of a message, if nothing else is said.
const SIZE: usize = 64;
/// Of the largest datagram.
const LARGEST: usize = 1500;
/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(1);

/// What one end has sent and the other got.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Messages sent, those included that the kernel refused.
    pub sent: usize,
    /// Messages arrived, unaltered.
    pub arrived: usize,
}

impl Sub for Tally {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { sent: self.sent - earlier.sent, arrived: self.arrived - earlier.arrived }
    }
}

/// A flow whose ends don't wait.
pub struct Duplex {
    flow: Flow,
    /// Bytes of a message.
    size: usize,
    /// Client to server.
    pub up: Tally,
    /// Server to client.
    pub down: Tally,
    /// Bytes written and read by TCP, for either direction.
    written: [usize; 2],
    read: [usize; 2],
    /// What all datagrams of this flow begin with: a late one of an earlier flow to the same port isn't taken for its own.
    tag: [u8; 2],
    /// Whether a UDP server knows its client.
    met: bool,
    /// Whether messages to one that doesn't are waited for.
    patient: bool,
}

impl Flow {
    /// From now on no end waits for anything.
    #[track_caller]
    pub fn into_duplex(self) -> Duplex {
        let (done, from) = match &self.ends {
            Ends::Udp { client, server } => (
                client.set_nonblocking(true).and_then(|()| server.set_nonblocking(true)),
                client.local_addr(),
            ),
            Ends::Tcp { client, server } => (
                client.set_nonblocking(true).and_then(|()| server.set_nonblocking(true)),
                client.local_addr(),
            ),
        };
        let from = done.and(from).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        Duplex {
            flow: self,
            size: SIZE,
            up: Tally::default(),
            down: Tally::default(),
            written: [0; 2],
            read: [0; 2],
            tag: from.port().to_be_bytes(),
            met: false,
            patient: true,
        }
    }
}

impl Duplex {
    /// The port that the client dialled.
    pub fn port(&self) -> u16 {
        self.flow.port()
    }

    /// From now on no message is waited for, as where it may be that none arrives.
    #[must_use]
    pub fn impatient(mut self) -> Self {
        self.patient = false;
        self
    }

    /// From now on messages of so many bytes; datagrams have 1,500 at most.
    #[must_use]
    pub fn sized(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }

    /// One message. A UDP server that hasn't heard from its client sends none: so the first messages to it are waited for, or
    /// how many answers are sent would depend on how busy the machine is.
    #[track_caller]
    pub fn send(&mut self, direction: Direction) {
        let (tally, written) = match direction {
            Direction::Upload => (&mut self.up, &mut self.written[0]),
            Direction::Download => (&mut self.down, &mut self.written[1]),
        };
        match (&mut self.flow.ends, direction) {
            (Ends::Udp { .. }, Direction::Download) if !self.met => return,
            (Ends::Udp { client, .. }, Direction::Upload) => {
                datagram(client, self.tag, tally.sent, self.size)
            }
            (Ends::Udp { server, .. }, Direction::Download) => {
                datagram(server, self.tag, tally.sent, self.size)
            }
            (Ends::Tcp { client, .. }, Direction::Upload) => write(client, written, self.size),
            (Ends::Tcp { server, .. }, Direction::Download) => write(server, written, self.size),
        }
        tally.sent += 1;
        if let Ends::Udp { server, .. } = &self.flow.ends
            && !self.met
            && self.patient
        {
            wait_for_one(server).unwrap_or_else(|error| panic!("{:?}: {error}", self.flow));
        }
    }

    /// Takes what has arrived at both ends.
    pub fn receive(&mut self) {
        match &mut self.flow.ends {
            Ends::Udp { client, server } => {
                self.up.arrived +=
                    datagrams(server, self.tag, self.size, (!self.met).then_some(&mut self.met));
                self.down.arrived += datagrams(client, self.tag, self.size, None);
            }
            Ends::Tcp { client, server } => {
                read(server, &mut self.read[0]);
                read(client, &mut self.read[1]);
                self.up.arrived = self.read[0] / self.size;
                self.down.arrived = self.read[1] / self.size;
            }
        }
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        let Ends::Tcp { client, server } = &self.flow.ends else { return };
        // A reset: no end tries for minutes to tell the other.
        for end in [client, server] {
            let _ = setsockopt(end, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
    }
}

fn message([first, second]: [u8; 2], number: usize, size: usize) -> Vec<u8> {
    let mut message = vec![number as u8; size];
    [message[0], message[1]] = [first, second];
    message
}

/// Sends one. An error may be that of an earlier packet, with which this one isn't sent; the second one is of no route, and
/// the packet is lost.
fn datagram(socket: &UdpSocket, tag: [u8; 2], number: usize, size: usize) {
    let message = message(tag, number, size);
    let _ = socket.send(&message).or_else(|_| socket.send(&message));
}

/// Returns when a datagram is there, or after [`FIRST`].
fn wait_for_one(socket: &UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(FIRST))?;
    // No datagram or an earlier packet's error: what arrives is counted elsewhere.
    let _ = socket.peek(&mut [0; SIZE]);
    socket.set_nonblocking(true)
}

/// Number of whole datagrams of the flow that wait; the first one makes a server know its client.
fn datagrams(socket: &UdpSocket, tag: [u8; 2], size: usize, mut meet: Option<&mut bool>) -> usize {
    let mut arrived = 0;
    let mut buffer = [0; LARGEST + 1];
    // A pending error of an earlier packet ends it; the next call goes on.
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        if length < tag.len() || buffer[..tag.len()] != tag {
            continue;
        }
        let intact = length == size && buffer[..size] == message(tag, buffer[size - 1].into(), size);
        arrived += usize::from(intact);
        if let Some(met) = meet.take() {
            *met = socket.connect(from).is_ok();
        }
    }
    arrived
}

/// The byte at that place of a TCP stream.
fn byte(place: usize) -> u8 {
    (place % 251) as u8
}

fn write(socket: &mut TcpStream, written: &mut usize, size: usize) {
    let bytes: Vec<u8> = (*written..).take(size).map(byte).collect();
    // When the connection stalls its buffer fills up, and less goes in.
    *written += socket.write(&bytes).unwrap_or(0);
}

#[track_caller]
fn read(socket: &mut TcpStream, read: &mut usize) {
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.read(&mut buffer) {
        if length == 0 {
            return;
        }
        for (at, got) in buffer[..length].iter().enumerate() {
            assert_eq!(*got, byte(*read + at), "altered at byte {} of a TCP stream", *read + at);
        }
        *read += length;
    }
}
