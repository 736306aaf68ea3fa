//! Numbers, durations and flows in few characters.

use std::net::IpAddr;

use crate::commands::units;
use crate::core::flow::{
    Flow, Node, SLOW, State,
    connection::{Tuple, protocol_name},
};
use crate::core::names::Names;

/// Who dialled what, and who answers if that is another and there is room.
pub(super) fn flow(flow: &Flow, names: &Names, width: usize) -> String {
    let (whole, answers) = names.ends(&flow.original, flow.reply.as_ref());
    let with_answers = answers.map_or(whole.clone(), |answers| format!("{whole} → {answers}"));
    let fits = |text: &String| text.chars().count() <= width;
    [with_answers, whole].into_iter().find(fits).unwrap_or_else(|| ends(&flow.original, width))
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
            format!("{}, but {} packets took the normal path", other.name(), units::short(metered as f64))
        }
        (state @ (State::Stalled(cause) | State::Never(cause)), _) => format!("{}: {cause}", state.name()),
        (other, _) => match flow.forwarded() {
            Some(forwarded) => format!("{}, {forwarded}", other.name()),
            None => other.name().to_owned(),
        },
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
            a: [u8; 16], b: [u8; 16], width in 12..120usize,
        ) {
            let tuple = Tuple { source: a.into(), destination: b.into(), ..tuple("::", "::") };
            prop_assert!(ends(&tuple, width).chars().count() <= width);
        }
    }
}
