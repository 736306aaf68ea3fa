//! Which flow `why` is asked for: one of its tuples in full, or as much of it as the user knows.

use std::net::{IpAddr, SocketAddr};

use super::flow_spec::{BadFlow, FlowSpec, protocol};
use crate::core::flow::{Flow, connection::Tuple};

/// What a user types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowQuery {
    /// One of its tuples.
    Exact(FlowSpec),
    /// Some of its ends, perhaps of several flows.
    Partial(Partial),
}

/// What is known of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    protocol: Option<u8>,
    /// At most two: of one tuple, in either order.
    ends: Vec<End>,
}

/// One end, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl FlowQuery {
    /// From one to three words: a protocol, which may be left out, and one or two ends: `10.1.0.2`, `10.1.0.2:40000`, `:443`.
    ///
    /// # Errors
    ///
    /// If they are something else.
    pub fn parse(words: &[impl AsRef<str>]) -> Result<Self, BadFlow> {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        if let [protocol, source, destination] = words[..] {
            match FlowSpec::parse(protocol, source, destination) {
                Ok(spec) => return Ok(Self::Exact(spec)),
                Err(error @ (BadFlow::Protocol(_) | BadFlow::Families(..))) => return Err(error),
                Err(_) => {}
            }
        }
        let protocol = words.first().and_then(|word| protocol(word));
        let ends = &words[usize::from(protocol.is_some())..];
        let ends = ends.iter().map(|word| End::parse(word)).collect::<Result<Vec<_>, _>>()?;
        if ends.is_empty() && protocol.is_none() {
            return Err(BadFlow::Nothing);
        }
        Ok(Self::Partial(Partial { protocol, ends }))
    }
}

impl Partial {
    /// Whether it may be that flow: one of its tuples has these ends, before or after NAT.
    pub fn admits(&self, flow: &Flow) -> bool {
        let tuples = std::iter::once(&flow.original).chain(&flow.reply);
        self.protocol.is_none_or(|protocol| protocol == flow.original.protocol)
            && tuples.flat_map(|tuple| [*tuple, tuple.reversed()]).any(|tuple| self.is_of(&tuple))
    }

    fn is_of(&self, tuple: &Tuple) -> bool {
        let ends = [(tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port)];
        self.ends.iter().zip(ends).all(|(end, (address, port))| {
            end.address.is_none_or(|wanted| wanted == address) && end.port.is_none_or(|wanted| wanted == port)
        })
    }
}

impl End {
    fn parse(word: &str) -> Result<Self, BadFlow> {
        let bad = || BadFlow::PartOfEnd(word.to_owned());
        if let Some(port) = word.strip_prefix(':')
            && !port.starts_with(':')
        {
            return Ok(Self { address: None, port: Some(port.parse().map_err(|_| bad())?) });
        }
        if let Ok(address) = word.parse() {
            return Ok(Self { address: Some(address), port: None });
        }
        let end: SocketAddr = word.parse().map_err(|_| bad())?;
        Ok(Self { address: Some(end.ip()), port: Some(end.port()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::flow::{State, path::Path};

    fn flow(protocol: &str, original: [&str; 2], reply: [&str; 2]) -> Flow {
        let tuple = |[source, destination]: [&str; 2]| {
            FlowSpec::parse(protocol, source, destination).expect("a flow").tuple
        };
        Flow {
            entry: None,
            original: tuple(original),
            reply: Some(tuple(reply)),
            seen: [None; 2],
            state: State::Offloaded,
            path: Path::default(),
        }
    }

    #[test]
    fn ends_of_either_tuple_in_either_order_find_a_flow() {
        let flow = flow("tcp", ["10.1.0.2:40000", "10.96.0.1:443"], ["10.2.0.2:8443", "192.0.2.1:50000"]);
        let finds = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            match FlowQuery::parse(&words).unwrap_or_else(|error| panic!("{words:?}: {error}")) {
                FlowQuery::Exact(spec) => spec.is(&flow.original, &flow.reply.expect("it has one")),
                FlowQuery::Partial(partial) => partial.admits(&flow),
            }
        };
        for words in [
            "10.1.0.2",
            ":443",
            "tcp",
            "tcp :443",
            "10.1.0.2 :443",
            ":443 10.1.0.2",
            "TCP 10.1.0.2 10.96.0.1",
            "6 10.1.0.2:40000",
            ":8443",
            "10.2.0.2 192.0.2.1:50000",
            "tcp 10.1.0.2:40000 10.96.0.1:443",
            "tcp 10.1.0.2 10.96.0.1:443",
        ] {
            assert!(finds(words), "{words}");
        }
        // The last ones mix ends of both tuples.
        for words in
            ["10.1.0.3", ":444", "udp", "udp :443", "10.1.0.2 :444", "10.1.0.2 10.2.0.2", ":443 :8443"]
        {
            assert!(!finds(words), "{words}");
        }
    }

    #[test]
    fn what_is_no_part_of_a_flow_says_what_would_be() {
        for (words, remedy) in [
            (&["443"][..], ":443"),
            (&["tpc", ":443"], ":443"),
            (&["tpc", "10.0.1.2:1", "10.0.2.2:2"], "use tcp"),
            (&["10.0.1.2:70000"], "10.0.1.2:40000"),
            (&[":web"], ":443"),
            (&["fd00::2:53:"], "[fd00::2]:40000"),
            (&["tcp", "10.0.1.2:1", "[fd00::2]:2"], "families"),
            (&[], "name"),
        ] {
            let error = FlowQuery::parse(words).expect_err("no flow");
            assert!(error.to_string().contains(remedy), "{words:?}: {error}");
        }
        assert_eq!(
            FlowQuery::parse(&["::1"]).expect("an address"),
            FlowQuery::Partial(Partial {
                protocol: None,
                ends: vec![End { address: Some("::1".parse().expect("an address")), port: None }],
            })
        );
    }
}
