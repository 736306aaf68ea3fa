//! Which flows are shown, and in which order.

use std::cmp::Ordering;

use ipnet::IpNet;

use super::{
    Flow, Node, SLOW,
    connection::Tuple,
    expression::{Expression, Subject},
    group::Group,
    rates::Row,
    record::FlowRecord,
};
use crate::core::model::IfName;

/// What a flow must have to be shown. Of several values of one kind any will do; every kind that is given must match.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Networks that one end must be in, before or after NAT.
    pub networks: Vec<IpNet>,
    /// Ports that one end must have, before or after NAT.
    pub ports: Vec<u16>,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// Interfaces that its packets come in on.
    pub interfaces: Vec<IfName>,
    /// States, out of [`STATE_NAMES`](crate::core::flow::STATE_NAMES).
    pub states: Vec<String>,
    /// Groups.
    pub groups: Vec<Group>,
    /// What was said in words.
    pub expression: Option<Expression>,
}

impl Filter {
    /// Whether `flow` is shown.
    pub fn matches(&self, flow: &Flow, node: &Node) -> bool {
        self.admits(&flow.subject(node))
    }

    /// Whether a flow that an agent has published is shown.
    pub fn matches_record(&self, flow: &FlowRecord) -> bool {
        self.admits(&flow.subject())
    }

    fn admits(&self, flow: &Subject<'_>) -> bool {
        let any = |empty: bool, found: bool| empty || found;
        let is_state = |wanted: &String| wanted == flow.state.name() || wanted == SLOW && flow.slow;
        let is_in = |name: &&str| {
            self.interfaces.iter().any(|wanted| [wanted.as_str(), wanted.as_text()].contains(name))
        };
        any(self.groups.is_empty(), self.groups.contains(&Group::of(flow.state, flow.slow)))
            && any(self.states.is_empty(), self.states.iter().any(is_state))
            && self.admits_ends(flow.original, flow.reply)
            && any(self.interfaces.is_empty(), flow.interfaces.iter().flatten().any(is_in))
            && self.expression.as_ref().is_none_or(|expression| expression.holds(flow))
    }

    /// Whether protocol, ports and addresses of a connection are those that are asked for.
    pub fn admits_ends(&self, original: &Tuple, reply: Option<&Tuple>) -> bool {
        let tuples = || std::iter::once(original).chain(reply);
        let any = |empty: bool, found: bool| empty || found;
        let has_port =
            |t: &Tuple| self.ports.contains(&t.source_port) || self.ports.contains(&t.destination_port);
        let is_within =
            |t: &Tuple| self.networks.iter().any(|n| n.contains(&t.source) || n.contains(&t.destination));
        any(self.protocols.is_empty(), self.protocols.contains(&original.protocol))
            && any(self.ports.is_empty(), tuples().any(has_port))
            && any(self.networks.is_empty(), tuples().any(is_within))
    }
}

/// By what flows are sorted, largest or most recent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Packets seen at ingress
    Packets,
    /// Bytes seen at ingress
    Bytes,
    /// When the last packet was seen
    Recent,
    /// When the first packet was seen, oldest first
    Age,
    /// Bits per second, with --watch
    Rate,
    /// State
    State,
}

impl Sort {
    /// Order of two flows; flows that are alike in what is asked are told apart by their tuples.
    pub fn compare(self, a: &Row, b: &Row) -> Ordering {
        let rate = |row: &Row| row.rate.map_or(-1.0, |rate| rate.bits);
        let by_rate = rate(b).total_cmp(&rate(a));
        let (a, b) = (&a.flow, &b.flow);
        let order = match self {
            Self::Packets => b.packets().cmp(&a.packets()),
            Self::Bytes => b.bytes().cmp(&a.bytes()),
            Self::Recent => b.last_seen_ns().cmp(&a.last_seen_ns()),
            Self::Age => a.first_seen_ns().unwrap_or(u64::MAX).cmp(&b.first_seen_ns().unwrap_or(u64::MAX)),
            Self::Rate => by_rate,
            Self::State => a.state.cmp(&b.state),
        };
        let end = |f: &Flow| {
            (f.original.source, f.original.source_port, f.original.destination, f.original.destination_port)
        };
        order.then_with(|| end(a).cmp(&end(b)))
    }
}

#[cfg(test)]
mod tests {
    use fastpath_common::FlowCounters;

    use super::*;
    use crate::core::{
        flow::connection::{TCP, UDP},
        model::IfIndex,
    };

    fn flow(source: &str, protocol: u8, packets: u64) -> Flow {
        let tuple = Tuple {
            source: source.parse().unwrap(),
            destination: "192.0.2.9".parse().unwrap(),
            protocol,
            source_port: 40000,
            destination_port: 443,
        };
        Flow::gone(tuple, FlowCounters { packets, ifindex: 2, ..FlowCounters::default() })
    }

    fn node() -> Node {
        Node { names: [(IfIndex(2), IfName::new("eth0").unwrap())].into(), ..Node::default() }
    }

    #[test]
    fn every_kind_must_match_and_any_value_of_a_kind_will_do() {
        let flow = flow("10.1.2.3", TCP, 1);
        let eth = |name: &str| vec![IfName::new(name).unwrap()];
        let yes = [
            Filter::default(),
            Filter { networks: vec!["10.1.0.0/16".parse().unwrap()], ..Filter::default() },
            Filter {
                networks: vec!["fd00::/8".parse().unwrap(), "192.0.2.9/32".parse().unwrap()],
                ..Filter::default()
            },
            Filter {
                ports: vec![80, 443],
                protocols: vec![TCP],
                interfaces: eth("eth0"),
                ..Filter::default()
            },
            Filter { states: vec!["offloaded".to_owned(), "gone".to_owned()], ..Filter::default() },
        ];
        let no = [
            Filter { networks: vec!["10.2.0.0/16".parse().unwrap()], ..Filter::default() },
            Filter { ports: vec![443], protocols: vec![UDP], ..Filter::default() },
            Filter { interfaces: eth("eth1"), ..Filter::default() },
            Filter { states: vec!["offloaded".to_owned()], ..Filter::default() },
        ];
        assert!(yes.iter().all(|f| f.matches(&flow, &node())));
        assert!(no.iter().all(|f| !f.matches(&flow, &node())));
        let record = FlowRecord::new(&flow, &node());
        assert!(yes.iter().all(|f| f.matches_record(&record)));
        assert!(no.iter().all(|f| !f.matches_record(&record)));
        assert_eq!(flow.state, crate::core::flow::State::Gone);
    }

    #[test]
    fn most_packets_come_first() {
        let row = |source, packets| Row { flow: flow(source, TCP, packets), rate: None };
        let mut flows = [row("10.0.0.1", 1), row("10.0.0.3", 9), row("10.0.0.2", 9)];
        flows.sort_by(|a, b| Sort::Packets.compare(a, b));
        assert_eq!(
            flows.map(|row| row.flow.original.source.to_string()),
            ["10.0.0.2", "10.0.0.3", "10.0.0.1"]
        );
    }
}
