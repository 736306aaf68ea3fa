//! Settings of forwarding of all interfaces over rtnetlink (`RTM_GETNETCONF`), and what announcements of them say.

use std::io;

use mnl::Bus;

use super::{
    netlink::{Socket, attributes, u32_at},
    rtnetlink::list_ip,
};
use crate::core::forwarding::{Announced, Setting};

pub(super) const RTM_NEWNETCONF: u16 = 80;
pub(super) const RTM_DELNETCONF: u16 = 81;
const RTM_GETNETCONF: u16 = 82;
/// Length of struct netconfmsg, padded; its first byte is the family.
const NETCONF_HEADER: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;
const NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN: u16 = 6;

/// All settings of both families.
pub fn settings() -> io::Result<Vec<Announced>> {
    let mut socket = Socket::open_on(Bus::Route)?;
    list_ip(&mut socket, RTM_GETNETCONF, [0; NETCONF_HEADER], |message| {
        parse(message.kind(), message.payload())
    })
}

/// What a message says of the settings that matter.
pub(super) fn parse(kind: u16, payload: &[u8]) -> Vec<Announced> {
    let mut interface = None;
    let mut values = Vec::new();
    let Some(&family) = payload.first() else { return Vec::new() };
    for nla in attributes(payload.get(NETCONF_HEADER..).unwrap_or_default()) {
        let value = u32_at(nla.value(), 0).map(u32::cast_signed);
        match nla.kind() {
            NETCONFA_IFINDEX => interface = value,
            kind @ (NETCONFA_FORWARDING | NETCONFA_RP_FILTER | NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN) => {
                values.extend(value.map(|value| (kind, value)));
            }
            _ => {}
        }
    }
    let Some(interface) = interface else { return Vec::new() };
    match kind {
        RTM_NEWNETCONF => {
            let is = |(kind, value)| Announced::Is(Setting { family, interface, kind }, value);
            values.into_iter().map(is).collect()
        }
        RTM_DELNETCONF => vec![Announced::Gone { family, interface }],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_that_decide_over_packets_are_told() {
        let mut payload = vec![libc::AF_INET as u8, 0, 0, 0];
        for (kind, value) in [(NETCONFA_IFINDEX, -1), (NETCONFA_FORWARDING, 1), (4_u16, 7_i32)] {
            payload.extend(8_u16.to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value.to_ne_bytes());
        }
        let family = libc::AF_INET as u8;
        let setting = Setting { family, interface: -1, kind: NETCONFA_FORWARDING };
        assert_eq!(parse(RTM_NEWNETCONF, &payload), [Announced::Is(setting, 1)]);
        assert_eq!(parse(RTM_DELNETCONF, &payload), [Announced::Gone { family, interface: -1 }]);
        assert_eq!(parse(RTM_NEWNETCONF, &payload[..4]), [], "without an interface");
        assert_eq!(parse(RTM_NEWNETCONF, &[]), []);
    }
}
