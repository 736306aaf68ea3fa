//! Which reasons hold for a flow.

use super::facts::{Direction, FlowFacts, Program, Route, Wanted, Way};

use crate::core::{
    flow::{
        connection::{TcpState, Tuple},
        trace::{Evidence, Trace},
    },
    link::{select::Unmanaged, watch},
    model::{IfIndex, Link},
    route_rule::{PortRange, RouteRule},
    ruleset::expr,
    why_not::Reason,
};

/// A reason that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) reason: Reason,
    /// Measured or read; otherwise the likeliest of what fits.
    pub(super) certain: bool,
}

/// All obstacles, the first to remove first.
pub(super) fn of(facts: &FlowFacts) -> Vec<Obstacle> {
    let mut found = Found { facts, obstacles: Vec::new() };
    match facts.way() {
        None => found.of_stranger(),
        Some(_) if facts.entry.is_none() => found.without_connection(),
        Some(Way::Fast) => {
            found.lost();
            found.other_flowtable();
            // It may still be in the flowtable and can't stay there.
            if facts.moved() == 0 && found.obstacles.is_empty() && facts.ruleset.threshold.is_some() {
                found.interfaces();
            }
        }
        Some(_) if facts.offloaded() => found.offloaded_and_slow(),
        Some(_) => found.not_offloaded(),
    }
    found.obstacles
}

struct Found<'f> {
    facts: &'f FlowFacts,
    obstacles: Vec<Obstacle>,
}

impl Found<'_> {
    fn sure(&mut self, reason: Reason) {
        self.obstacles.push(Obstacle { reason, certain: true });
    }

    fn probable(&mut self, reason: Reason) {
        self.obstacles.push(Obstacle { reason, certain: false });
    }

    /// The flow is unknown.
    fn of_stranger(&mut self) {
        self.programs(|program| program.before_ours, false);
        if !self.facts.counting {
            self.untracked();
        }
    }

    /// Counted, and not in conntrack.
    fn without_connection(&mut self) {
        self.local();
        self.bridged();
        self.untracked();
        self.programs(|_| true, false);
        self.sure(Reason::UnknownToConntrack);
    }

    fn offloaded_and_slow(&mut self) {
        self.lost();
        self.other_flowtable();
        self.interfaces();
        self.packets();
        if self.obstacles.is_empty() {
            self.sure(Reason::Unknown);
        }
    }

    fn not_offloaded(&mut self) {
        let facts = self.facts;
        let Some(entry) = &facts.entry else { return };
        if entry.original.flow_key().is_none() {
            self.sure(Reason::Protocol);
        }
        self.local();
        if self.obstacles.iter().any(|obstacle| obstacle.reason == Reason::Local) {
            return; // all that follows is about forwarding
        }
        self.bridged();
        let vanish = facts.moved() > 0 && facts.tracked == Some(0);
        if vanish {
            self.programs(|_| true, true);
        }
        let Some(threshold) = facts.ruleset.threshold else { return self.sure(Reason::NoRule) };
        for direction in &facts.directions {
            if let Route::Nowhere(errno) = direction.route {
                self.sure(Reason::NoRoute { errno });
            }
        }
        self.interfaces();
        if let Some(exclusion) = facts.ruleset.excluded.clone() {
            self.sure(Reason::Excluded { exclusion });
        }
        if facts.ruleset.revoked {
            self.sure(Reason::Revoked);
        }
        for Wanted { rule, asks, certain } in &facts.wanted {
            let reason = Reason::EveryPacket { rule: rule.clone(), asks: asks.clone() };
            // Packets that leave traces passed the rule that would have kept them from it.
            let certain = *certain && Evidence::of(&facts.traces) != Evidence::Both;
            self.obstacles.push(Obstacle { reason, certain });
        }
        if let Some(policy) = facts.ipsec.first().cloned() {
            self.sure(Reason::Ipsec { policy });
        }
        if let Some(helper) = entry.helper.clone() {
            self.sure(Reason::Helper { helper });
        }
        if entry.status.sequence_adjusted() {
            self.sure(Reason::SequenceAdjusted);
        }
        if !entry.status.seen_reply() {
            self.sure(Reason::OneWay);
        }
        match entry.tcp_state {
            Some(TcpState::Closing) => self.sure(Reason::Closing),
            Some(TcpState::Opening) => self.sure(Reason::NotEstablished),
            Some(TcpState::Established) | None => {}
        }
        let packets = facts.packets();
        if packets <= u64::from(threshold) {
            self.sure(Reason::BelowThreshold { packets, threshold });
        } else if entry.counters.is_none() {
            // Where something else keeps it out, its next packet changes nothing.
            let pending = facts.ruleset.assisted && self.obstacles.is_empty();
            self.sure(Reason::NotCounted { pending });
        }
        if !self.obstacles.is_empty() {
            return;
        }
        self.packets();
        if self.obstacles.is_empty() {
            self.programs(|program| program.before_ours && facts.moved() == 0, false);
        }
        if self.obstacles.is_empty() {
            let reaches_the_rule = !facts.traces.is_empty() || !facts.ruleset.meter;
            let marks = &facts.ruleset.excluded_marks;
            if !marks.is_empty() && facts.moved() > 0 && !reaches_the_rule {
                return self.probable(Reason::Excluded { exclusion: marks.join(" or ") });
            }
            match facts.moved() {
                0 => self.sure(Reason::Idle),
                _ if reaches_the_rule => self.evidence(),
                _ => self.sure(Reason::Blocked),
            }
        }
    }

    /// Packets got as far as our rule, and what they left there wasn't enough.
    fn evidence(&mut self) {
        let facts = self.facts;
        let way = |trace: Trace| format!("{} > {}", facts.name(trace.input), facts.name(trace.output));
        match Evidence::of(&facts.traces) {
            Evidence::Only(_) if facts.ipvs => self.sure(Reason::Ipvs),
            Evidence::Only(direction) => {
                self.sure(Reason::OneDirection { direction: direction.to_string() });
            }
            Evidence::Asymmetric([original, reply]) => {
                self.sure(Reason::Asymmetric { original: way(original), reply: way(reply) });
            }
            Evidence::Both | Evidence::None => {
                let leads_elsewhere = |trace: &&Trace| {
                    let [original, reply] = &facts.directions;
                    let back = match trace.direction {
                        expr::Direction::Original => original.back,
                        expr::Direction::Reply => reply.back,
                    };
                    back.is_some_and(|back| back != trace.input)
                };
                if let Some(rule) = facts.route_rules.iter().find(|rule| self.may_decide(rule)) {
                    self.probable(Reason::RouteRule { rule: rule.to_string() });
                } else if let Some(trace) = facts.traces.iter().find(leads_elsewhere) {
                    self.probable(Reason::NoWayBack { interface: facts.name(trace.input) });
                } else {
                    self.sure(Reason::Unknown);
                }
            }
        }
    }

    /// Whether a policy rule matches packets of one direction, by what is known of them.
    fn may_decide(&self, rule: &RouteRule) -> bool {
        self.facts.directions.iter().any(|direction| {
            let Tuple { source, destination, protocol, source_port, destination_port } = direction.tuple;
            let within = |net: &Option<ipnet::IpNet>, address| net.is_none_or(|net| net.contains(&address));
            let ports = |range: &Option<PortRange>, port| {
                range.is_none_or(|range| (range.first..=range.last).contains(&port))
            };
            let input = direction.input.map(|index| self.facts.name(index));
            rule.ipv6 == source.is_ipv6()
                && rule.input.as_ref().is_none_or(|name| Some(name.to_string()) == input)
                && rule.protocol.is_none_or(|wanted| wanted == protocol)
                && within(&rule.from, source)
                && within(&rule.to, destination)
                && ports(&rule.source_ports, source_port)
                && ports(&rule.destination_ports, destination_port)
        })
    }

    /// What comes in and doesn't leave isn't accelerated.
    fn lost(&mut self) {
        if let Some((address, interface)) = self.facts.dead.first() {
            let interface = self.facts.name(*interface);
            self.sure(Reason::DeadNeighbour { neighbour: address.to_string(), interface });
        } else if let Some(direction) = self.facts.lost() {
            self.sure(Reason::Lost { direction });
        }
    }

    fn local(&mut self) {
        if self.facts.is_local() {
            self.sure(Reason::Local);
        }
    }

    /// It came in on ports of one bridge only, or came in on one and the route leads back out of the same bridge.
    fn bridged(&mut self) {
        let facts = self.facts;
        let mut bridges =
            facts.directions.iter().filter_map(Direction::counted_on).map(|i| facts.bridge_of(i));
        let Some(Some(bridge)) = bridges.next() else { return };
        let same = |other: Option<&Link>| other.is_some_and(|other| other.index == bridge.index);
        let certain = match bridges.next() {
            Some(other) if same(other) => true,
            Some(_) => return,
            None => {
                let out_again = |d: &Direction| matches!(d.route, Route::Forward { output, .. } if output == bridge.index);
                if !facts.directions.iter().all(out_again) {
                    return;
                }
                false
            }
        };
        let bridge = bridge.name.to_string();
        self.obstacles.push(Obstacle { reason: Reason::Bridged { bridge }, certain });
    }

    fn untracked(&mut self) {
        if let Some(rule) = self.facts.notrack.first().cloned() {
            self.probable(Reason::Untracked { rule });
        }
    }

    fn programs(&mut self, suspects: impl Fn(&Program) -> bool, certain: bool) {
        if let Some(program) = self.facts.programs.iter().find(|program| suspects(program)) {
            let reason = Reason::Redirected {
                program: program.name.clone(),
                interface: program.interface.to_string(),
            };
            self.obstacles.push(Obstacle { reason, certain });
        }
    }

    fn interfaces(&mut self) {
        let facts = self.facts;
        let why =
            |index: IfIndex| facts.unmanaged.iter().find(|(i, _)| *i == index).map(|(_, why)| why.clone());
        let [original, reply] = &facts.directions;
        for direction in [original, reply] {
            let output = match direction.route {
                Route::Forward { output, .. } => Some(output),
                _ => None,
            };
            for index in [direction.input, output].into_iter().flatten() {
                if let Some(problem) = why(index) {
                    self.interface(index, problem);
                }
            }
        }
        let replied = facts.entry.as_ref().is_some_and(|entry| entry.status.seen_reply());
        for (direction, seen) in [(original, true), (reply, replied)] {
            let Some(upper) = direction.input.filter(|upper| facts.ruleset.managed.contains(upper)) else {
                continue;
            };
            // Where its packets come in, if they were counted; otherwise where they would have been.
            let lower = match direction.counted_on() {
                Some(lower) => Some(lower),
                None if seen && facts.counting => below(facts, upper),
                None => None,
            };
            if let Some(lower) =
                lower.filter(|lower| !facts.ruleset.managed.contains(lower) && *lower != upper)
                && let Some(upper) = facts.link(upper)
            {
                self.interface(lower, Unmanaged::Layered { upper: upper.name.to_string() });
            }
        }
    }

    fn interface(&mut self, index: IfIndex, problem: Unmanaged) {
        let interface = self.facts.name(index);
        let reason = match problem {
            Unmanaged::FlowsExcluded => Reason::Excluded { exclusion: format!("interface/{interface}") },
            problem => Reason::Interface { interface, problem },
        };
        if self.obstacles.iter().all(|obstacle| obstacle.reason != reason) {
            self.sure(reason);
        }
    }

    /// What keeps single packets on the forward path.
    fn packets(&mut self) {
        let facts = self.facts;
        let slow = facts.slow_moved() > 0;
        if facts.flagged(fastpath_common::FlowCounters::IPV4_OPTIONS) {
            self.obstacles.push(Obstacle { reason: Reason::IpOptions, certain: slow });
        }
        if !facts.offloaded() {
            return;
        }
        if facts.flagged(fastpath_common::FlowCounters::FIRST_FRAGMENT) {
            self.obstacles.push(Obstacle { reason: Reason::Fragments, certain: slow });
        }
        let mut narrowest = None;
        for direction in &facts.directions {
            let Route::Forward { mtu, .. } = direction.route else { continue };
            narrowest = Some(narrowest.map_or(mtu, |least: u32| least.min(mtu)));
            let size = direction.moved.bytes.checked_div(direction.moved.segments).unwrap_or(0);
            if size > u64::from(mtu) {
                return self.sure(Reason::Mtu { size, mtu });
            }
        }
        // Which direction the slow ones belong to, the meter doesn't say; and segments that fit may count as one packet.
        if let (Some(slow), Some(mtu)) = (facts.slow, narrowest) {
            let counter = if slow.moved.packets > 0 { slow.moved } else { slow.counter };
            let size = counter.bytes.checked_div(counter.packets).unwrap_or(0);
            if size > u64::from(mtu) {
                self.probable(Reason::Mtu { size, mtu });
            }
        }
    }

    /// In a flowtable, but hardly in the agent's.
    fn other_flowtable(&mut self) {
        let facts = self.facts;
        if !facts.offloaded() {
            return;
        }
        let path = self.path();
        // One whose devices are all that the flow goes through.
        let fits = |flowtable: &&super::Flowtable| {
            let has = |index: &IfIndex| {
                let name = facts.link(*index).map(|link| &link.name);
                flowtable
                    .devices
                    .as_ref()
                    .is_none_or(|devices| name.is_some_and(|name| devices.contains(name)))
            };
            flowtable.priority.is_some() && path.iter().all(has)
        };
        let Some(flowtable) = facts.flowtables.iter().find(fits) else { return };
        let reason = Reason::OtherFlowtable { flowtable: flowtable.name.clone() };
        let not_by_our_rule = facts.ruleset.threshold.is_none()
            || facts.ruleset.excluded.is_some()
            || facts.ruleset.revoked
            || path.iter().any(|index| !facts.ruleset.managed.contains(index))
            || facts.packets() <= u64::from(facts.ruleset.threshold.unwrap_or(0));
        // The agent's would go on counting for conntrack.
        let not_counted_by_agent = facts.ruleset.counter && facts.moved() > 1 && facts.tracked == Some(0);
        if not_by_our_rule || not_counted_by_agent {
            self.sure(reason);
        } else if flowtable.priority.is_some_and(|priority| priority < facts.ruleset.priority)
            && !facts.ruleset.counter
        {
            self.probable(reason);
        }
    }

    /// The interfaces that routing says the flow goes through.
    fn path(&self) -> Vec<IfIndex> {
        self.facts
            .directions
            .iter()
            .filter_map(|direction| match direction.route {
                Route::Forward { output, .. } => Some(output),
                _ => None,
            })
            .collect()
    }
}

/// The link below `upper` whose packets it hands up, if that isn't managed.
fn below(facts: &FlowFacts, upper: IfIndex) -> Option<IfIndex> {
    let lower = watch::lower_links(facts.links.iter()).remove(&upper)?;
    lower.into_iter().find(|lower| !facts.ruleset.managed.contains(lower))
}
