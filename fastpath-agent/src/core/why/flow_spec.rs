//! A flow as it is typed: protocol, source, destination. Any tuple of it will do: before or after NAT, either direction.

use std::net::{IpAddr, SocketAddr};

use crate::core::flow::connection::{Tuple, has_ports, protocol_number};

/// A flow that a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSpec {
    /// One of its tuples, of either direction.
    pub tuple: Tuple,
}

/// Words that aren't a flow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFlow {
    /// The first word.
    #[error("'{0}' is no protocol: use tcp, udp, icmp, icmpv6, gre, esp, sctp, or a number")]
    Protocol(String),
    /// An address with a port.
    #[error("'{0}' is no address with a port: use 10.0.1.2:40000 or [fd00::2]:40000")]
    End(String),
    /// An address without one.
    #[error("'{0}' is no address: this protocol has no ports, use 10.0.1.2 or fd00::2")]
    Address(String),
    /// One of IPv4, one of IPv6.
    #[error("{0} and {1} are of different address families")]
    Families(IpAddr, IpAddr),
}

impl FlowSpec {
    /// From three words.
    pub fn parse(protocol: &str, source: &str, destination: &str) -> Result<Self, BadFlow> {
        let protocol = protocol_number(protocol).ok_or_else(|| BadFlow::Protocol(protocol.to_owned()))?;
        let (source, source_port) = end(source, protocol)?;
        let (destination, destination_port) = end(destination, protocol)?;
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(BadFlow::Families(source, destination));
        }
        Ok(Self { tuple: Tuple { source, destination, protocol, source_port, destination_port } })
    }

    /// Whether a connection with these tuples (as packets of either direction come in, before NAT) is the one asked
    /// for. Turned round, a tuple is what packets of the other direction leave with.
    pub fn is(&self, original: &Tuple, reply: &Tuple) -> bool {
        let asked = [self.tuple, self.tuple.reversed()];
        asked.contains(original) || asked.contains(reply)
    }
}

fn end(word: &str, protocol: u8) -> Result<(IpAddr, u16), BadFlow> {
    if has_ports(protocol) {
        let end: SocketAddr = word.parse().map_err(|_| BadFlow::End(word.to_owned()))?;
        Ok((end.ip(), end.port()))
    } else {
        let address = word.parse().map_err(|_| BadFlow::Address(word.to_owned()))?;
        Ok((address, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_a_tuple() {
        let tcp = FlowSpec::parse("tcp", "10.0.1.2:40000", "10.96.0.1:443").unwrap().tuple;
        assert_eq!(tcp.to_string(), "tcp 10.0.1.2:40000 > 10.96.0.1:443");
        let udp = FlowSpec::parse("UDP", "[fd00::2]:1", "[fd00::3]:65535").unwrap().tuple;
        assert_eq!(udp.to_string(), "udp [fd00::2]:1 > [fd00::3]:65535");
        assert_eq!(FlowSpec::parse("icmp", "10.0.1.2", "10.0.2.2").unwrap().tuple.protocol, 1);
        assert_eq!(FlowSpec::parse("89", "10.0.1.2", "10.0.2.2").unwrap().tuple.protocol, 89);
    }

    #[test]
    fn what_is_no_flow_says_what_would_be() {
        for (words, remedy) in [
            (["tpc", "10.0.1.2:1", "10.0.2.2:2"], "use tcp"),
            (["256", "10.0.1.2", "10.0.2.2"], "use tcp"),
            (["tcp", "10.0.1.2", "10.0.2.2:2"], "10.0.1.2:40000"),
            (["udp", "fd00::2:53", "[fd00::3]:53"], "[fd00::2]:40000"),
            (["tcp", "10.0.1.2:1", "10.0.2.2:65536"], "10.0.1.2:40000"),
            (["icmp", "10.0.1.2:1", "10.0.2.2"], "no ports"),
            (["tcp", "10.0.1.2:1", "[fd00::2]:2"], "families"),
        ] {
            let error = FlowSpec::parse(words[0], words[1], words[2]).unwrap_err();
            assert!(error.to_string().contains(remedy), "{words:?}: {error}");
        }
    }

    #[test]
    fn any_tuple_of_a_connection_names_it() {
        let original = FlowSpec::parse("tcp", "10.1.0.2:40000", "10.96.0.1:443").unwrap().tuple;
        let reply = FlowSpec::parse("tcp", "10.2.0.2:8443", "192.0.2.1:50000").unwrap().tuple;
        for tuple in [original, reply, original.reversed(), reply.reversed()] {
            assert!(FlowSpec { tuple }.is(&original, &reply), "{tuple}");
        }
        let other = Tuple { source_port: 40001, ..original };
        assert!(!FlowSpec { tuple: other }.is(&original, &reply));
        let mixed = Tuple { destination: reply.source, ..original };
        assert!(!FlowSpec { tuple: mixed }.is(&original, &reply));
    }
}
