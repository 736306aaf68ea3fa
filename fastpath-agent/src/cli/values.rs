//! Values that flags take, where there are but a few.

use clap::ValueEnum;

use crate::core::flow::connection::{TCP, UDP};

/// Protocols whose flows are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// Its IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Output formats of `flows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowsOutput {
    /// For people, as wide as the terminal
    Text,
    /// For people, all columns
    Wide,
    /// For programs: one array
    Json,
    /// For programs: one object a line
    Ndjson,
}

impl FlowsOutput {
    /// A table, not JSON.
    pub fn is_for_people(self) -> bool {
        matches!(self, Self::Text | Self::Wide)
    }
}

/// Something that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Do it
    On,
    /// Don't
    Off,
}

/// Whom the page is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageFor {
    /// Clients at a loopback address: of this node and its network namespace
    Loopback,
    /// All that reach the port
    All,
    /// Nobody
    Off,
}

/// Formats of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Fields in the journal where systemd has connected it, text elsewhere
    Auto,
    /// Lines of text, to standard error
    Text,
    /// One JSON object per line, to standard error
    Json,
    /// Fields in systemd's journal
    Journald,
}

/// Modes of `--assist`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Assist {
    /// Such flows are offloaded like any other
    On,
    /// Such flows stay on the normal path until they end
    Off,
}

/// Modes of `--hw-offload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HwOffload {
    /// Only the kernel's software fast path
    Off,
    /// Hardware if every managed interface supports it, software otherwise
    Auto,
}

/// What programs do with packets of offloaded flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ForwardMode {
    /// They leave them to the flowtable.
    Off,
    /// They forward those between pods to the other end of a veth.
    Peer,
}

/// Modes of `--ebpf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EbpfMode {
    /// TC ingress
    Tc,
    /// XDP in the driver; TC where the interface can't
    Xdp,
    /// XDP after the driver (slower than tc); TC where the interface can't
    XdpGeneric,
    /// No eBPF
    Off,
}
