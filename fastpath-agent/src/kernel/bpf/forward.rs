//! The program that forwards packets between pods: loading it with this kernel's numbers of conntrack's functions, and what it is
//! told. It is the running agent's: with the agent the kernel empties the program array, and packets take the flowtable's way again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap as Hash, Map, MapData},
};
use aya_obj::{Object, generated::bpf_insn};
use fastpath_common::{
    ForwardConfig, MAP_FORWARD_CONFIG, MAP_FORWARD_DEVICES, MAP_FORWARD_PROGRAMS, PROGRAM_FORWARD,
    forward::placeholder,
};
use nix::time::{ClockId, clock_getres};

use super::{
    BpfError,
    layout::{self, CONNTRACK, Conntrack},
    sys,
};
use crate::core::model::IfIndex;

/// The verifier's last words, where it refuses.
const LOG_BYTES: usize = 1 << 20;
/// Opcodes (Documentation/bpf/standardization/instruction-set.rst): call; add a number; load 64 bits.
const CALL: u8 = 0x85;
const ADD: u8 = 0x07;
const LOAD: u8 = 0x79;
/// Source register of the call of a kernel function.
const KERNEL_FUNCTION: u8 = 2;

/// Times, in ms.
const LEASE_MS: u64 = 10;
const REFRESH_MS: u64 = 2_000;
const RETRY_MS: u64 = 50;
const REFUSED_MS: u64 = 1_000;

/// The program, in its place.
pub(super) struct Forwarding {
    config: Array<MapData, ForwardConfig>,
    told: ForwardConfig,
    devices: Hash<MapData, u32, u64>,
    parts: BTreeMap<IfIndex, u64>,
    /// As long as it is open the kernel keeps what is in it.
    _programs: MapData,
}

impl Forwarding {
    /// Loads it from `bytes`, the object that `object` was made of, and puts it in its place.
    pub(super) fn load(object: &mut Ebpf, bytes: &[u8]) -> Result<Self, BpfError> {
        let io = |operation: &'static str| move |error| BpfError::io(operation, error);
        let found = layout::conntrack_of_this_kernel().map_err(io("read the kernel's types"))?;
        let conntrack = found.ok_or_else(|| {
            BpfError::BadObject(
                "this kernel's conntrack can't be asked by programs (Linux 6.1 can)".to_owned(),
            )
        })?;
        let types = match conntrack.in_module {
            true => Some(sys::module_types(CONNTRACK).map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => BpfError::ModuleTypes,
                _ => BpfError::io("open the types of conntrack", error),
            })?),
            false => None,
        };
        let code = code(object, bytes, &conntrack)?;
        let mut log = vec![0; LOG_BYTES];
        let program = sys::load_classifier(PROGRAM_FORWARD, &code, types.as_ref().map(AsFd::as_fd), &mut log)
            .map_err(|error| {
                let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
                tracing::debug!("{}", String::from_utf8_lossy(said));
                BpfError::io("load the program that forwards", error)
            })?;
        let take = |object: &mut Ebpf, name: &str| {
            object.take_map(name).ok_or_else(|| BpfError::BadObject(format!("no map {name}")))
        };
        let opened = |error| BpfError::map("open a map of forwarding", error);
        let config = Array::try_from(take(object, MAP_FORWARD_CONFIG)?).map_err(opened)?;
        let devices = Hash::try_from(take(object, MAP_FORWARD_DEVICES)?).map_err(opened)?;
        let Map::ProgramArray(programs) = take(object, MAP_FORWARD_PROGRAMS)? else {
            return Err(BpfError::BadObject("no program array".to_owned()));
        };
        let mut forwarding =
            Self { config, told: told()?, devices, parts: BTreeMap::new(), _programs: programs };
        forwarding.void(false)?;
        sys::set_program(forwarding._programs.fd().as_fd(), 0, program.as_fd())
            .map_err(io("put the program that forwards in its place"))?;
        Ok(forwarding)
    }

    /// What was found out before doesn't hold any more: the kernel is asked again with each flow's next packet, or, where the
    /// flowtable has to judge first, with the one after it.
    pub(super) fn void(&mut self, judge: bool) -> Result<(), BpfError> {
        self.told.generation += 1;
        if judge {
            self.told.judged = self.told.generation;
        }
        self.config.set(0, self.told, 0).map_err(|e| BpfError::map("write the settings of forwarding", e))
    }

    /// Says which interfaces take part, and how; those that aren't named take none.
    pub(super) fn tell(&mut self, parts: &BTreeMap<IfIndex, u64>) -> Result<(), BpfError> {
        if self.parts == *parts {
            return Ok(());
        }
        let failed = |error| BpfError::map("write the interfaces of forwarding", error);
        for index in self.parts.keys().filter(|index| !parts.contains_key(index)) {
            self.devices.remove(&index.0).map_err(failed)?;
        }
        for (index, part) in parts.iter().filter(|(index, part)| self.parts.get(index) != Some(part)) {
            self.devices.insert(index.0, *part, 0).map_err(failed)?;
        }
        self.parts.clone_from(parts);
        self.void(false)
    }
}

/// Times in ticks of this kernel.
fn told() -> Result<ForwardConfig, BpfError> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|error| BpfError::io("ask for the kernel's tick", error.into()))?;
    let tick_us = (tick.tv_nsec() / 1000).max(1) as u64;
    let ticks = |ms: u64| (ms * 1000 / tick_us).max(1);
    Ok(ForwardConfig {
        generation: 0,
        judged: 0,
        lease: ticks(LEASE_MS),
        refresh: ticks(REFRESH_MS),
        retry: ticks(RETRY_MS),
        refused: ticks(REFUSED_MS),
    })
}

/// The program's code, with the maps of `object`, and numbers of this kernel in the place of placeholders.
fn code(object: &Ebpf, bytes: &[u8], conntrack: &Conntrack) -> Result<Vec<bpf_insn>, BpfError> {
    let bad = |error: &dyn std::fmt::Display| BpfError::BadObject(error.to_string());
    let mut parsed = Object::parse(bytes).map_err(|e| bad(&e))?;
    let text: HashSet<usize> = parsed.functions.keys().map(|(section, _)| *section).collect();
    let maps = std::mem::take(&mut parsed.maps);
    let fds: HashMap<&str, RawFd> =
        object.maps().filter_map(|(name, map)| Some((name, data(map)?.as_raw_fd()))).collect();
    let known = maps.iter().filter_map(|(name, map)| Some((name.as_str(), *fds.get(name.as_str())?, map)));
    parsed.relocate_maps(known, &text).map_err(|e| bad(&e))?;
    parsed.relocate_calls(&text).map_err(|e| bad(&e))?;
    let program =
        parsed.programs.get(PROGRAM_FORWARD).ok_or_else(|| bad(&format!("no program {PROGRAM_FORWARD}")))?;
    let function = parsed.functions.get(&program.function_key()).ok_or_else(|| bad(&"no code in it"))?;
    let mut code = function.instructions.clone();
    for instruction in &mut code {
        replace(instruction, conntrack);
    }
    Ok(code)
}

fn replace(instruction: &mut bpf_insn, conntrack: &Conntrack) {
    let call = |instruction: &mut bpf_insn, function: u32| {
        instruction.imm = function.cast_signed();
        instruction.set_src_reg(KERNEL_FUNCTION);
        instruction.off = i16::from(conntrack.in_module);
    };
    match (instruction.code, instruction.imm) {
        (CALL, placeholder::LOOKUP) => call(instruction, conntrack.lookup),
        (CALL, placeholder::RELEASE) => call(instruction, conntrack.release),
        (ADD, placeholder::ORIGINAL) => instruction.imm = conntrack.tuples[0].cast_signed(),
        (ADD, placeholder::REPLY) => instruction.imm = conntrack.tuples[1].cast_signed(),
        (LOAD, _) if instruction.off == placeholder::STATUS => instruction.off = conntrack.status as i16,
        _ => {}
    }
}

/// The descriptor of a map of a kind that the programs have.
fn data(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}
