//! Connections that are older than the first rule with `ct packets`: conntrack counts no packets of them, so they are offloaded with
//! the agent's help or not at all.

use std::io;

use fastpath_common::{FlowCounters, FlowEvent, FlowKey, Signal};
use tokio::{sync::mpsc, time::Instant};

use super::{Fault, Node, World};
use crate::{
    core::{
        flow::connection::{Entry, Tuple},
        ruleset::{plan::Op, sets::OwnSet},
    },
    kernel::{
        bpf::BpfError, conntrack::ConntrackError, fake::Connection, flow_source::FlowSource,
        old_connections::Crossed,
    },
};

const OFFLOAD: u32 = 1 << 14;

impl World {
    /// A connection that is there from now on, in place of another one of its number.
    pub fn connect(&mut self, connection: Connection) {
        self.flows.connections.retain(|other| other.entry.id != connection.entry.id);
        self.flows.connections.push(connection);
        self.flows.room = usize::MAX;
    }

    /// All of them.
    pub fn connections(&self) -> &[Connection] {
        &self.flows.connections
    }

    /// From now on there is room for so many signals at a time.
    pub fn make_room(&mut self, signals: usize) {
        self.flows.room = signals;
    }

    /// A packet in each direction of each connection, whose links are there.
    pub fn packets(&mut self, threshold: u32) {
        let now = Instant::now();
        let assists = self.ruleset.assists();
        let flows = &mut self.flows;
        flows.assisted.retain(|(_, until)| *until > now);
        for connection in &mut flows.connections {
            if !connection.links().iter().all(|index| self.links.contains_key(index)) {
                continue;
            }
            let (id, keys) = (connection.entry.id, connection.keys());
            for (key, counted) in keys.into_iter().zip(&mut connection.counted) {
                counted.packets += 1;
                counted.last_seen_ns = now_ns();
                if counted.signal != Signal::None as u64 || counted.packets <= u64::from(threshold) {
                    continue;
                }
                let event = FlowEvent {
                    key,
                    time_ns: 0,
                    packets: counted.packets,
                    ifindex: counted.ifindex,
                    threshold,
                };
                let signal = if flows.signals.len() < flows.room { Signal::Sent } else { Signal::Lost };
                counted.signal = signal as u64;
                match signal {
                    Signal::Sent => flows.signals.push_back(event),
                    _ => flows.lost += 1,
                }
            }
            let is_listed = flows.assisted.iter().any(|(assisted, _)| *assisted == id);
            if assists && is_listed && !connection.is_offloaded() {
                connection.entry.status.0 |= OFFLOAD;
                self.ruleset.count_offer();
            }
        }
        self.news.notify_waiters();
    }

    /// What a transaction of the agent's does to flows.
    pub(super) fn committed_ops(&mut self, ops: &[Op]) {
        for op in ops {
            if let Op::AddAssisted { ids, timeout_ms } = op {
                let until = Instant::now() + std::time::Duration::from_millis(*timeout_ms);
                self.flows.assisted.retain(|(id, until)| *until > Instant::now() || !ids.contains(id));
                for id in ids {
                    if self.flows.assisted.iter().all(|(other, _)| other != id) {
                        self.flows.assisted.push((*id, until));
                    }
                }
            }
            if matches!(op, Op::DeleteFlowtable | Op::DeleteTable) {
                self.torn_down();
            }
        }
        self.forget_assisted();
    }

    /// Without a flowtable no flow is offloaded.
    pub(super) fn torn_down(&mut self) {
        self.flows.connections.iter_mut().for_each(|connection| connection.entry.status.0 &= !OFFLOAD);
    }

    /// Without the set there is nothing in it.
    pub(super) fn forget_assisted(&mut self) {
        let set = self.ruleset.table.as_ref().and_then(|table| table.set(OwnSet::Assist));
        if set.is_none() {
            self.flows.assisted.clear();
        }
    }

    fn counted(&mut self, key: &FlowKey) -> Option<&mut FlowCounters> {
        self.flows.connections.iter_mut().find_map(|connection| {
            let at = connection.keys().iter().position(|known| known == key)?;
            Some(&mut connection.counted[at])
        })
    }

    /// See [`FlowEyes::mark`](crate::kernel::bpf::FlowEyes::mark).
    pub(super) fn mark(&mut self, key: &FlowKey, from: Signal, to: Signal) -> bool {
        let counted = self.counted(key).filter(|counted| counted.signal == from as u64);
        counted.map(|counted| counted.signal = to as u64).is_some()
    }
}

fn now_ns() -> u64 {
    thread_local! {
        static BEGUN: Instant = Instant::now();
    }
    BEGUN.with(|begun| u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

impl Node {
    fn maps(&self) -> Result<(), BpfError> {
        self.refuses(Fault::Maps).map_or(Ok(()), |_| Err(BpfError::BadObject("fake".to_owned())))
    }
}

impl FlowSource for Node {
    async fn signalled(&mut self) -> Result<(), BpfError> {
        self.wait(|world| (!world.flows.signals.is_empty()).then_some(())).await;
        Ok(())
    }

    fn take(&mut self, limit: usize) -> Vec<FlowEvent> {
        self.with(|world| {
            let taken = limit.min(world.flows.signals.len());
            world.flows.signals.drain(..taken).collect()
        })
    }

    fn lost(&self) -> Result<u64, BpfError> {
        self.maps()?;
        Ok(self.with(|world| world.flows.lost))
    }

    fn begin_sweep(&mut self) -> Result<(), BpfError> {
        self.with(|world| {
            let directions =
                world.flows.connections.iter().flat_map(|one| one.keys().into_iter().zip(one.counted));
            let lost = directions.filter(|(_, counted)| counted.signal == Signal::Lost as u64);
            world.flows.sweep = Some(lost.map(|(key, _)| key).collect());
        });
        Ok(())
    }

    fn sweep(&mut self) -> Result<Option<Vec<FlowKey>>, BpfError> {
        self.maps()?;
        Ok(self.with(|world| {
            let sweep = world.flows.sweep.as_mut()?;
            let step: Vec<FlowKey> = sweep.drain(..sweep.len().min(2)).collect();
            if step.is_empty() {
                world.flows.sweep = None;
                return None;
            }
            Some(step)
        }))
    }

    fn counted(&self, key: &FlowKey) -> Result<Option<FlowCounters>, BpfError> {
        self.maps()?;
        Ok(self.with(|world| world.counted(key).copied()))
    }

    fn has_gone_over(&self, _: &FlowKey) -> Result<bool, BpfError> {
        Ok(false)
    }

    fn went_over(&self) -> Result<u64, BpfError> {
        Ok(0)
    }

    fn connections(&mut self, tuples: &[Tuple]) -> Result<Vec<Option<Entry>>, ConntrackError> {
        if let Some(errno) = self.refuses(Fault::Conntrack) {
            let source = io::Error::from_raw_os_error(errno);
            return Err(ConntrackError::Io { operation: "fake", source });
        }
        Ok(self.with(|world| {
            let one = |tuple: &Tuple| {
                let entries = world.flows.connections.iter().map(|connection| &connection.entry);
                entries.clone().find(|entry| [entry.original, entry.reply].contains(tuple)).cloned()
            };
            tuples.iter().map(one).collect()
        }))
    }

    fn crossed_before(&self) -> Option<mpsc::Receiver<Vec<Crossed>>> {
        let (sender, receiver) = mpsc::channel(1);
        let found = self.with(|world| {
            let found = world.flows.connections.iter().map(|connection| Crossed {
                entry: connection.entry.clone(),
                directions: connection.counted.map(|counted| counted.signal == Signal::Sent as u64),
            });
            found.filter(|found| found.directions != [false; 2] || found.entry.status.offloaded()).collect()
        });
        sender.try_send(found).ok()?;
        Some(receiver)
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }
}
