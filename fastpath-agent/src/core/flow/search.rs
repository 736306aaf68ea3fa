//! What a user types to find flows: an expression as in `flows`, or words, all of which must match. Any text is a valid search.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{Flow, Node, SLOW, connection::protocol_name, expression::Expression};
use crate::core::names::Names;

/// What a flow must match. Nothing at all matches every flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// If the text is one.
    expression: Option<Expression>,
    /// Otherwise all of these.
    words: Vec<Word>,
    /// Of ends.
    names: Arc<Names>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// An address, or a network in CIDR notation: one end must be in it.
    Network(IpNet),
    /// A number: one end must have this port.
    Port(u16),
    /// Anything else, in lower case: a part of an address, name, interface, protocol, state or cause.
    Part(String),
}

impl Search {
    /// Reads an expression, or words that white space separates. Ends are found by `names` too.
    pub fn new(text: &str, names: Arc<Names>) -> Self {
        let words: Vec<_> = text.split_whitespace().collect();
        let expression = Expression::parse(&words, &names).ok().filter(|_| !words.is_empty());
        Self { expression, words: words.into_iter().map(Word::new).collect(), names }
    }

    /// Whether `flow` has it all. Ends count before and after NAT.
    pub fn matches(&self, flow: &Flow, node: &Node) -> bool {
        if let Some(expression) = &self.expression {
            return expression.holds(&flow.subject(node));
        }
        self.words.iter().all(|word| word.matches(flow, node, &self.names))
    }
}

impl Word {
    fn new(text: &str) -> Self {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Self::Network(address.into());
        }
        if let Ok(network) = text.parse() {
            return Self::Network(network);
        }
        let digits = text.strip_prefix(':').unwrap_or(text);
        match digits.parse() {
            Ok(port) if digits.bytes().all(|b| b.is_ascii_digit()) => Self::Port(port),
            _ => Self::Part(text.to_lowercase()),
        }
    }

    fn matches(&self, flow: &Flow, node: &Node, names: &Names) -> bool {
        let mut tuples = std::iter::once(&flow.original).chain(flow.reply.as_ref());
        match self {
            Self::Network(network) => {
                tuples.any(|t| network.contains(&t.source) || network.contains(&t.destination))
            }
            Self::Port(port) => tuples.any(|t| t.source_port == *port || t.destination_port == *port),
            Self::Part(part) => {
                let has = |text: &str| text.to_lowercase().contains(part);
                let interfaces = || flow.interfaces().filter_map(|index| node.names.get(&index));
                let end = |address: IpAddr| has(&address.to_string()) || names.of(address).is_some_and(has);
                has(flow.state.name())
                    || flow.slow() && has(SLOW)
                    || has(&protocol_name(flow.original.protocol))
                    || interfaces().any(|name| has(name.as_str()))
                    || flow.state.cause().is_some_and(|cause| has(&cause.to_string()))
                    || has(flow.group().name())
                    || tuples.any(|t| end(t.source) || end(t.destination))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fastpath_common::FlowCounters;
    use proptest::prelude::*;

    use super::*;
    use crate::core::why_not::WhyNot;
    use crate::core::{
        flow::connection::{TCP, Tuple},
        model::{IfIndex, IfName},
    };

    fn flow() -> Flow {
        let tuple = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "fd00::9".parse().unwrap(),
            protocol: TCP,
            source_port: 40000,
            destination_port: 443,
        };
        Flow::gone(tuple, FlowCounters { ifindex: 2, ..FlowCounters::default() })
    }

    fn found(text: &str) -> bool {
        let node = Node { names: [(IfIndex(2), IfName::new("vethA1").unwrap())].into(), ..Node::default() };
        Search::new(text, Arc::default()).matches(&flow(), &node)
    }

    #[test]
    fn words_match_addresses_ports_interfaces_protocols_and_states() {
        for yes in [
            "",
            " ",
            "10.1.0.2",
            "10.1.0.0/16",
            "10.1.",
            "FD00:",
            "443",
            ":443",
            "veth",
            "VETHa1",
            "tcp",
            "gon",
        ] {
            assert!(found(yes), "{yes:?}");
        }
        // A whole address is not a part of a longer one, a number is a whole port.
        for no in ["10.1.0.20", "10.2.0.0/16", "44", "4430", "udp", "eth0", "offloaded", "70000"] {
            assert!(!found(no), "{no:?}");
        }
    }

    #[test]
    fn all_words_must_match() {
        assert!(found("10.1.0.0/16 443 tcp gone"));
        assert!(!found("10.1.0.0/16 444"));
    }

    #[test]
    fn an_expression_is_taken_as_one() {
        assert!(found("tcp and not src port 443") && found("net 10.1.0.0/16 or udp"));
        assert!(!found("not tcp") && !found("tcp and src port 443") && !found("fast"));
        // Not yet, while it is typed.
        assert!(!found("tcp and not"));
    }

    #[test]
    fn a_cause_is_found() {
        let mut flow = flow();
        flow.state = crate::core::flow::State::not(WhyNot::OneWay);
        assert!(Search::new("stalled one direction", Arc::default()).matches(&flow, &Node::default()));
        assert!(!Search::new("helper", Arc::default()).matches(&flow, &Node::default()));
    }

    proptest! {
        #[test]
        fn any_text_is_a_search_and_more_words_find_no_more(a in ".*", b in ".*") {
            let both = format!("{a} {b}");
            prop_assert_eq!(found(&both), found(&a) && found(&b));
        }
    }
}
