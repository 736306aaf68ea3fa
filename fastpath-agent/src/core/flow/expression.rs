//! Which flows are meant, in the words that users of tcpdump and ss have in their fingers:
//! `tcp port 443 and not src net 10.1.0.0/16`, `10.1.0.2 :443`, `dev eth0 could-be-fast`.
//!
//! Ends count before and after NAT. `src` is the end that opened the connection, `dst` the other one.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use strum::IntoEnumIterator;

use super::{
    SLOW, STATE_NAMES, State,
    connection::{Tuple, protocol_number},
    group::Group,
};
use crate::core::names::Names;

/// A condition on flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// All of them hold; true if there are none.
    Every(Vec<Self>),
    /// One of them holds.
    Any(Vec<Self>),
    /// It doesn't hold.
    Not(Box<Self>),
    /// IP protocol number.
    Protocol(u8),
    /// An address and a port of one end.
    End(Side, Option<IpNet>, Option<RangeInclusive<u16>>),
    /// Packets come in on this interface.
    Interface(String),
    /// State by name, or `slow`.
    State(String),
    /// Group.
    Group(Group),
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that opened it.
    Source,
    /// The one that was dialled.
    Destination,
    /// Any.
    Either,
}

/// Words of an expression.
const MOST_WORDS: usize = 256;

/// What is known of a flow to be judged.
pub struct Subject<'a> {
    /// Its state.
    pub state: &'a State,
    /// Offloaded, but on the normal path.
    pub slow: bool,
    /// The original direction before NAT.
    pub original: &'a Tuple,
    /// The reply direction before NAT, if known.
    pub reply: Option<&'a Tuple>,
    /// Names of interfaces that packets come in on.
    pub interfaces: [Option<&'a str>; 2],
}

/// A text that isn't an expression. Its second and third lines show where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadExpression {
    what: String,
    text: String,
    at: usize,
    length: usize,
}

impl std::error::Error for BadExpression {}

impl fmt::Display for BadExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.text.get(..self.at).unwrap_or_default().chars().count();
        write!(f, "{}\n  {}\n  {:before$}{}", self.what, self.text, "", "^".repeat(self.length.max(1)))
    }
}

impl Expression {
    /// Parses the words of a command line; `pod` looks its name up in `names`.
    ///
    /// # Errors
    ///
    /// With the word that can't be understood, and what could be there.
    pub fn parse(words: &[impl AsRef<str>], names: &Names) -> Result<Self, BadExpression> {
        let text = words.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        let mut parser = Parser { words: split(&text), text: &text, names, next: 0 };
        if parser.words.is_empty() {
            return Ok(Self::Every(Vec::new()));
        }
        // Each may be in another: the stack isn't endless.
        if parser.words.len() > MOST_WORDS {
            parser.next = MOST_WORDS;
            return Err(parser.bad(format!("there are more than {MOST_WORDS} words")));
        }
        let expression = parser.any()?;
        match parser.peek() {
            None => Ok(expression),
            Some(_) => Err(parser.bad("nothing is open that `)` could close")),
        }
    }

    /// Whether it holds.
    pub fn holds(&self, flow: &Subject<'_>) -> bool {
        match self {
            Self::Every(all) => all.iter().all(|one| one.holds(flow)),
            Self::Any(some) => some.iter().any(|one| one.holds(flow)),
            Self::Not(one) => !one.holds(flow),
            Self::Protocol(protocol) => flow.original.protocol == *protocol,
            Self::End(side, network, ports) => flow.ends(*side).any(|(address, port)| {
                network.is_none_or(|network| network.contains(&address))
                    && ports.as_ref().is_none_or(|ports| ports.contains(&port))
            }),
            Self::Interface(name) => flow.interfaces.iter().flatten().any(|found| found == name),
            Self::State(name) => flow.state.name() == name || flow.slow && name == SLOW,
            Self::Group(group) => Group::of(flow.state, flow.slow) == *group,
        }
    }
}

impl Subject<'_> {
    /// Its ends on this side, before and after NAT.
    fn ends(&self, side: Side) -> impl Iterator<Item = (IpAddr, u16)> {
        let source = |tuple: &Tuple| (tuple.source, tuple.source_port);
        let destination = |tuple: &Tuple| (tuple.destination, tuple.destination_port);
        let opened =
            [Some(source(self.original)), self.reply.map(destination)].map(|end| (Side::Source, end));
        let dialled =
            [Some(destination(self.original)), self.reply.map(source)].map(|end| (Side::Destination, end));
        let ends = opened.into_iter().chain(dialled);
        ends.filter_map(move |(of, end)| end.filter(|_| side == Side::Either || side == of))
    }
}

/// Words and parentheses with their places.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(|c: char| !c.is_whitespace()) {
        rest = &rest[begin..];
        let end = match rest.find(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '!')) {
            Some(0) => 1,
            Some(end) => end,
            None => rest.len(),
        };
        words.push((text.len() - rest.len(), &rest[..end]));
        rest = &rest[end..];
    }
    words
}

struct Parser<'a> {
    text: &'a str,
    names: &'a Names,
    words: Vec<(usize, &'a str)>,
    next: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).map(|(_, word)| *word)
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.peek().is_some_and(|word| word.eq_ignore_ascii_case(wanted));
        self.next += usize::from(found);
        found
    }

    /// What is wrong at the next word.
    fn bad(&self, what: impl Into<String>) -> BadExpression {
        let (at, length) = match self.words.get(self.next) {
            Some((at, word)) => (*at, word.chars().count()),
            None => (self.text.len() + 1, 1),
        };
        BadExpression { what: what.into(), text: self.text.to_owned(), at: at.min(self.text.len()), length }
    }

    /// The next word, read by `read`.
    fn read<T>(&mut self, wanted: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, BadExpression> {
        let value = self.peek().and_then(read).ok_or_else(|| self.bad(format!("{wanted} is wanted here")))?;
        self.next += 1;
        Ok(value)
    }

    fn any(&mut self) -> Result<Expression, BadExpression> {
        let mut some = vec![self.every()?];
        while self.take("or") || self.take("||") {
            some.push(self.every()?);
        }
        Ok(if some.len() == 1 { some.remove(0) } else { Expression::Any(some) })
    }

    fn every(&mut self) -> Result<Expression, BadExpression> {
        let mut all = vec![self.one()?];
        loop {
            let goes_on = self.take("and") || self.take("&&");
            match self.peek() {
                None | Some("or" | "||" | ")") if !goes_on => break,
                _ => all.push(self.one()?),
            }
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expression::Every(all) })
    }

    fn one(&mut self) -> Result<Expression, BadExpression> {
        if self.take("not") || self.take("!") {
            return Ok(Expression::Not(Box::new(self.one()?)));
        }
        if self.take("(") {
            let inner = self.any()?;
            if !self.take(")") {
                return Err(self.bad("`)` is wanted here"));
            }
            return Ok(inner);
        }
        let side = if self.take("src") {
            Side::Source
        } else if self.take("dst") {
            Side::Destination
        } else {
            return self.primitive();
        };
        self.end(side)
    }

    fn end(&mut self, side: Side) -> Result<Expression, BadExpression> {
        const END: &str =
            "host ADDRESS, net NETWORK, port PORT, or an end as 10.1.0.2, 10.1.0.0/16, 10.1.0.2:443 or :443";
        if self.take("host") {
            let address =
                self.read("an address, as 10.1.0.2 or fd00::2,", |word| word.parse::<IpAddr>().ok())?;
            return Ok(Expression::End(side, Some(address.into()), None));
        }
        if self.take("net") {
            let network = self.read("a network, as 10.1.0.0/16 or fd00::/8,", |word| word.parse().ok())?;
            return Ok(Expression::End(side, Some(network), None));
        }
        if self.take("port") || self.take("portrange") {
            return Ok(Expression::End(
                side,
                None,
                Some(self.read("a port or range, as 443 or 8000-8100,", ports)?),
            ));
        }
        let (network, ports) = self.read(END, end)?;
        Ok(Expression::End(side, network, ports))
    }

    fn primitive(&mut self) -> Result<Expression, BadExpression> {
        let Some(word) = self.peek() else { return Err(self.bad("a condition is wanted here")) };
        let lower = word.to_ascii_lowercase();
        if self.take("proto") {
            return self
                .read("a protocol, as tcp, udp, icmp or 47,", protocol_number)
                .map(Expression::Protocol);
        }
        if self.take("dev") || self.take("iface") || self.take("interface") {
            return self
                .read("the name of an interface", |word| Some(Expression::Interface(word.to_owned())));
        }
        if self.take("pod") {
            let names = self.names;
            let addresses = self
                .read("the name of a pod or container with an address on this node", |name| {
                    Some(names.addresses(name)).filter(|found| !found.is_empty())
                })?;
            let ends = addresses
                .into_iter()
                .map(|address| Expression::End(Side::Either, Some(address.into()), None));
            return Ok(Expression::Any(ends.collect()));
        }
        if self.take("state") {
            let wanted = format!("a state ({})", STATE_NAMES.join(", "));
            return self.read(&wanted, state);
        }
        let named = Group::iter().find(|group| group.name() == lower).map(Expression::Group);
        let protocol = protocol_number(&lower).filter(|_| lower.parse::<u8>().is_err());
        let known = named.or_else(|| protocol.map(Expression::Protocol)).or_else(|| state(&lower));
        match known {
            Some(known) => {
                self.next += 1;
                Ok(known)
            }
            None if matches!(lower.as_str(), "host" | "net" | "port" | "portrange") || end(word).is_some() => {
                self.end(Side::Either)
            }
            None => Err(self.bad(format!(
                "`{word}` is no condition: use tcp, udp, host, net, port, src, dst, dev, pod, state, a group (fast, could-be-fast, \
                 never), an end (10.1.0.2:443, :443), and, or, not, ( )"
            ))),
        }
    }
}

fn state(word: &str) -> Option<Expression> {
    STATE_NAMES.contains(&word).then(|| Expression::State(word.to_owned()))
}

fn ports(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

type End = (Option<IpNet>, Option<RangeInclusive<u16>>);

fn end(word: &str) -> Option<End> {
    if let Some(port) = word.strip_prefix(':').filter(|port| !port.starts_with(':')) {
        return Some((None, Some(ports(port)?)));
    }
    if let Ok(end) = word.parse::<SocketAddr>() {
        return Some((Some(end.ip().into()), Some(end.port()..=end.port())));
    }
    let network = word.parse::<IpAddr>().map(IpNet::from).or_else(|_| word.parse());
    Some((Some(network.ok()?), None))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::flow::connection::TCP;

    fn tuple(source: &str, destination: &str) -> Tuple {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (source, destination) = (end(source), end(destination));
        Tuple {
            source: source.ip(),
            destination: destination.ip(),
            protocol: TCP,
            source_port: source.port(),
            destination_port: destination.port(),
        }
    }

    fn names() -> Names {
        let mut names = Names::default();
        names.add("10.2.0.2".parse().unwrap(), "shop/db-0");
        names.add("10.9.9.9".parse().unwrap(), "shop/idle");
        names
    }

    /// 10.1.0.2 dials the service 10.96.0.1:443, which is 10.2.0.2:8443, and is masqueraded as 192.0.2.1.
    fn holds(text: &str) -> bool {
        let (original, reply) =
            (tuple("10.1.0.2:40000", "10.96.0.1:443"), tuple("10.2.0.2:8443", "192.0.2.1:50000"));
        let flow = Subject {
            state: &State::Offloaded,
            slow: false,
            original: &original,
            reply: Some(&reply),
            interfaces: [Some("eth0"), None],
        };
        Expression::parse(&[text], &names()).unwrap_or_else(|error| panic!("{error}")).holds(&flow)
    }

    #[test]
    fn what_users_of_tcpdump_and_ss_type() {
        for text in [
            "",
            "tcp",
            "TCP port 443",
            "tcp and dst port 8443 and src host 10.1.0.2",
            "10.1.0.2:40000 :443",
            "src 192.0.2.1 dst 10.2.0.2:8443",
            "net 10.2.0.0/16 or udp",
            "not udp and not (host 10.9.9.9 or port 80-90)",
            "!udp && ( fast || slow )",
            "dev eth0 state offloaded",
            "port 400-50000",
            "proto 6",
            "pod db-0",
            "tcp and pod shop/db-0",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            "udp",
            "src port 443",
            "dst host 10.1.0.2",
            "dst :40000",
            "host 10.96.0.1 and port 80",
            "10.96.0.1:8443",
            "not tcp",
            "dev eth1",
            "could-be-fast",
            "udp or never",
            "pod idle",
            "tcp and (udp or state gone)",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn an_error_shows_the_place() {
        for (text, said) in [
            (
                "tcp port htp",
                "a port or range, as 443 or 8000-8100, is wanted here\n  tcp port htp\n           ^^^",
            ),
            (
                "pod db",
                "the name of a pod or container with an address on this node is wanted here\n  pod db\n      ^^",
            ),
            ("tcp and", "a condition is wanted here\n  tcp and\n         ^"),
            ("(tcp", "`)` is wanted here\n  (tcp\n      ^"),
            ("tcp ) udp", "nothing is open that `)` could close\n  tcp ) udp\n      ^"),
            (
                "port 90-80",
                "a port or range, as 443 or 8000-8100, is wanted here\n  port 90-80\n       ^^^^^",
            ),
        ] {
            assert_eq!(Expression::parse(&[text], &names()).unwrap_err().to_string(), said);
        }
        let said = Expression::parse(&["tcp", "hots", "10.1.0.2"], &names()).unwrap_err().to_string();
        assert!(
            said.starts_with("`hots` is no condition") && said.ends_with("\n  tcp hots 10.1.0.2\n      ^^^^"),
            "{said}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_an_expression_or_an_error_within_it(text in "(and|or|not|tcp|port|src|:1|[(]|[)]|é| ){0,12}") {
            if let Err(error) = Expression::parse(&[&text], &Names::default()) {
                prop_assert!(error.at <= text.len() && error.to_string().lines().count() == 3, "{error}");
            }
        }
    }
}
