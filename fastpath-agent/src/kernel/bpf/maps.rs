//! The pinned maps, for all that read them: the agent, its subcommands without a running agent, tests.
#![expect(unsafe_code, reason = "events come as plain bytes")]

use std::{
    collections::HashSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf},
};
use fastpath_common::{
    ABI_VERSION, Ask, Config, FlowCounters, FlowEvent, FlowKey, HotFlow, MAP_CONFIG, MAP_EVENTS, MAP_FLOWS,
    MAP_HOT, MAP_NO_XDP, MAP_STATS, MatchWords, NoXdp, PacketStats, SignalChange, Tally,
};

use super::{BpfError, error::map_io, sys};
use crate::{
    core::{flow::Earlier, model::IfIndex},
    kernel::{
        bpf::{batches::Batches, pins::is_absent},
        clock::monotonic_ns,
    },
};

/// The maps in a pin directory, of this agent's ABI version.
pub struct Pinned {
    path: PathBuf,
    flows: HashMap<MapData, FlowKey, FlowCounters>,
    /// The same map: of `flows`, aya doesn't hand out the descriptor.
    flows_data: MapData,
    hot: PerCpuArray<MapData, HotFlow>,
    /// Likewise.
    hot_data: MapData,
    stats: PerCpuArray<MapData, PacketStats>,
}

impl Pinned {
    /// With 64 CPUs 213 KB.
    const SLOTS_AT_ONCE: usize = 32;

    /// Opens the maps in `pin_path`.
    pub fn open(pin_path: &Path) -> Result<Self, BpfError> {
        let found = abi_version(pin_path)?;
        if found != ABI_VERSION {
            return Err(BpfError::AbiMismatch { path: pin_path.to_owned(), found, expected: ABI_VERSION });
        }
        Ok(Self {
            path: pin_path.to_owned(),
            flows: Map::LruHashMap(pinned(pin_path, MAP_FLOWS)?)
                .try_into()
                .map_err(|e| BpfError::map("open the flows map", e))?,
            flows_data: pinned(pin_path, MAP_FLOWS)?,
            hot: Map::PerCpuArray(pinned(pin_path, MAP_HOT)?)
                .try_into()
                .map_err(|e| BpfError::map("open the map of hot flows", e))?,
            hot_data: pinned(pin_path, MAP_HOT)?,
            stats: Map::PerCpuArray(pinned(pin_path, MAP_STATS)?)
                .try_into()
                .map_err(|e| BpfError::map("open the statistics map", e))?,
        })
    }

    /// Begins to read many flows.
    pub fn reading(&self) -> Result<Reading<'_>, BpfError> {
        let mut hot = HashSet::new();
        self.each_hot(|slot| {
            hot.insert(slot.key);
        })?;
        Ok(Reading { pinned: self, hot })
    }

    /// All flows, one direction each, in no order, with counts as [`Reading`] has them. Flows that come or go meanwhile
    /// may be missed; one that is evicted and comes again may come twice.
    pub fn flows(
        &self,
    ) -> Result<impl Iterator<Item = Result<(FlowKey, FlowCounters), BpfError>> + '_, BpfError> {
        Ok(self.reading()?.into_flows())
    }

    /// Counters of one direction of a flow, all of one moment.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<FlowCounters>, BpfError> {
        let slot = MatchWords::of(key).slot();
        let mut before = self.hot_slots(slot)?;
        loop {
            let mut counters = match self.flows.get(key, 0) {
                Ok(counters) => counters,
                Err(MapError::KeyNotFound | MapError::ElementNotFound) => return Ok(None),
                Err(e) => return Err(BpfError::map("read the flows map", e)),
            };
            let hot = self.hot_slots(slot)?;
            // A third time, since the second wasn't read in one instant either.
            let after = self.hot_slots(slot)?;
            // Otherwise a CPU has moved its counts to the flows map meanwhile, and one can't tell if that was read
            // with or without them.
            let settled = before.iter().zip(after.iter()).all(|(before, after)| {
                before.tick != HotFlow::MOVING && (before.key, before.tick) == (after.key, after.tick)
            });
            if settled {
                for slot in hot.iter().filter(|slot| slot.key == *key) {
                    add_hot(&mut counters, slot);
                }
                return Ok(Some(counters));
            }
            before = after;
        }
    }

    /// Calls `each` for the slots of all CPUs that have counted something. There may be many CPUs, and nearly all slots are empty.
    fn each_hot(&self, mut each: impl FnMut(&HotFlow)) -> Result<(), BpfError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| BpfError::io("count the CPUs", error))?;
        let mut keys = [0_u32; Self::SLOTS_AT_ONCE];
        let mut slots = vec![HotFlow::default(); Self::SLOTS_AT_ONCE * cpus];
        let mut at = None;
        loop {
            let (read, next) = sys::lookup_batch(self.hot_data.fd().as_fd(), at, &mut keys, &mut slots, cpus)
                .map_err(|error| BpfError::io("read the map of hot flows", error))?;
            slots[..read * cpus]
                .iter()
                .filter(|slot| slot.packets > 0 || slot.forwarded > 0)
                .for_each(&mut each);
            match next {
                Some(next) => at = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// A slot of every CPU.
    fn hot_slots(&self, slot: u32) -> Result<PerCpuValues<HotFlow>, BpfError> {
        self.hot.get(&slot, 0).map_err(|e| BpfError::map("read the map of hot flows", e))
    }

    /// Number of entries, and how many there is room for.
    pub fn occupancy(&self) -> Result<(u32, u32), BpfError> {
        let room = aya::maps::MapInfo::from_pin(self.path.join(MAP_FLOWS))
            .map_err(|e| BpfError::map("look at the flows map", e))?
            .max_entries();
        let mut entries = 0;
        let mut batches = Batches::of(&self.flows_data);
        while let Some((keys, _)) = batches.next_batch()? {
            entries += keys.len() as u32;
        }
        Ok((entries, room))
    }

    /// Packets seen, by how they were counted, sum over the CPUs. Under traffic, packets of the last tick may be missing.
    pub fn stats(&self) -> Result<PacketStats, BpfError> {
        let per_cpu = self.stats.get(&0, 0).map_err(|e| BpfError::map("read the statistics map", e))?;
        let mut sum = per_cpu.iter().fold(PacketStats::default(), |sum, cpu| add(&sum, cpu));
        self.each_hot(|slot| {
            sum.counted.packets += slot.packets;
            sum.counted.bytes += slot.bytes;
            sum.forwarded += slot.forwarded;
        })?;
        Ok(sum)
    }

    /// Signals that didn't fit the ring of events so far.
    pub fn events_lost(&self) -> Result<u64, BpfError> {
        let per_cpu = self.stats.get(&0, 0).map_err(|e| BpfError::map("read the statistics map", e))?;
        Ok(per_cpu.iter().map(|cpu| cpu.events_lost).sum())
    }

    /// Connections that were seen to go into the flowtable so far.
    pub fn went_over(&self) -> Result<u64, BpfError> {
        let per_cpu = self.stats.get(&0, 0).map_err(|e| BpfError::map("read the statistics map", e))?;
        Ok(per_cpu.iter().map(|cpu| cpu.went_over).sum())
    }

    /// Whether a direction's flow was seen to go into the flowtable, at some time.
    pub fn has_gone_over(&self, key: &FlowKey) -> Result<bool, BpfError> {
        match self.flows.get(key, 0) {
            Ok(counters) => Ok(counters.flags & FlowCounters::WENT_OVER != 0),
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(false),
            Err(e) => Err(BpfError::map("read the flows map", e)),
        }
    }

    /// What the programs are told.
    pub fn config(&self) -> Result<Config, BpfError> {
        read_config(&self.path)
    }
}

/// Many flows, read with at most about one system call each. Nothing is counted twice, and nothing is missing that was
/// counted before the reading began: flows with counts outside of the flows map then are read as [`Pinned::flow`] does it.
pub struct Reading<'p> {
    pinned: &'p Pinned,
    hot: HashSet<FlowKey>,
}

impl<'p> Reading<'p> {
    /// Counters of one direction of a flow.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<FlowCounters>, BpfError> {
        if self.hot.contains(key) {
            return self.pinned.flow(key);
        }
        match self.pinned.flows.get(key, 0) {
            Ok(counters) => Ok(Some(counters)),
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
            Err(e) => Err(BpfError::map("read the flows map", e)),
        }
    }

    /// All flows.
    pub fn into_flows(self) -> impl Iterator<Item = Result<(FlowKey, FlowCounters), BpfError>> + 'p {
        let mut batches = Batches::of(&self.pinned.flows_data);
        let mut left = 0;
        std::iter::from_fn(move || {
            if left == 0 {
                match batches.next_batch() {
                    Ok(Some((keys, _))) => left = keys.len(),
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
            left = left.checked_sub(1)?;
            Some(Ok(batches.entry(left)))
        })
        .filter_map(move |flow| match flow {
            Ok((key, _)) if self.hot.contains(&key) => {
                self.pinned.flow(&key).transpose().map(|c| Ok((key, c?)))
            }
            flow => Some(flow),
        })
    }
}

/// Adds what a CPU holds of a flow to what the flows map has. Sums wrap, as the programs' do: maps hold what any earlier
/// program left there.
pub(in crate::kernel) fn add_hot(counters: &mut FlowCounters, slot: &HotFlow) {
    let add = |to: &mut u64, more: u64| *to = to.wrapping_add(more);
    add(&mut counters.packets, slot.packets);
    add(&mut counters.segments, slot.packets.wrapping_add(slot.extra_segments));
    add(&mut counters.bytes, slot.bytes);
    add(&mut counters.forwarded, slot.forwarded);
    counters.flags |= slot.flags;
}

pub(in crate::kernel) fn add(a: &PacketStats, b: &PacketStats) -> PacketStats {
    let sum = u64::wrapping_add;
    let tally =
        |a: Tally, b: Tally| Tally { packets: sum(a.packets, b.packets), bytes: sum(a.bytes, b.bytes) };
    PacketStats {
        counted: tally(a.counted, b.counted),
        not_ip: tally(a.not_ip, b.not_ip),
        malformed: tally(a.malformed, b.malformed),
        later_fragment: tally(a.later_fragment, b.later_fragment),
        other_protocol: tally(a.other_protocol, b.other_protocol),
        too_many_headers: tally(a.too_many_headers, b.too_many_headers),
        no_room: tally(a.no_room, b.no_room),
        flows_entered: sum(a.flows_entered, b.flows_entered),
        events_sent: sum(a.events_sent, b.events_sent),
        events_lost: sum(a.events_lost, b.events_lost),
        went_over: sum(a.went_over, b.went_over),
        forwarded: sum(a.forwarded, b.forwarded),
    }
}

/// The ring of threshold crossings. One reader at a time: an event is handed out once.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Opens the ring in `pin_path`; events that weren't read yet are still there.
    pub fn open(pin_path: &Path) -> Result<Self, BpfError> {
        let ring = Map::RingBuf(pinned(pin_path, MAP_EVENTS)?);
        Ok(Self(ring.try_into().map_err(|e| BpfError::map("open the event ring", e))?))
    }

    /// The next event, without waiting. Once the descriptor is readable: drain until `None`, then wait again.
    pub fn next_event(&mut self) -> Option<FlowEvent> {
        loop {
            if let Some(event) = plain(&self.0.next()?) {
                return Some(event);
            }
        }
    }
}

/// The value at the beginning of what the kernel gave; `None` if that is too short, as another version's may be.
pub(in crate::kernel) fn plain<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: long enough, and any bytes are a T (Pod).
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The packet that the program [`PROGRAM_MARK`](fastpath_common::PROGRAM_MARK) is run with.
pub(super) fn mark_frame(change: &SignalChange) -> [u8; SignalChange::OFFSET + size_of::<SignalChange>()] {
    let mut frame = [0; SignalChange::OFFSET + size_of::<SignalChange>()];
    // SAFETY: there are as many bytes behind the offset; a SignalChange has no padding (Pod).
    unsafe { frame.as_mut_ptr().add(SignalChange::OFFSET).cast::<SignalChange>().write_unaligned(*change) };
    frame
}

/// The packet that the program [`PROGRAM_ASK`](fastpath_common::PROGRAM_ASK) is run with.
pub(super) fn ask_frame(keys: &[FlowKey]) -> Vec<u8> {
    let mut frame = vec![0; Ask::OFFSET];
    frame.extend(keys.iter().flat_map(|key| key.words()).flat_map(u64::to_ne_bytes));
    frame
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// ABI version of the maps in `pin_path`: the first field of the config map, whatever else it has.
pub(super) fn abi_version(pin_path: &Path) -> Result<u32, BpfError> {
    let data = pinned(pin_path, MAP_CONFIG)?;
    match Array::<_, Config>::try_from(Map::Array(data)) {
        Ok(config) => {
            config.get(&0, 0).map(|c| c.abi_version).map_err(|e| BpfError::map("read the config map", e))
        }
        // Another size: another version.
        Err(_) => Ok(0),
    }
}

/// The config map's element.
pub(super) fn read_config(pin_path: &Path) -> Result<Config, BpfError> {
    let config = Array::<_, Config>::try_from(Map::Array(pinned(pin_path, MAP_CONFIG)?));
    config.and_then(|c| c.get(&0, 0)).map_err(|e| BpfError::map("read the config map", e))
}

/// The earlier threshold, if flows may have crossed it; none where no maps are pinned.
pub fn earlier_threshold(pin_path: &Path) -> Earlier {
    let config = read_config(pin_path).unwrap_or_default();
    Earlier { highest: config.highest, until_ns: config.changed_ns }
}

/// Sets the threshold in the config map, of this version from now on.
pub(super) fn write_threshold(pin_path: &Path, threshold: u32) -> Result<(), BpfError> {
    let before = read_config(pin_path)?;
    let value = Config { abi_version: ABI_VERSION, ..before.with_threshold(threshold, monotonic_ns()) };
    let config = Array::<_, Config>::try_from(Map::Array(pinned(pin_path, MAP_CONFIG)?));
    config.and_then(|mut c| c.set(0, value, 0)).map_err(|e| BpfError::map("write the config map", e))
}

/// Why an interface does without XDP, if XDP was asked for.
pub(super) fn read_no_xdp(pin_path: &Path, index: IfIndex) -> Result<Option<NoXdp>, BpfError> {
    let map = match no_xdp(pin_path) {
        Err(BpfError::NotPinned { .. }) => return Ok(None),
        map => map?,
    };
    match map.get(&index.0, 0) {
        Ok(reason) => Ok(Some(reason)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(e) => Err(BpfError::map("read the map of interfaces without XDP", e)),
    }
}

/// Remembers why an interface does without XDP, or that it doesn't.
pub(super) fn write_no_xdp(pin_path: &Path, index: IfIndex, reason: Option<NoXdp>) -> Result<(), BpfError> {
    let mut map = match no_xdp(pin_path) {
        Err(BpfError::NotPinned { .. }) if reason.is_none() => return Ok(()),
        map => map?,
    };
    let result = match reason {
        Some(reason) => map.insert(index.0, reason, 0),
        None => map.remove(&index.0),
    };
    match result.map_err(map_io) {
        Err(e) if reason.is_none() && e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|e| BpfError::io("write the map of interfaces without XDP", e)),
    }
}

fn no_xdp(pin_path: &Path) -> Result<HashMap<MapData, u32, NoXdp>, BpfError> {
    let map = HashMap::try_from(Map::HashMap(pinned(pin_path, MAP_NO_XDP)?));
    map.map_err(|e| BpfError::map("open the map of interfaces without XDP", e))
}

pub(super) fn pinned(pin_path: &Path, map: &str) -> Result<MapData, BpfError> {
    MapData::from_pin(pin_path.join(map)).map_err(|e| {
        let source = map_io(e);
        if is_absent(&source) {
            return BpfError::NotPinned { path: pin_path.to_owned() };
        }
        BpfError::io(format!("open {}", pin_path.join(map).display()), source)
    })
}
