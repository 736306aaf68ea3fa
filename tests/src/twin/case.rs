//! What a case is: a kind of node, its flows, and what changes under them. Tables of these are the tests; nothing is done here.

use std::fmt;

use crate::{
    attach::Attach,
    path::PORTS,
    topology::{Family, Layout, Nat},
    traffic::Proto,
};

/// What the one world has and the other hasn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// The agent, without its eBPF side.
    Agent,
    /// The agent with it.
    Programs,
    /// The agent that passes rules by which ask more than headers and connection.
    Ignoring,
    /// What `render` prints, and no agent.
    Rendered,
    /// kindnet's rules.
    Kindnet,
}

/// A script for `bash -eu` in one of the namespaces, which are named by it.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "they say it")]
pub enum Step {
    Node(&'static str),
    Client(&'static str),
    Server(&'static str),
}

/// Between which addresses flows run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Those of the links.
    Near,
    /// Those behind them, to which only routes lead.
    Distant,
    /// From the client's distant one to this one, which the node translates to the server's near one; IPv4, IPv6.
    Service(&'static str, &'static str),
}

/// Which flows run: TCP and UDP over each family, four of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// One of each.
    Four,
    /// In one of two the client's packet is the first past the threshold, in the other the server's (surely so with UDP).
    BothCross,
    /// After a change the client sends first, the server does, or both go on all the time.
    AllNext,
    /// UDP only; the server answers just the first message.
    OneWay,
}

/// Which path packets take through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Past the forward hook.
    Fast,
    /// Past it, but for the packets that it takes to be revalidated: a rule changes without an event.
    Revalidated,
    /// Through it, every one.
    Slow,
    /// Whatever is right.
    Any,
}

/// What becomes of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Both directions arrive.
    Arrive,
    /// At least one doesn't.
    Stop,
}

/// One change under running flows, of which each case gets fresh ones.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// In messages.
    pub name: &'static str,
    /// What is done.
    pub steps: &'static [Step],
    /// What takes it back.
    pub undo: &'static [Step],
    /// What becomes of the flows without a fast path.
    pub fate: Fate,
    /// Which path they take then, if they arrive.
    pub path: Path,
    /// Only flows of this family are concerned; the others must arrive.
    pub family: Option<Family>,
}

impl Change {
    /// Stops all flows.
    pub const STOP: Self =
        Self { name: "", steps: &[], undo: &[], fate: Fate::Stop, path: Path::Any, family: None };
    /// Stops none; they are fast again afterwards.
    pub const HARMLESS: Self = Self { fate: Fate::Arrive, path: Path::Fast, ..Self::STOP };
}

/// A kind of node, and what changes on it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// In messages.
    pub name: &'static str,
    /// What is built; second links are added to it.
    pub layout: Layout,
    /// What is set up besides, before the agent starts.
    pub set_up: &'static [Step],
    /// Between which addresses.
    pub ends: Ends,
    /// Only this family.
    pub family: Option<Family>,
    /// Which flows.
    pub flows: Flows,
    /// Which path they take once they are over the threshold. They must all arrive.
    pub path: Path,
    /// What is changed then.
    pub changes: &'static [Change],
    /// A script on the node whose output must be the same in both worlds at the end.
    pub same_output: &'static str,
}

impl Case {
    /// A router with nothing special, whose flows are fast.
    pub const PLAIN: Self = Self {
        name: "",
        layout: Layout { attach: Attach::Veth, pods: 2, nat: Nat::Plain },
        set_up: &[],
        ends: Ends::Near,
        family: None,
        flows: Flows::Four,
        path: Path::Fast,
        changes: &[],
        same_output: "",
    };
}

/// Who sends first after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Client,
    Server,
    /// Both go on as if nothing had happened.
    Both,
    /// The client goes on; the server hasn't sent more than one answer before either.
    ClientOnly,
}

#[derive(Clone, Copy)]
pub(super) struct Spec {
    pub(super) proto: Proto,
    pub(super) family: Family,
    pub(super) port: u16,
    /// One request more in front, so that an answer is the first packet past the threshold.
    pub(super) answer_crosses: bool,
    pub(super) next: Next,
}

impl Case {
    pub(super) fn specs(&self) -> Vec<Spec> {
        let kinds: &[(bool, Next)] = match self.flows {
            Flows::Four => &[(false, Next::Both)],
            Flows::BothCross => &[(false, Next::Both), (true, Next::Both)],
            Flows::OneWay => &[(false, Next::ClientOnly)],
            Flows::AllNext => &[(false, Next::Client), (false, Next::Server), (false, Next::Both)],
        };
        let mut ports = PORTS;
        let mut specs = Vec::new();
        for &(answer_crosses, next) in kinds {
            for proto in [Proto::Tcp, Proto::Udp] {
                for family in [Family::V4, Family::V6] {
                    let proto_fits = self.flows != Flows::OneWay || proto == Proto::Udp;
                    if proto_fits && self.family.is_none_or(|only| only == family) {
                        let port = ports.next().expect("enough ports");
                        specs.push(Spec { proto, family, port, answer_crosses, next });
                    }
                }
            }
        }
        specs
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.proto, self.family)?;
        if self.answer_crosses {
            f.write_str(", answer crosses")?;
        }
        match self.next {
            Next::Client => f.write_str(", client sends next"),
            Next::Server => f.write_str(", server sends next"),
            Next::Both => Ok(()),
            Next::ClientOnly => f.write_str(", one way"),
        }
    }
}
