//! A flow, and what happens to flows, as JSON has it. Fields are only ever added: other programs read them.

use std::borrow::Cow;

use fastpath_common::FlowCounters;
use serde::{Deserialize, Serialize};

use super::{
    Flow, Node, State,
    connection::{Tuple, protocol_name},
    expression::Subject,
    group::{Group, todo},
    path::Path,
    rates::Rate,
};

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// "tcp", "udp", or another name or number.
    pub protocol: String,
    /// The original direction as its packets come in, before NAT.
    pub original: Tuple,
    /// The reply direction likewise, as far as it is known.
    pub reply: Option<Tuple>,
    /// The pod or container that opened it, where the runtime was asked.
    #[serde(default)]
    pub client: Option<String>,
    /// The one that answers.
    #[serde(default)]
    pub server: Option<String>,
    /// Its state.
    #[serde(flatten)]
    pub state: State,
    /// Whether it is fast, could be, or never will be. None in records of earlier versions.
    #[serde(default)]
    pub group: Option<Group>,
    /// What would make it fast, if it could be.
    #[serde(default)]
    pub todo: Option<Cow<'static, str>>,
    /// Interfaces that packets come in on.
    pub interfaces: Vec<String>,
    /// As counted at ingress; the original direction, then the reply direction.
    pub ingress: [Option<Ingress>; 2],
    /// As conntrack counts them.
    pub conntrack: Option<Conntrack>,
    /// Which way its packets take.
    #[serde(flatten)]
    pub path: Path,
    /// Packets and bits per second of both directions since the last reading; none with the first one.
    #[serde(default)]
    pub rate: Option<FlowRate>,
}

/// How much passes, in whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRate {
    /// Packets as the stack handles them.
    pub packets_per_second: u64,
    /// From the IP header on.
    pub bits_per_second: u64,
}

impl From<Rate> for FlowRate {
    fn from(rate: Rate) -> Self {
        Self { packets_per_second: rate.packets.round() as u64, bits_per_second: rate.bits.floor() as u64 }
    }
}

/// What was counted of one direction at ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// Packets as the stack handles them.
    pub packets: u64,
    /// Packets on the wire.
    pub segments: u64,
    /// From the IP header on.
    pub bytes: u64,
    /// Since the first packet.
    pub age_ms: u64,
    /// Since the last packet.
    pub idle_ms: u64,
    /// All that were seen, or-ed.
    pub tcp_flags: u64,
}

/// What conntrack has of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conntrack {
    /// `CTA_ID`.
    pub id: u32,
    /// Zone of the original direction.
    pub zone: u16,
    /// `ct mark`.
    pub mark: u32,
    /// Of the original and the reply direction; `None` if conntrack doesn't count.
    pub packets: Option<[u64; 2]>,
    /// Likewise.
    pub bytes: Option<[u64; 2]>,
}

impl FlowRecord {
    /// What an [`Expression`](super::expression::Expression) is about.
    pub fn subject(&self) -> Subject<'_> {
        let mut interfaces = self.interfaces.iter().map(String::as_str);
        Subject {
            state: &self.state,
            slow: self.path.accelerated == Some(false),
            original: &self.original,
            reply: self.reply.as_ref(),
            interfaces: [interfaces.next(), interfaces.next()],
        }
    }

    /// `flow` as seen from `node`.
    pub fn new(flow: &Flow, node: &Node) -> Self {
        let ago = |at: u64| node.now_ns.saturating_sub(at) / 1_000_000;
        let ingress = flow.seen.map(|counters| {
            counters.map(|c| Ingress {
                packets: c.packets,
                segments: c.segments,
                bytes: c.bytes,
                age_ms: ago(c.first_seen_ns),
                idle_ms: ago(c.last_seen_ns),
                tcp_flags: c.flags & FlowCounters::TCP_FLAGS,
            })
        });
        Self {
            protocol: protocol_name(flow.original.protocol),
            original: flow.original,
            reply: flow.reply,
            client: None,
            server: None,
            state: flow.state.clone(),
            group: Some(flow.group()),
            todo: todo(&flow.state, flow.slow()).map(Cow::Borrowed),
            interfaces: interfaces(flow, node),
            ingress,
            conntrack: flow.entry.as_ref().map(|entry| Conntrack {
                id: entry.id,
                zone: entry.zone,
                mark: entry.mark,
                packets: entry.counters.map(|c| c.map(|c| c.packets)),
                bytes: entry.counters.map(|c| c.map(|c| c.bytes)),
            }),
            path: flow.path,
            rate: None,
        }
    }
}

/// Names of the interfaces that a flow's packets came in on, or `#` and the index of one that is gone.
pub fn interfaces(flow: &Flow, node: &Node) -> Vec<String> {
    flow.interfaces().map(|i| node.names.get(&i).map_or(format!("#{i}"), ToString::to_string)).collect()
}

/// A line of what the agent publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A flow that has crossed the threshold, with its state.
    Crossed {
        /// When that was found out, in ms since 1970 (UTC).
        time_ms: u64,
        /// The flow.
        #[serde(flatten)]
        flow: Box<FlowRecord>,
    },
    /// This reader was too slow: so many records are missing here.
    Lost {
        /// How many.
        records: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        flow::connection::TCP,
        model::{IfIndex, IfName},
        why_not::{Cause, WhyNot},
    };

    fn record(state: State) -> FlowRecord {
        let tuple = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            protocol: TCP,
            source_port: 40000,
            destination_port: 443,
        };
        let node = Node { names: [(IfIndex(2), IfName::new("eth0").unwrap())].into(), ..Node::default() };
        let seen = FlowCounters { packets: 7, ifindex: 2, ..FlowCounters::default() };
        FlowRecord { state, ..FlowRecord::new(&Flow::gone(tuple, seen), &node) }
    }

    #[test]
    fn what_is_written_can_be_read() {
        for state in [
            State::Offloaded,
            State::Gone,
            State::not(WhyNot::OneWay),
            State::because(Cause::about(WhyNot::Helper, "ftp".to_owned())),
        ] {
            let event = Event::Crossed { time_ms: 1, flow: Box::new(record(state)) };
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        }
        assert_eq!(
            serde_json::to_string(&Event::Lost { records: 3 }).unwrap(),
            r#"{"event":"lost","records":3}"#
        );
    }

    #[test]
    fn an_event_has_the_fields_of_the_flow() {
        let event = Event::Crossed { time_ms: 1, flow: Box::new(record(State::not(WhyNot::Local))) };
        let event = serde_json::to_value(&event).unwrap();
        let flow = serde_json::to_value(record(State::not(WhyNot::Local))).unwrap();
        for (field, value) in flow.as_object().unwrap() {
            assert_eq!(event.get(field), Some(value));
        }
        assert_eq!(
            (&event["event"], &event["state"], &event["cause"]),
            (&"crossed".into(), &"never".into(), &"local".into())
        );
    }

    /// Readers of a later version's records go on.
    #[test]
    fn unknown_fields_do_no_harm() {
        let event = Event::Crossed { time_ms: 1, flow: Box::new(record(State::Offloaded)) };
        let mut value = serde_json::to_value(&event).unwrap();
        value["new"] = serde_json::json!({"a": 1});
        assert_eq!(serde_json::from_value::<Event>(value).unwrap(), event);
    }
}
