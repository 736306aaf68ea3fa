//! Services of IPVS, from `/proc/net/ip_vs`. Reads only; a kernel without IPVS has none.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

use crate::core::flow::connection::{TCP, Tuple, UDP};

/// Lines of the file that begin with a service's protocol (or mark); servers' lines begin with an arrow.
const SERVICES: [&str; 4] = ["TCP ", "UDP ", "SCTP ", "FWM "];

/// How many there are.
pub fn services() -> usize {
    count(&table())
}

/// Whether a connection with this tuple is opened to one of them.
pub(super) fn has_service(original: &Tuple) -> bool {
    let protocol = match original.protocol {
        TCP => "TCP",
        UDP => "UDP",
        _ => return false,
    };
    let wanted = (original.destination, original.destination_port);
    table().lines().filter_map(|line| service(line, protocol)).any(|service| service == wanted)
}

fn table() -> String {
    fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default()
}

pub(super) fn count(table: &str) -> usize {
    table.lines().filter(|line| SERVICES.iter().any(|start| line.starts_with(start))).count()
}

/// Address and port, both in hexadecimal: `TCP  0A600001:01BB rr`, `TCP  [fd00:0096::0001]:01BB rr`.
pub(super) fn service(line: &str, protocol: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_whitespace();
    let end = (words.next()? == protocol).then(|| words.next()).flatten()?;
    let (address, port) = end.rsplit_once(':')?;
    let address = match address.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?.parse().ok()?,
        None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?)),
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0A010002:01BB      Masq    1      0          0
UDP  [fd00:0096:0000:0000:0000:0000:0000:0001]:0035 rr
";

    #[test]
    fn services_are_counted_and_found() {
        assert_eq!((count(TABLE), count("")), (2, 0));
        let found = |protocol| TABLE.lines().filter_map(|line| service(line, protocol)).collect::<Vec<_>>();
        assert_eq!(found("TCP"), [("10.96.0.1".parse().unwrap(), 443)]);
        assert_eq!(found("UDP"), [("fd00:96::1".parse().unwrap(), 53)]);
    }
}
