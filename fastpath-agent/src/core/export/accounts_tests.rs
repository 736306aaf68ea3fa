//! Whatever is read when, and however often the agent starts again: what was counted is exported once.

use proptest::prelude::*;

use super::*;
use crate::core::{
    export::journal::{self, Place},
    flow::connection::{Status, UDP},
    model::IfIndex,
    why_not::WhyNot,
};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1000 * SECOND;
const OFFLOAD: u32 = 1 << 14;
const SEEN_REPLY: u32 = 1 << 1;

fn timeouts(active: u64, inactive: u64) -> Timeouts {
    Timeouts { active_ns: active * SECOND, inactive_ns: inactive * SECOND }
}

fn now(second: u64) -> Now {
    Now { ns: START + second * SECOND, unix_ms: 1_700_000_000_000 + second * 1000 }
}

fn node() -> Node {
    Node { threshold: Some(20), metered: true, managed: [IfIndex(2), IfIndex(3)].into(), ..Node::default() }
}

fn tuple(number: u16, reply: bool) -> Tuple {
    let client = ([10, 1, 0, 2].into(), 40_000 + number);
    // Destination NAT: the replies come from elsewhere.
    let server = if reply { ([10, 2, 0, 2].into(), 80) } else { ([10, 96, 0, 1].into(), 443) };
    let ((source, source_port), (destination, destination_port)) =
        if reply { (server, client) } else { (client, server) };
    Tuple { source, destination, protocol: UDP, source_port, destination_port }
}

/// A connection as it is counted: conntrack's packets and the programs', 100 bytes each.
#[derive(Clone, Debug)]
struct Connection {
    number: u16,
    id: u32,
    packets: [u64; 2],
    seen: [u64; 2],
    /// The tuple, for the programs.
    first: u64,
    began: u64,
    last: u64,
    counted: bool,
    offloaded: bool,
    went_over: bool,
    status: u32,
}

impl Connection {
    fn new(number: u16, id: u32, second: u64) -> Self {
        Self {
            number,
            id,
            packets: [0; 2],
            seen: [0; 2],
            first: second,
            began: second,
            last: second,
            counted: true,
            offloaded: false,
            went_over: false,
            status: 0,
        }
    }

    fn send(&mut self, packets: [u64; 2], second: u64) {
        for (direction, more) in packets.into_iter().enumerate() {
            self.packets[direction] += more;
            self.seen[direction] += more;
        }
        self.last = second;
    }

    fn entry(&self) -> Entry {
        let count = |packets| Counter { packets, bytes: packets * 100 };
        Entry {
            id: self.id,
            original: tuple(self.number, false),
            reply: tuple(self.number, true),
            status: Status(self.status | if self.offloaded { OFFLOAD } else { 0 }),
            tcp_state: None,
            helper: None,
            zone: 0,
            mark: 0,
            counters: self.counted.then(|| self.packets.map(count)),
        }
    }

    fn seen(&self) -> [Option<FlowCounters>; 2] {
        let mut ifindex = 1;
        self.seen.map(|packets| {
            ifindex += 1;
            (packets > 0).then(|| FlowCounters {
                packets,
                bytes: packets * 100,
                first_seen_ns: now(self.first).ns,
                last_seen_ns: now(self.last).ns,
                ifindex,
                flags: if self.offloaded || self.went_over { FlowCounters::WENT_OVER } else { 0 },
                ..FlowCounters::default()
            })
        })
    }

    fn flow(&self) -> Flow {
        Flow::join(self.entry(), self.seen(), &node())
    }
}

fn read(accounts: &mut Accounts, at: u64, there: &[&Connection], gone: &[&Connection]) -> Vec<Record> {
    let node = node();
    let mut reading = accounts.begin(&node, now(at), true, true);
    for connection in there {
        reading.add(&connection.flow(), Some(&Metered::Nothing));
    }
    for connection in gone {
        for (direction, seen) in connection.seen().into_iter().enumerate() {
            if let Some(seen) = seen {
                reading.add(&Flow::gone(tuple(connection.number, direction == 1), seen), None);
            }
        }
    }
    reading.end();
    accounts.settle(&node, now(at));
    accounts.take_due()
}

fn end(accounts: &mut Accounts, at: u64, connection: &Connection) -> Vec<Record> {
    let entry = connection.entry();
    let ended = Ended { entry: &entry, times_ns: None, seen: connection.seen(), metered: Metered::Nothing };
    accounts.ended(&ended, &node(), now(at));
    accounts.take_due()
}

fn packets(records: &[Record]) -> u64 {
    records.iter().map(|record| record.count.packets).sum()
}

/// As a restart does it: the file has what was known at some time since the last reading, and what ended since.
fn restarted(accounts: Accounts, ends: &[u8]) -> Accounts {
    let place = Place::default();
    let mut bytes = journal::snapshot(&place, &accounts, std::iter::empty(), 0);
    bytes.extend(ends);
    journal::read(&bytes, &place, accounts.timeouts()).unwrap().accounts
}

/// An agent that has read once while nothing was there.
fn begun() -> Accounts {
    let mut accounts = Accounts::new(timeouts(60, 60));
    read(&mut accounts, 0, &[], &[]);
    accounts
}

#[test]
fn a_record_has_both_ways_nat_and_interfaces() {
    let mut accounts = begun();
    let mut connection = Connection::new(0, 7, 10);
    connection.send([30, 40], 20);
    let records = read(&mut accounts, 60, &[&connection], &[]);
    let [original, reply] = &records[..] else { panic!("{records:?}") };
    assert_eq!((original.tuple, original.leaves), (tuple(0, false), tuple(0, true).reversed()));
    assert_eq!((reply.tuple, reply.leaves), (tuple(0, true), tuple(0, false).reversed()));
    assert_eq!((original.count.packets, reply.count.packets, reply.count.bytes), (30, 40, 4000));
    assert_eq!((original.reply, reply.reply, original.id, original.reason), (false, true, 7, Reason::Active));
    assert_eq!((original.start_ms, original.end_ms), (now(10).unix_ms, now(20).unix_ms));
    let seen = original.seen.unwrap();
    assert_eq!((seen.input, seen.output, seen.fast.packets), (2, 3, 0));
    // The next one begins where this one ended.
    connection.send([1, 0], 100);
    let records = read(&mut accounts, 120, &[&connection], &[]);
    assert_eq!(
        (records.len(), records[0].start_ms, records[0].end_ms),
        (1, now(20).unix_ms, now(100).unix_ms)
    );
}

#[test]
fn what_bypassed_is_what_is_neither_young_nor_metered() {
    let mut accounts = begun();
    let mut connection = Connection { offloaded: true, ..Connection::new(0, 7, 10) };
    connection.send([60, 61], 20);
    let fast = |records: &[Record]| records.iter().map(|r| r.seen.unwrap().fast.packets).sum::<u64>();
    assert_eq!(fast(&read(&mut accounts, 60, &[&connection], &[])), 100);
    connection.send([50, 50], 70);
    assert_eq!(fast(&read(&mut accounts, 120, &[&connection], &[])), 100);
    connection.send([5, 5], 130);
    assert_eq!(fast(&end(&mut accounts, 131, &connection)), 10);
}

/// The kernel's word that a flow went into the flowtable stays with the tuple, whatever happens to the flow and to the next one.
#[test]
fn what_left_the_flowtable_does_not_bypass_and_nor_does_a_young_flow() {
    let went_over = |mut connection: Connection| {
        connection.went_over = true;
        connection
    };
    let fast = |records: &[Record]| records.iter().map(|r| r.seen.unwrap().fast.packets).sum::<u64>();
    let mut accounts = begun();
    let mut revoked = went_over(Connection::new(0, 7, 10));
    revoked.send([60, 61], 59);
    revoked.status = SEEN_REPLY;
    let node = node();
    let mut reading = accounts.begin(&node, now(60), true, true);
    let flow = Flow { state: State::not(WhyNot::Revoked), ..revoked.flow() };
    reading.add(&flow, None);
    reading.end();
    assert_eq!(fast(&accounts.take_due()), 0);
    revoked.send([60, 61], 70);
    assert_eq!(fast(&end(&mut accounts, 71, &revoked)), 0);
    // Its port is used again.
    let mut young = went_over(Connection { seen: revoked.seen, first: 10, ..Connection::new(0, 8, 80) });
    young.send([2, 2], 81);
    let records = end(&mut accounts, 82, &young);
    assert_eq!((packets(&records), fast(&records)), (4, 0));
}

#[test]
fn time_outs_say_when() {
    let mut accounts = Accounts::new(timeouts(120, 30));
    read(&mut accounts, 0, &[], &[]);
    let mut connection = Connection::new(0, 7, 1);
    let mut reasons = Vec::new();
    // It sends until 200 s and not after.
    for at in (30..=300).step_by(30) {
        if at <= 200 {
            connection.send([1, 0], at - 1);
        }
        let records = read(&mut accounts, at, &[&connection], &[]);
        reasons.extend(records.iter().map(|record| (at, record.reason)));
    }
    assert_eq!(reasons, [(120, Reason::Active), (210, Reason::Idle)]);
    assert!(end(&mut accounts, 301, &connection).is_empty(), "nothing came since");
}

#[test]
fn what_was_there_before_the_first_reading_is_not_exported() {
    let mut accounts = Accounts::new(timeouts(60, 60));
    let mut old = Connection::new(0, 7, 0);
    old.send([1000, 1000], 0);
    let mut uncounted = Connection { counted: false, ..Connection::new(1, 8, 0) };
    uncounted.send([1000, 1000], 0);
    assert!(read(&mut accounts, 1, &[&old, &uncounted], &[]).is_empty());
    old.send([3, 3], 5);
    uncounted.send([4, 4], 5);
    assert_eq!(packets(&read(&mut accounts, 61, &[&old, &uncounted], &[])), 14);
}

#[test]
fn one_whose_end_was_not_announced_is_finished_by_what_the_programs_saw() {
    let mut accounts = begun();
    let mut connection = Connection::new(0, 7, 10);
    // The tuple was another connection's before.
    connection.seen = [500, 0];
    connection.send([30, 40], 20);
    assert_eq!(packets(&read(&mut accounts, 60, &[&connection], &[])), 70);
    connection.send([5, 6], 70);
    assert_eq!(packets(&read(&mut accounts, 120, &[], &[&connection])), 11);
    assert!(read(&mut accounts, 180, &[], &[&connection]).is_empty(), "once");
}

#[test]
fn one_that_came_and_went_while_no_agent_ran_is_exported_once() {
    let mut accounts = begun();
    let mut early = Connection::new(1, 8, 10);
    early.send([9, 9], 20);
    assert_eq!(packets(&end(&mut accounts, 30, &early)), 18);
    // Its end was noted in the file.
    let place = Place::default();
    let mut bytes = journal::snapshot(&place, &accounts, std::iter::empty(), 0);
    journal::over(&mut bytes, Key::of(&early.entry()), early.entry().reply);
    let mut accounts = journal::read(&bytes, &place, accounts.timeouts()).unwrap().accounts;
    let mut between = Connection::new(0, 7, 40);
    between.send([30, 40], 50);
    let records = read(&mut accounts, 60, &[], &[&between, &early]);
    assert_eq!((packets(&records), records.len()), (70, 2));
    assert!(read(&mut accounts, 120, &[], &[&between, &early]).is_empty());
}

#[test]
fn an_end_that_is_announced_after_a_reading_missed_it_counts_once() {
    let mut accounts = begun();
    let mut connection = Connection::new(0, 7, 10);
    connection.send([30, 40], 20);
    read(&mut accounts, 60, &[&connection], &[]);
    connection.send([5, 6], 70);
    let node = node();
    let mut reading = accounts.begin(&node, now(120), true, true);
    for (direction, seen) in connection.seen().into_iter().enumerate() {
        reading.add(&Flow::gone(tuple(0, direction == 1), seen.unwrap()), None);
    }
    reading.end();
    let mut records = end(&mut accounts, 120, &connection);
    accounts.settle(&node, now(120));
    records.extend(accounts.take_due());
    assert_eq!(packets(&records), 11);
}

#[test]
fn a_reading_that_broke_off_ends_nothing() {
    let mut accounts = begun();
    let mut connection = Connection::new(0, 7, 10);
    connection.send([30, 40], 20);
    read(&mut accounts, 60, &[&connection], &[]);
    let node = node();
    accounts.begin(&node, now(120), true, true).add(&connection.flow(), None);
    accounts.settle(&node, now(120));
    connection.send([1, 1], 130);
    assert_eq!(packets(&read(&mut accounts, 180, &[&connection], &[])), 2);
}

#[test]
fn while_the_collector_is_away_living_flows_wait() {
    let mut accounts = begun();
    let mut connection = Connection::new(0, 7, 10);
    let node = node();
    for at in [60, 120] {
        connection.send([10, 10], at - 1);
        let mut reading = accounts.begin(&node, now(at), false, true);
        reading.add(&connection.flow(), None);
        reading.end();
        accounts.settle(&node, now(at));
        assert!(accounts.take_due().is_empty());
    }
    assert_eq!(packets(&read(&mut accounts, 180, &[&connection], &[])), 40);
}

/// What happens to one of five ports.
#[derive(Clone, Debug)]
enum Step {
    /// Packets, of the connection that is there or of a new one.
    Send(u16, [u64; 2]),
    /// Its end, announced or not.
    End(u16, bool),
    Read,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..5_u16, [0..50_u64, 0..50_u64]).prop_map(|(port, packets)| Step::Send(port, packets)),
        2 => (0..5_u16, any::<bool>()).prop_map(|(port, announced)| Step::End(port, announced)),
        2 => Just(Step::Read),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Whatever is in the file, reading it does no harm.
#[test]
fn a_damaged_file_is_read_as_far_as_it_goes() {
    let mut accounts = begun();
    let mut connection = Connection::new(0, 7, 10);
    connection.send([30, 40], 20);
    let mut bytes = {
        let records = read(&mut accounts, 60, &[&connection], &[]);
        journal::snapshot(&Place::default(), &accounts, records.iter(), 9)
    };
    journal::sent(&mut bytes, 1);
    let place = Place::default();
    let whole = journal::read(&bytes, &place, accounts.timeouts()).unwrap();
    assert_eq!((whole.sequence, whole.unsent.len(), whole.accounts.iter().count()), (10, 1, 1));
    for length in 0..bytes.len() {
        let left = journal::read(&bytes[..length], &place, accounts.timeouts());
        assert!(left.is_none_or(|left| left.unsent.len() <= 2));
    }
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0xff;
        drop(journal::read(&bytes, &place, accounts.timeouts()));
    }
    let elsewhere = Place { namespace: 1, ..Place::default() };
    assert!(journal::read(&bytes, &elsewhere, accounts.timeouts()).is_none(), "another namespace's");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// The sum of all records is what was counted, with any readings, ends and restarts. An end that isn't announced comes before a
    /// reading here: what happens to the same port in between can't be told apart. Of a connection that no reading saw, the end is
    /// announced unless no agent ran.
    #[test]
    fn all_is_exported_once(steps in steps()) {
        let mut accounts = begun();
        let mut there: HashMap<u16, Connection> = HashMap::new();
        let mut gone: HashMap<u16, Connection> = HashMap::new();
        let (mut sent, mut exported, mut second, mut id) = (0, 0, 1, 0);
        let (mut was_read, mut ends) = (HashSet::new(), Vec::new());
        let mut all: Vec<Record> = Vec::new();
        for step in steps {
            second += 1;
            match step {
                Step::Send(port, packets) => {
                    let connection = there.entry(port).or_insert_with(|| {
                        id += 1;
                        let before = gone.remove(&port);
                        // The programs' counts go on with the same tuple.
                        let seen = before.as_ref().map_or([0; 2], |gone| gone.seen);
                        let first = before.map_or(second, |gone| gone.first);
                        Connection { seen, first, ..Connection::new(port, id, second) }
                    });
                    connection.send(packets, second);
                    sent += packets.iter().sum::<u64>();
                }
                Step::End(port, announced) => {
                    if let Some(connection) = there.remove(&port) {
                        let known = was_read.contains(&connection.id);
                        let announced = announced || !known && connection.first != connection.began;
                        if announced {
                            all.extend(end(&mut accounts, second, &connection));
                            journal::over(&mut ends, Key::of(&connection.entry()), connection.entry().reply);
                        }
                        gone.insert(port, connection);
                        if !announced {
                            if !known {
                                // No agent ran.
                                accounts = restarted(accounts, &ends);
                            }
                            was_read.extend(there.values().map(|there| there.id));
 ends.clear();
                            let (there, gone): (Vec<_>, Vec<_>) = (there.values().collect(), gone.values().collect());
                            all.extend(read(&mut accounts, second, &there, &gone));
                        }
                    }
                }
                Step::Read => {
                    was_read.extend(there.values().map(|there| there.id));
 ends.clear();
                    let (there, gone): (Vec<_>, Vec<_>) = (there.values().collect(), gone.values().collect());
                    all.extend(read(&mut accounts, second, &there, &gone));
                }
                Step::Restart => accounts = restarted(accounts, &ends),
            }
            second += 60;
        }
        for connection in there.into_values() {
            all.extend(end(&mut accounts, second, &connection));
        }
        exported += packets(&all);
        prop_assert_eq!(exported, sent);
        prop_assert!(all.iter().all(|record| record.count.packets > 0 && record.start_ms <= record.end_ms));
    }
}
