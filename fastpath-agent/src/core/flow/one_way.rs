//! Streams that were answered once and go one way since (`iperf3 -u`, RTP): they have no second direction past the threshold
//! that could leave a trace. The agent leaves it in the answer's place, where that is as good: no rule of others can deny a
//! packet of an established connection, and the route that the kernel has for an answer is the way back.

use super::{
    connection::{Entry, Tuple, UDP},
    trace::{Evidence, Trace},
};
use crate::core::{model::IfIndex, ruleset::expr::Direction};

/// Most streams that are looked at together; others stay on the normal path until they signal again.
pub const MOST: usize = 64;

/// A trace to leave, for one conntrack id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The bytes of `CTA_ID`.
    pub id: u32,
    /// Direction of the answers.
    pub direction: Direction,
    /// Where they would come in.
    pub input: IfIndex,
    /// Where they would leave.
    pub output: IfIndex,
}

/// What to ask routing for: whether an answer with this tuple that comes in on [`Answer::input`] and goes to `destination`
/// leaves by [`Answer::output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The trace, if the answer is yes.
    pub answer: Answer,
    /// As answers come in.
    pub tuple: Tuple,
    /// Where they go, behind NAT.
    pub destination: std::net::IpAddr,
}

/// Whether a connection may be such a stream.
pub fn may_be(entry: &Entry) -> bool {
    entry.original.protocol == UDP
        && entry.status.seen_reply()
        && !entry.status.offloaded()
        && entry.helper.is_none()
}

impl Question {
    /// About a connection with these traces; `None` if it isn't such a stream.
    pub fn about(entry: &Entry, traces: &[Trace]) -> Option<Self> {
        let Evidence::Only(stream) = Evidence::of(traces) else { return None };
        let trace = traces.iter().min_by_key(|trace| trace.idle_ms)?;
        let (tuple, destination) = match stream {
            Direction::Original => (entry.reply, entry.original.source),
            Direction::Reply => (entry.original, entry.reply.source),
        };
        let answer =
            Answer { id: entry.id, direction: stream.other(), input: trace.output, output: trace.input };
        Some(Self { answer, tuple, destination })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::flow::connection::Status;

    #[test]
    fn the_answer_takes_the_way_back_of_the_stream() {
        let original = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.96.0.1".parse().unwrap(),
            protocol: UDP,
            source_port: 4000,
            destination_port: 5001,
        };
        let reply = Tuple { source: "10.2.0.2".parse().unwrap(), ..original.reversed() };
        let entry = Entry {
            id: 7,
            original,
            reply,
            status: Status(1 << 1),
            zone: 0,
            tcp_state: None,
            helper: None,
            mark: 0,
            counters: None,
        };
        assert!(may_be(&entry) && !may_be(&Entry { status: Status(0), ..entry.clone() }));
        let trace = |direction, input, output| Trace {
            direction,
            input: IfIndex(input),
            output: IfIndex(output),
            idle_ms: 1,
        };
        let (there, back) = (trace(Direction::Original, 2, 3), trace(Direction::Reply, 3, 2));
        let question = Question::about(&entry, &[there]).unwrap();
        assert_eq!((question.tuple, question.destination), (reply, original.source));
        let answer = Answer { id: 7, direction: Direction::Reply, input: IfIndex(3), output: IfIndex(2) };
        assert_eq!(question.answer, answer);
        assert_eq!(Question::about(&entry, &[back]).unwrap().destination, reply.source);
        assert_eq!(Question::about(&entry, &[there, back]), None, "it has both");
        assert_eq!(Question::about(&entry, &[]), None);
    }
}
