//! Which rules of other programs that want every packet keep a flow off: those whose conditions our table has and the flow meets.

use super::facts::{Direction, Route, Wanted};
use crate::core::{
    flow::connection::Entry,
    link::table::LinkTable,
    model::IfIndex,
    policy::concern::Concern,
    ruleset::{conditions::Conditions, packet::Packet},
};

/// Packets of both directions, as the forward hook sees them.
pub fn packets(entry: &Entry, directions: &[Direction; 2], links: &LinkTable) -> [Packet; 2] {
    let named = |index: IfIndex| Some((index, links.get(index)?.name.clone()));
    let mut packets = Packet::of(entry);
    for (packet, direction) in packets.iter_mut().zip(directions) {
        packet.input = direction.input.and_then(named);
        if let Route::Forward { output, .. } = direction.route {
            packet.output = named(output);
        }
    }
    packets
}

/// Those of the conditions that packets of a direction meet, or may meet; and whether they surely do.
pub fn matching<'c>(
    conditions: &'c [Conditions],
    packets: &'c [Packet; 2],
) -> impl Iterator<Item = (&'c Conditions, bool)> {
    conditions.iter().filter_map(|conditions| {
        let met = packets.each_ref().map(|packet| packet.meets(conditions));
        match met {
            [Some(false), Some(false)] => None,
            met => Some((conditions, met.contains(&Some(true)))),
        }
    })
}

/// The rules behind conditions of our table that the flow meets, sure ones first. Where those conditions aren't a single rule's
/// (there are too many, or it is gone), the rules with conditions of their own that the flow meets.
pub fn named(met: &[(&Conditions, bool)], rules: &[Concern], packets: &[Packet; 2]) -> Vec<Wanted> {
    let mut found: Vec<Wanted> = Vec::new();
    for (conditions, certain) in met {
        let wanting = || rules.iter().filter(|rule| rule.wants_every_packet());
        let is_it =
            |rule: &&Concern| [false, true].iter().any(|in_vrf| rule.left_out(*in_vrf).contains(conditions));
        let wanted = |rule: &Concern, certain| Wanted {
            rule: rule.to_string(),
            asks: rule.cause.to_string(),
            certain,
        };
        let exact: Vec<Wanted> = wanting().filter(is_it).map(|rule| wanted(rule, *certain)).collect();
        if !exact.is_empty() {
            found.extend(exact);
            continue;
        }
        let own = wanting().filter_map(|rule| {
            let left_out = rule.left_out(false);
            let certain = matching(&left_out, packets).map(|(_, certain)| certain).max()?;
            Some(wanted(rule, certain))
        });
        found.extend(own);
    }
    found.sort_by_key(|wanted| !wanted.certain);
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::{Concern, Conditions, Packet, matching, named};
    use crate::core::{
        flow::connection::Tuple,
        policy::{
            concern::Class,
            expr::{Expr, Verdict},
            moments::When,
            rule::Rule,
            traits::Cause,
            walk::Way,
        },
        ruleset::expr::Direction,
    };

    fn limit(handle: u64, source: [u8; 4]) -> Concern {
        let saddr = Expr::Payload { base: 1, offset: 12, length: 4, register: 1 };
        let is = Expr::Compare { register: 1, equal: true, value: u32::from_ne_bytes(source) };
        let exprs = [saddr, is, Expr::Other { name: "limit" }, Expr::Verdict(Verdict::Drop)];
        Concern {
            family: "ip",
            table: "t".to_owned(),
            chain: "c".to_owned(),
            handle,
            comment: None,
            class: Class::EveryPacket,
            cause: Cause { word: "limit", detail: "".into() },
            when: When::default(),
            ways: vec![Way {
                conditions: Rule::new(2, handle, exprs).traits.expect("a limit").conditions,
                ..Way::default()
            }],
            ignored: false,
        }
    }

    #[test]
    fn only_rules_that_the_flow_meets_are_named() {
        let tuple = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.2.0.2".parse().unwrap(),
            protocol: 6,
            source_port: 999,
            destination_port: 80,
        };
        let packets = Direction::ALL.map(|direction| Packet {
            tuple: if direction == Direction::Original { tuple } else { tuple.reversed() },
            input: None,
            output: None,
            direction,
            tuples: [tuple, tuple.reversed()],
            mark: 0,
        });
        let (mut rules, copies): (Vec<_>, Vec<_>) =
            [(1, [10, 1, 0, 2]), (2, [10, 9, 0, 1]), (3, [10, 2, 0, 2])]
                .map(|(handle, source)| limit(handle, source))
                .map(|rule| (rule.clone(), rule.ways[0].conditions.clone()))
                .into_iter()
                .unzip();
        let names = |copies: &[Conditions], rules: &[Concern]| {
            let met: Vec<_> = matching(copies, &packets).collect();
            named(&met, rules, &packets).into_iter().map(|wanted| wanted.rule).collect::<Vec<_>>()
        };
        assert_eq!(names(&copies, &rules), ["ip t c handle 1", "ip t c handle 3"], "either direction");
        assert_eq!(
            names(&[Conditions::default()], &rules),
            ["ip t c handle 1", "ip t c handle 3"],
            "too many"
        );
        assert_eq!(names(&copies[1..2], &rules), [""; 0]);
        assert_eq!(names(&[], &rules), [""; 0], "our table doesn't leave it out");
        rules[0].ignored = true;
        assert_eq!(names(&copies, &rules), ["ip t c handle 3"]);
    }
}
