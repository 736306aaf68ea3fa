//! Streams that were answered once and go one way since (`iperf3 -u`, RTP): they have no second direction past the threshold
//! that could leave a trace. The agent leaves it in the answer's place, where that is as good: no other program's rule can deny a
//! packet of an established connection, and the route that the kernel has for an answer is the way back.

use std::collections::{HashMap, hash_map};

use super::{
    connection::{Entry, Tuple, UDP},
    trace::{Evidence, Trace},
};
use crate::core::{model::IfIndex, ruleset::expr::Direction};

/// Most streams that are followed; others stay on the normal path.
const MOST: usize = 1024;
/// Most of them that are checked together.
const TOGETHER: usize = 64;
/// First wait until a stream is checked again, in ms; doubles up to [`LOOK_MAX_MS`]. Checks are at multiples of the wait, many
/// streams at one of them.
const LOOK_MS: u64 = 300;
/// Longest wait. A stream that the kernel throws out of the flowtable comes back within it.
const LOOK_MAX_MS: u64 = 30_000;
/// A stream without a packet for so long leaves no trace that another packet could find.
const IDLE_MS: u64 = 2_000;

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
    /// Answers as they are routed.
    pub routed: Tuple,
}

/// Whether a connection may be such a stream, offloaded or not.
pub fn may_be(entry: &Entry) -> bool {
    entry.original.protocol == UDP && entry.status.seen_reply() && entry.helper.is_none()
}

/// The streams that are followed, offloaded or not, by the tuple of the original direction. Time is handed in as
/// milliseconds since any fixed point.
#[derive(Debug, Default)]
pub struct Streams(HashMap<Tuple, Stream>);

/// What to do about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// It isn't offloaded: a trace may be left for it.
    Help,
    /// It is idle and followed no more: its next packet has to signal again.
    Arm,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    /// Counted by conntrack at the last look, and when that was.
    packets: u64,
    looked_ms: u64,
    due_ms: u64,
    wait_ms: u64,
}

impl Streams {
    /// A connection that has crossed the threshold.
    pub fn consider(&mut self, entry: &Entry, now_ms: u64) {
        if !may_be(entry) || self.0.len() >= MOST {
            return;
        }
        let packets = packets(entry);
        let stream = Stream { id: entry.id, packets, looked_ms: now_ms, due_ms: now_ms, wait_ms: LOOK_MS };
        match self.0.entry(entry.original) {
            hash_map::Entry::Occupied(known) if known.get().id == entry.id => {}
            known => drop(known.insert_entry(stream)),
        }
    }

    /// When to check one.
    pub fn due_ms(&self) -> Option<u64> {
        self.0.values().map(|stream| stream.due_ms).min()
    }

    /// Those to look at now.
    pub fn due(&self, now_ms: u64) -> Vec<Tuple> {
        let due = self.0.iter().filter(|(_, stream)| stream.due_ms <= now_ms);
        due.map(|(tuple, _)| *tuple).take(TOGETHER).collect()
    }

    /// What a check found.
    pub fn looked(&mut self, tuple: &Tuple, entry: Option<&Entry>, now_ms: u64) -> Next {
        let hash_map::Entry::Occupied(mut known) = self.0.entry(*tuple) else { return Next::Nothing };
        let stream = known.get_mut();
        let Some(entry) = entry.filter(|entry| entry.id == stream.id && may_be(entry)) else {
            known.remove();
            return Next::Nothing;
        };
        let idle = packets(entry) == stream.packets && entry.counters.is_some();
        if idle && !entry.status.offloaded() && now_ms >= stream.looked_ms + IDLE_MS {
            known.remove();
            return Next::Arm;
        }
        if !idle {
            (stream.packets, stream.looked_ms) = (packets(entry), now_ms);
        }
        stream.due_ms = (now_ms + 1).next_multiple_of(stream.wait_ms);
        stream.wait_ms = (2 * stream.wait_ms).min(LOOK_MAX_MS);
        if entry.status.offloaded() { Next::Nothing } else { Next::Help }
    }

    /// Those couldn't be checked: again later.
    pub fn later(&mut self, tuples: &[Tuple], now_ms: u64) {
        for tuple in tuples {
            if let Some(stream) = self.0.get_mut(tuple) {
                stream.due_ms = now_ms + LOOK_MAX_MS;
            }
        }
    }

    /// The flowtable was emptied. The kernel takes its time to take marks away, so that several checks may be needed.
    pub fn emptied(&mut self, now_ms: u64) {
        for stream in self.0.values_mut() {
            stream.due_ms = now_ms + LOOK_MS;
            stream.wait_ms = LOOK_MS;
        }
    }
}

fn packets(entry: &Entry) -> u64 {
    entry.counters.iter().flatten().map(|counter| counter.packets).sum()
}

impl Question {
    /// About a connection with these traces; `None` if it isn't such a stream, or has no packets now.
    pub fn about(entry: &Entry, traces: &[Trace]) -> Option<Self> {
        let Evidence::Only(stream) = Evidence::of(traces) else { return None };
        let trace = traces.iter().min_by_key(|trace| trace.idle_ms)?;
        let [original, reply] = entry.forwarded();
        let routed = if stream == Direction::Original { reply } else { original };
        let answer =
            Answer { id: entry.id, direction: stream.other(), input: trace.output, output: trace.input };
        Some(Self { answer, routed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{flow::connection::Status, model::Counter};

    fn entry() -> Entry {
        let original = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.96.0.1".parse().unwrap(),
            protocol: UDP,
            source_port: 4000,
            destination_port: 5001,
        };
        Entry {
            id: 7,
            original,
            reply: Tuple { source: "10.2.0.2".parse().unwrap(), ..original.reversed() },
            status: Status(1 << 1),
            zone: 0,
            tcp_state: None,
            helper: None,
            mark: 0,
            counters: None,
        }
    }

    #[test]
    fn streams_are_looked_at_ever_less_until_the_flowtable_is_emptied() {
        let (stream, mut streams) = (entry(), Streams::default());
        let offloaded = Entry { status: Status(1 << 1 | 1 << 14), ..entry() };
        for not_one in [
            Entry { status: Status(0), ..entry() },
            Entry { original: Tuple { protocol: 6, ..stream.original }, ..entry() },
            Entry { helper: Some("sip".to_owned()), ..entry() },
        ] {
            streams.consider(&not_one, 0);
            assert_eq!(streams.due_ms(), None, "{not_one:?}");
        }
        streams.consider(&stream, 5);
        streams.consider(&stream, 9);
        assert_eq!((streams.due(4), streams.due(5)), (vec![], vec![stream.original]));
        assert_eq!(streams.looked(&stream.original, Some(&stream), 5), Next::Help);
        assert_eq!(streams.due_ms(), Some(300));
        assert_eq!(streams.looked(&stream.original, Some(&offloaded), 300), Next::Nothing);
        assert_eq!(streams.due_ms(), Some(600));
        for _ in 0..9 {
            streams.looked(&stream.original, Some(&offloaded), 1000);
        }
        assert_eq!(streams.due_ms(), Some(30_000), "all streams of that age at once");
        streams.emptied(2000);
        assert_eq!(streams.due_ms(), Some(2300));
        let another = Entry { id: 8, ..entry() };
        assert_eq!(streams.looked(&stream.original, Some(&another), 2300), Next::Nothing);
        assert_eq!(streams.due_ms(), None);
    }

    #[test]
    fn idle_streams_signal_again() {
        let counted = |packets| Entry { counters: Some([Counter { packets, bytes: 0 }; 2]), ..entry() };
        let tuple = entry().original;
        let mut streams = Streams::default();
        streams.consider(&counted(20), 0);
        assert_eq!(streams.looked(&tuple, Some(&counted(20)), 0), Next::Help);
        assert_eq!(streams.looked(&tuple, Some(&counted(21)), 300), Next::Help);
        assert_eq!(streams.looked(&tuple, Some(&counted(21)), 2200), Next::Help);
        assert_eq!(streams.looked(&tuple, Some(&counted(21)), 2400), Next::Arm);
        assert_eq!(streams.due_ms(), None);
    }

    #[test]
    fn the_answer_takes_the_way_back_of_the_stream() {
        let entry = entry();
        let (original, reply) = (entry.original, entry.reply);
        let towards = |from: Tuple, to: Tuple| Tuple {
            destination: to.source,
            destination_port: to.source_port,
            ..from
        };
        let trace = |direction, input, output| Trace {
            direction,
            input: IfIndex(input),
            output: IfIndex(output),
            idle_ms: 1,
        };
        let (there, back) = (trace(Direction::Original, 2, 3), trace(Direction::Reply, 3, 2));
        let question = Question::about(&entry, &[there]).unwrap();
        assert_eq!(question.routed, towards(reply, original));
        let answer = Answer { id: 7, direction: Direction::Reply, input: IfIndex(3), output: IfIndex(2) };
        assert_eq!(question.answer, answer);
        assert_eq!(Question::about(&entry, &[back]).unwrap().routed, towards(original, reply));
        assert_eq!(Question::about(&entry, &[there, back]), None, "it has both");
        assert_eq!(Question::about(&entry, &[]), None);
    }
}
