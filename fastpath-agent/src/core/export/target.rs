//! Where flow records go, as people write it.

use std::fmt;

use super::ipfix;

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams: nobody tells whether they arrive.
    Udp,
    /// A connection.
    Tcp,
}

/// A collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What carries the messages.
    pub transport: Transport,
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// How it is written.
pub const ALLOWED: &str = "use ipfix://HOST[:PORT] for UDP or ipfix+tcp://HOST[:PORT], as ipfix://10.0.0.5:4739 or ipfix+tcp://[fd00::5]";

impl Target {
    /// Reads `ipfix://HOST:PORT` (UDP) or `ipfix+tcp://HOST:PORT`; `None` if it isn't that.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://")?;
        let transport = match scheme {
            "ipfix" | "ipfix+udp" => Transport::Udp,
            "ipfix+tcp" => Transport::Tcp,
            _ => return None,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, behind) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) })
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Some(ipfix::PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
        let fits = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
        fits.then(|| Self { transport, host: host.to_owned(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Udp => "ipfix",
            Transport::Tcp => "ipfix+tcp",
        };
        let host = &self.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        write!(f, "{scheme}://{host}:{}", self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_is_shown() {
        for (text, shown) in [
            ("ipfix://collector:4739", "ipfix://collector:4739"),
            ("ipfix://collector", "ipfix://collector:4739"),
            ("ipfix+udp://10.0.0.5:9995/", "ipfix://10.0.0.5:9995"),
            ("ipfix+tcp://[fd00::5]:99", "ipfix+tcp://[fd00::5]:99"),
            ("ipfix+tcp://[fd00::5]", "ipfix+tcp://[fd00::5]:4739"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!(Target::parse(shown), Some(target));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "collector:4739",
            "http://collector:4739",
            "ipfix://",
            "ipfix://:4739",
            "ipfix://host:0",
            "ipfix://host:70000",
            "ipfix://fd00::5:4739",
            "ipfix://[fd00::5",
            "ipfix://[host]:1",
            "ipfix://host:4739/path",
            "ipfix://host?transport=tcp",
        ] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }
}
