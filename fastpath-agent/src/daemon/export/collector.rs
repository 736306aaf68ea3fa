//! The way to a collector: what carries the messages, and whether it works. Waits for nothing without being asked to.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket, lookup_host},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::core::export::target::{Target, Transport};

/// How long the collector's name may take to be found, and a connection to be made or to take what it is sent.
const LIMIT: Duration = Duration::from_secs(5);
/// Time that an error about a datagram takes to come back.
const ERROR_COMES: Duration = Duration::from_secs(1);

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

/// A collector.
pub(super) struct Collector {
    /// Where it is.
    pub(super) address: SocketAddr,
    way: Way,
}

enum Way {
    Udp {
        socket: UdpSocket,
        connected: bool,
        probed: Option<Instant>,
    },
    Down,
    Connecting(Connecting),
    /// With what the connection didn't take yet, and when it took something last.
    Tcp {
        stream: TcpStream,
        rest: Vec<u8>,
        took: Instant,
    },
}

/// How it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// A new connection, or the first since the last error.
    Anew,
    /// As before.
    Still,
}

impl Collector {
    /// Finds it, which may take its time, and opens what can't be opened later.
    pub(super) async fn open(target: &Target) -> io::Result<Self> {
        let found = timeout(LIMIT, lookup_host((target.host.as_str(), target.port)));
        let mut found = found.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let address = found.next().ok_or_else(|| io::Error::other("the name has no address"))?;
        let way = match target.transport {
            Transport::Tcp => Way::Down,
            Transport::Udp => {
                let any = match address {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                Way::Udp { socket: UdpSocket::bind(any).await?, connected: false, probed: None }
            }
        };
        Ok(Self { address, way })
    }

    /// Waits until a message can be sent. `probe`: a message that says nothing, for a way that was broken. Cancelling it loses nothing.
    pub(super) async fn ready(&mut self, probe: Option<&[u8]>) -> io::Result<Ready> {
        loop {
            match &mut self.way {
                Way::Udp { socket, connected, probed } => {
                    let mut ready = Ready::Still;
                    if !*connected {
                        socket.connect(self.address).await?;
                        *connected = true;
                        ready = Ready::Anew;
                    }
                    if let Some(probe) = probe {
                        let sent = match *probed {
                            Some(sent) => sent,
                            None => {
                                socket.writable().await?;
                                socket.try_send(probe)?;
                                *probed.insert(Instant::now())
                            }
                        };
                        sleep_until(sent + ERROR_COMES).await;
                        *probed = None;
                        if let Some(error) = socket.take_error()? {
                            return Err(error);
                        }
                        ready = Ready::Anew;
                    }
                    socket.writable().await?;
                    return Ok(ready);
                }
                Way::Down => self.way = Way::Connecting(connect(self.address)),
                Way::Connecting(connecting) => {
                    let result = connecting.as_mut().await;
                    self.way = Way::Down;
                    self.way = Way::Tcp { stream: result?, rest: Vec::new(), took: Instant::now() };
                    return Ok(Ready::Anew);
                }
                Way::Tcp { stream, took, .. } => {
                    if ended(stream) {
                        return Err(io::ErrorKind::ConnectionReset.into());
                    }
                    let room = timeout_at(*took + LIMIT, stream.writable());
                    room.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                    return Ok(Ready::Still);
                }
            }
        }
    }

    /// Whether something that was sent waits to be taken.
    pub(super) fn has_rest(&self) -> bool {
        matches!(&self.way, Way::Tcp { rest, .. } if !rest.is_empty())
    }

    /// Sends what waits; true if nothing does any more.
    pub(super) fn send_rest(&mut self) -> io::Result<bool> {
        let Way::Tcp { stream, rest, took } = &mut self.way else { return Ok(true) };
        while !rest.is_empty() {
            match stream.try_write(rest) {
                Ok(written) => {
                    rest.drain(..written);
                    *took = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends a message; false if there is no room for it now. After an error none of it counts as sent, and of datagrams the one before
    /// may be lost.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<bool> {
        let sent = match &mut self.way {
            Way::Udp { socket, .. } => socket.try_send(message).map(|_| true),
            Way::Tcp { stream, rest, took } => stream.try_write(message).map(|written| {
                *took = Instant::now();
                rest.extend_from_slice(&message[written..]);
                true
            }),
            Way::Down | Way::Connecting(_) => Ok(false),
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            sent => sent,
        }
    }

    /// After an error: a connection is given up, and made anew with the next [`Self::ready`].
    pub(super) fn give_up(&mut self) {
        match &mut self.way {
            Way::Udp { probed, .. } => *probed = None,
            way => *way = Way::Down,
        }
    }

    /// Whether this error says that the message before it is lost.
    pub(super) fn lost_last(&self, error: &io::Error) -> bool {
        match &self.way {
            // The answer to the datagram before.
            Way::Udp { .. } => error.kind() == io::ErrorKind::ConnectionRefused,
            way => matches!(way, Way::Tcp { rest, .. } if !rest.is_empty()),
        }
    }
}

fn connect(address: SocketAddr) -> Connecting {
    Box::pin(async move {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        timeout(LIMIT, socket.connect(address)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    })
}

/// Whether the collector has closed the connection. It never says anything.
fn ended(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0; 64]), Ok(0))
}
