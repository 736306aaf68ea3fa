//! Numbers, durations and flows in few characters.

use std::net::IpAddr;

use crate::core::flow::{
    Flow, Node, SLOW, State,
    connection::{Tuple, protocol_name},
};

/// Three digits and a decimal prefix: 0, 0.3, 12, 999, 1.23k, 45.6M; five characters at most up to 999T.
pub(super) fn short(value: f64) -> String {
    if value < 0.05 {
        return "0".to_owned();
    }
    if value < 9.95 {
        return format!("{value:.1}");
    }
    if value < 999.5 {
        return format!("{value:.0}");
    }
    let mut scaled = value;
    let mut prefix = ' ';
    for next in ['k', 'M', 'G', 'T'] {
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
        prefix = next;
    }
    match scaled {
        s if s < 9.995 => format!("{s:.2}{prefix}"),
        s if s < 99.95 => format!("{s:.1}{prefix}"),
        s => format!("{s:.0}{prefix}"),
    }
}

/// [`short`], or a dash for what isn't known.
pub(super) fn known(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), short)
}

/// A share from 0 to 1 in percent, or a dash. Never rounded to all or nothing.
pub(super) fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share > 0.0 && share < 0.01 => "<1%".to_owned(),
        Some(share) if share > 0.99 && share < 1.0 => ">99%".to_owned(),
        Some(share) => format!("{:.0}%", share * 100.0),
    }
}

/// A duration in ns, in at most 4 characters up to 999 days.
pub(super) fn duration(ns: u64) -> String {
    match ns / 1_000_000_000 {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// State and, if it is stalled, a word for why.
pub(super) fn state(flow: &Flow) -> String {
    match &flow.state {
        other if flow.slow() => format!("{}, {SLOW}", other.name()),
        state @ (State::Stalled(cause) | State::Never(cause)) => {
            format!("{}: {}", state.name(), cause.why.name())
        }
        State::Idle => "idle".to_owned(),
        State::BelowThreshold => "below".to_owned(),
        other => other.name().to_owned(),
    }
}

/// State and, if it is stalled, all that is known of why.
pub(super) fn state_in_full(flow: &Flow) -> String {
    match (&flow.state, flow.path.metered) {
        (other, Some(metered)) if flow.slow() => {
            format!("{}, but {} packets took the normal path", other.name(), short(metered as f64))
        }
        (state @ (State::Stalled(cause) | State::Never(cause)), _) => format!("{}: {cause}", state.name()),
        (other, _) => other.name().to_owned(),
    }
}

/// Protocol and both ends in `width` characters; ends that are too long lose their beginning.
pub(super) fn ends(tuple: &Tuple, width: usize) -> String {
    let protocol = protocol_name(tuple.protocol);
    let source = end(tuple.source, tuple.source_port);
    let destination = end(tuple.destination, tuple.destination_port);
    let room = width.saturating_sub(protocol.len() + " ".len() + " > ".len());
    // One that needs less than half leaves the rest to the other.
    let for_source = (room / 2).max(room.saturating_sub(destination.len()));
    let source = keep_end(&source, for_source);
    let destination = keep_end(&destination, room.saturating_sub(source.chars().count()));
    format!("{protocol} {source} > {destination}")
}

fn end(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

/// The last `width` bytes of ASCII text, the first of them an ellipsis if something is missing.
fn keep_end(text: &str, width: usize) -> String {
    if text.len() <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    format!("…{}", &text[text.len() - kept..])
}

/// Names of the interfaces that packets come in on, original direction first.
pub(super) fn interfaces(flow: &Flow, node: &Node) -> String {
    let names: Vec<_> = flow
        .interfaces()
        .map(|index| node.names.get(&index).map_or(format!("#{index}"), ToString::to_string))
        .collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::flow::connection::TCP;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.3, "0.3"),
            (9.99, "10"),
            (12.4, "12"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1234.0, "1.23k"),
            (45_600_000.0, "45.6M"),
            (999_900.0, "1.00M"),
            (1e11, "100G"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text, "{value}");
        }
    }

    #[test]
    fn a_share_is_rounded_neither_to_all_nor_to_nothing() {
        let shares = [None, Some(0.0), Some(0.001), Some(0.5), Some(0.999), Some(1.0)];
        assert_eq!(shares.map(percent), ["-", "0%", "<1%", "50%", ">99%", "100%"]);
    }

    #[test]
    fn durations_are_short() {
        let seconds = [0, 119, 120, 7199, 7200, 172_800];
        assert_eq!(seconds.map(|s| duration(s * 1_000_000_000)), ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: TCP,
            source_port: 40000,
            destination_port: 443,
        }
    }

    #[test]
    fn ends_keep_their_ports() {
        let v4 = tuple("10.1.0.2", "10.2.0.2");
        assert_eq!(ends(&v4, 33), "tcp 10.1.0.2:40000 > 10.2.0.2:443");
        assert_eq!(ends(&v4, 31), "tcp …1.0.2:40000 > 10.2.0.2:443");
        let v6 = tuple("2001:db8:aaaa:bbbb:cccc:dddd:eeee:1", "fd00::9");
        assert_eq!(ends(&v6, 36), "tcp …d:eeee:1]:40000 > [fd00::9]:443");
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_its_place(
            value in 0.0..999e12f64, ns: u64, a: [u8; 16], b: [u8; 16], width in 12..120usize,
        ) {
            prop_assert!(short(value).len() <= 5);
            prop_assert!(duration(ns % (999 * 86_400_000_000_000)).len() <= 4);
            let tuple = Tuple { source: a.into(), destination: b.into(), ..tuple("::", "::") };
            prop_assert!(ends(&tuple, width).chars().count() <= width);
        }
    }
}
