//! Follows changes that decide over forwarded packets and that neither links nor the ruleset announce: policy rules, routes that
//! the flowtable doesn't notice, settings of forwarding, traffic control. Decides nothing about them.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::{collections::BTreeSet, io};

use mnl::Bus;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Neighbourhood,
    netconf::{self, RTM_DELNETCONF, RTM_NEWNETCONF},
    netlink::{Attribute, Message, Socket, attributes, filter::statement, u32_at},
    surroundings::{self, Ask, Report},
};
use crate::core::{forwarding::Announced, model::IfIndex, policy::known::Known};

// Groups and messages, include/uapi/linux/rtnetlink.h.
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_NEWCHAIN: u16 = 100;
const RTM_DELCHAIN: u16 = 101;
/// Where struct tcmsg has the interface's index.
const TC_INDEX: usize = 4;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// Policy rules changed.
    RouteRules,
    /// An IPv6 route came into another table than main, for packets that may have found theirs in a table that is asked later. The
    /// kernel asks a cached route only whether its own table has changed (`fib6_check`, net/ipv6/route.c). Of IPv4 any change
    /// makes it ask again.
    Routes,
    /// Settings of forwarding were announced.
    Forwarding(Vec<Announced>),
    /// Traffic control of an interface changed; `None`: of some, which isn't told (shared blocks).
    TrafficControl(Option<IfIndex>),
    /// Announcements were lost (`ENOBUFS`).
    Overrun,
}

/// A socket that gets them.
pub struct NodeMonitor(AsyncFd<Socket>);

impl NodeMonitor {
    /// Begins to listen. Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let groups = [
            RTNLGRP_TC,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV6_RULE,
            RTNLGRP_IPV4_NETCONF,
            RTNLGRP_IPV6_NETCONF,
        ];
        let groups = groups.into_iter().fold(0, |mask, group| mask | 1 << (group - 1));
        let socket = Socket::listen_on(Bus::Route, groups, &but_ordinary_routes())?;
        // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }
}

impl Neighbourhood for NodeMonitor {
    async fn next(&mut self) -> io::Result<Vec<NodeEvent>> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            match ready.try_io(|socket| receive(socket.get_mut())) {
                Err(_not_ready) => {}
                Ok(result) => return result,
            }
        }
    }

    fn settings(&mut self) -> io::Result<Vec<Announced>> {
        netconf::settings()
    }

    fn legacy_tables(&self) -> Option<io::Result<BTreeSet<String>>> {
        surroundings::may_have_legacy_tables().then(surroundings::legacy_tables)
    }

    fn reader(&self) -> fn(&mut Known, &Ask) -> Report {
        surroundings::read
    }
}

/// At most so many datagrams at a time, so that others get their turn.
const AT_A_TIME: usize = 256;

fn receive(socket: &mut Socket) -> io::Result<Vec<NodeEvent>> {
    let mut events = Vec::new();
    let (mut taken, mut lost) = (0, false);
    // While it is full the kernel goes on dropping, without a further error: what is lost is known once it is empty.
    while lost || taken < AT_A_TIME {
        taken += 1;
        match socket.next_notification(|message| {
            if let Some(event) = parse(message)
                && events.last() != Some(&event)
            {
                events.push(event);
            }
        }) {
            Ok(true) => {}
            Ok(false) if events.is_empty() && !lost => return Err(io::ErrorKind::WouldBlock.into()),
            Ok(false) => break,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
            Err(error) => return Err(error),
        }
    }
    if lost {
        events.push(NodeEvent::Overrun);
    }
    Ok(events)
}

pub(super) fn parse(message: &Message<'_>) -> Option<NodeEvent> {
    match message.kind() {
        RTM_NEWRULE | RTM_DELRULE => Some(NodeEvent::RouteRules),
        RTM_NEWROUTE if !is_near(message) => Some(NodeEvent::Routes),
        RTM_NEWNETCONF | RTM_DELNETCONF => {
            Some(NodeEvent::Forwarding(netconf::parse(message.kind(), message.payload())))
        }
        RTM_NEWQDISC | RTM_DELQDISC | RTM_NEWTFILTER | RTM_DELTFILTER | RTM_NEWCHAIN | RTM_DELCHAIN => {
            let index = u32_at(message.payload(), TC_INDEX)?;
            // Of a shared block (TCM_IFINDEX_MAGIC_BLOCK) it isn't one.
            let index = (1..=i32::MAX.cast_unsigned()).contains(&index).then_some(IfIndex(index));
            Some(NodeEvent::TrafficControl(index))
        }
        _ => None,
    }
}

/// Classic BPF: routes that go don't get in, nor those of table main. A router may have hundreds of thousands, which would wake the agent
/// and drive out what it has to hear.
fn but_ordinary_routes() -> [libc::sock_filter; 7] {
    // nlmsg_type of struct nlmsghdr, rtm_table of struct rtmsg behind it.
    const TYPE_OFFSET: u32 = 4;
    const TABLE_OFFSET: u32 = 20;
    const MAIN: u32 = 254;
    // The load is big-endian, the header isn't.
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let jump =
        |k, jt, jf| libc::sock_filter { jt, jf, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) };
    [
        statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, TYPE_OFFSET),
        jump(kind(RTM_DELROUTE), 3, 0),
        jump(kind(RTM_NEWROUTE), 0, 3),
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, TABLE_OFFSET),
        jump(MAIN, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, 0),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ]
}

/// Whether a route is to link-local or multicast addresses, to which nothing is forwarded: each new link has some in table local.
fn is_near(message: &Message<'_>) -> bool {
    // struct rtmsg, enum rtattr_type_t.
    const MESSAGE_BYTES: usize = 12;
    const DESTINATION_LENGTH: usize = 1;
    const DESTINATION: u16 = 1;
    let payload = message.payload();
    let length = payload.get(DESTINATION_LENGTH).copied().unwrap_or(0);
    let of_destination = |nla: Attribute<'_>| {
        nla.kind() == DESTINATION
            && match nla.value() {
                [0xff, ..] => length >= 8,
                [0xfe, 0x80..=0xbf, ..] => length >= 10,
                _ => false,
            }
    };
    attributes(payload.get(MESSAGE_BYTES..).unwrap_or_default()).any(of_destination)
}
