//! Columns of a table of flows.

use clap::ValueEnum;

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// State, and whether it is slow
    State,
    /// Fast, could be fast, never
    Group,
    /// Protocol
    Proto,
    /// The end that opened the connection
    Client,
    /// What it dialled, and who answers if that is another
    Server,
    /// The address that the client is masqueraded as
    As,
    /// Bytes from the client
    Sent,
    /// Bytes to the client
    Received,
    /// Packets of both directions
    Packets,
    /// Bytes of both directions
    Bytes,
    /// Packets per second (with --watch)
    Pps,
    /// Bits per second (with --watch)
    Rate,
    /// Time since the last packet
    Idle,
    /// Time since the first packet
    Age,
    /// Interfaces that packets come in on
    In,
    /// What keeps it from being fast
    Why,
    /// What would make it fast
    Todo,
}

impl Column {
    /// Those that are shown if none are named.
    pub fn usual(watch: bool) -> Vec<Self> {
        let rates = if watch { &[Self::Pps, Self::Rate][..] } else { &[] };
        let before =
            [Self::State, Self::Proto, Self::Client, Self::Server, Self::Packets, Self::Sent, Self::Received];
        [&before, rates, &[Self::Idle, Self::In, Self::Why]].concat()
    }

    /// All of them.
    pub fn wide() -> Vec<Self> {
        Self::value_variants().to_vec()
    }
}
