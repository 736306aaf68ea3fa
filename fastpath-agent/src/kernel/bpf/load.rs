//! Loads the embedded object: maps first, pinned ones taken over if they fit, then the programs.

use std::fs;

use aya::{EbpfLoader, maps::MapInfo};
use fastpath_common::{
    ABI_VERSION, FlowCounters, FlowKey, HotFlow, MAP_EVENTS, MAP_FLOWS, MAP_FORWARD_DEVICES, MAP_HOT,
    MAP_NO_XDP, MAP_STATS, MAP_WAYS, NoXdp, PROGRAM_ASK, PROGRAM_ETHERNET, PROGRAM_ETHERNET_FORWARD,
    PROGRAM_L3, PROGRAM_MARK, PROGRAM_XDP, PROGRAM_XDP_IDLE, PacketStats, Way,
    limits::{self, MIN_FLOWS},
};

use crate::{
    core::memory_budget::{self, Room},
    kernel::{
        bpf::{
            object::{classifier, xdp_program},
            pins::{LINKS, MAPS, require_bpffs, unpin_maps},
        },
        memory,
    },
};

use super::{
    BpfError, Chatter, Hook, LoadConfig, ProgramLog, Programs, added::Added, error::mib, forward::Forwarding,
    maps,
};

/// What build.rs found; empty if the agent was built without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fastpath-ebpf.o"));

/// The same programs with code that logs.
static LOG_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fastpath-ebpf-log.o"));

/// Loads the programs and pins their maps. Maps that an earlier agent pinned are taken over with all that they hold
/// if ABI version and sizes are the same; otherwise new ones take their place, and interfaces count into them as
/// soon as they are attached again.
pub fn load(config: &LoadConfig) -> Result<Programs, BpfError> {
    if OBJECT.is_empty() {
        return Err(BpfError::NotBuilt);
    }
    let links = config.pin_path.join(LINKS);
    require_bpffs(&config.pin_path)?;
    fs::create_dir_all(&links).map_err(|e| BpfError::io(format!("create {}", links.display()), e))?;

    let config = &within_limit(config)?;
    let takes_over = fits(config);
    if !takes_over {
        let found = MapInfo::from_pin(config.pin_path.join(MAP_FLOWS)).map(|info| info.max_entries());
        if !unpin_maps(&config.pin_path)?.is_empty() {
            tracing::info!(
                had_max_flows = found.ok(),
                max_flows = config.max_flows,
                "pinned maps of another size or version are replaced: counting starts again at 0"
            );
        }
    }
    load_object(config, takes_over).inspect_err(|_| {
        // Maps without programs would only mislead.
        if !takes_over && let Err(error) = unpin_maps(&config.pin_path) {
            tracing::debug!(%error, "maps of a failed attempt stay pinned");
        }
    })
}

/// What there is memory for. Maps that are there already take none.
fn within_limit(config: &LoadConfig) -> Result<LoadConfig, BpfError> {
    let mut config = config.clone();
    let Some(limit) = memory::limit() else { return Ok(config) };
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| BpfError::io("count the CPUs", error))? as u32;
    let ways = u64::from(cpus) * u64::from(limits::HOT_SLOTS) * size_of::<Way>() as u64;
    let limit = if config.forward { limit.saturating_sub(ways) } else { limit };
    match memory_budget::room(limit, cpus, config.max_flows) {
        Room::All => {}
        Room::None => {
            let needed = memory_budget::needed(cpus, MIN_FLOWS);
            return Err(BpfError::MemoryLimit { limit, needed });
        }
        Room::Fewer(_) if fits(&config) => {}
        Room::Fewer(flows) => {
            let needed = mib(memory_budget::needed(cpus, config.max_flows));
            tracing::warn!(
                max_flows = config.max_flows,
                has_room_for = flows,
                "the memory limit of {} MiB is too low to watch so many flows: raise it to {needed} MiB, or lower --max-flows",
                limit >> 20
            );
            config.max_flows = flows;
        }
    }
    Ok(config)
}

fn load_object(config: &LoadConfig, takes_over: bool) -> Result<Programs, BpfError> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(MAP_FLOWS, config.max_flows);
    if !config.forward {
        loader.map_max_entries(MAP_WAYS, 1);
        loader.map_max_entries(MAP_FORWARD_DEVICES, 1);
    }
    for map in MAPS {
        loader.map_pin_path(map, config.pin_path.join(map));
    }
    let level = config.chatter.level();
    let bytes = if config.chatter == Chatter::Silent {
        OBJECT
    } else {
        loader.override_global(aya_log::LEVEL, &level, true);
        LOG_OBJECT
    };
    let mut object = loader.load(bytes).map_err(BpfError::object)?;
    maps::write_threshold(&config.pin_path, config.threshold)?;
    for name in [PROGRAM_ETHERNET, PROGRAM_L3, PROGRAM_MARK, PROGRAM_ASK] {
        classifier(&mut object, name)?.load().map_err(|e| BpfError::program(name, e))?;
    }
    if config.hook != Hook::Tc
        && let Err(error) = load_xdp(&mut object)
    {
        tracing::warn!("flows are watched with TC instead of XDP: {error}");
    }
    let added = Added::attach(&mut object)
        .inspect_err(
            |error| tracing::debug!(%error, "asking conntrack about each flow that crosses the threshold"),
        )
        .ok();
    let forwarding = if config.forward {
        let loaded = classifier(&mut object, PROGRAM_ETHERNET_FORWARD)?
            .load()
            .map_err(|e| BpfError::program(PROGRAM_ETHERNET_FORWARD, e))
            .and_then(|()| Forwarding::load(&mut object, bytes));
        loaded
            .inspect_err(|error| {
                tracing::warn!("packets take the flowtable's way, none is forwarded: {error}")
            })
            .ok()
    } else {
        None
    };
    tracing::info!(pin_path = %config.pin_path.display(), max_flows = config.max_flows, takes_over, "eBPF programs loaded");
    let log = if config.chatter == Chatter::Silent { None } else { Some(ProgramLog::new(&mut object)?) };
    Ok(Programs::new(object, config.pin_path.clone(), config.hook, added, forwarding, log))
}

/// Needs Linux 5.18 (frames larger than a page).
fn load_xdp(object: &mut aya::Ebpf) -> Result<(), BpfError> {
    for name in [PROGRAM_XDP, PROGRAM_XDP_IDLE] {
        xdp_program(object, name)?.load().map_err(|e| BpfError::program(name, e))?;
    }
    Ok(())
}

/// Whether all maps are pinned, of this ABI version, and of the sizes asked for.
fn fits(config: &LoadConfig) -> bool {
    let same = |map: &str, key: usize, value: usize, entries: u32| {
        MapInfo::from_pin(config.pin_path.join(map)).is_ok_and(|info| {
            (info.key_size() as usize, info.value_size() as usize, info.max_entries())
                == (key, value, entries)
        })
    };
    maps::abi_version(&config.pin_path).is_ok_and(|abi| abi == ABI_VERSION)
        && same(MAP_FLOWS, size_of::<FlowKey>(), size_of::<FlowCounters>(), config.max_flows)
        && same(MAP_HOT, size_of::<u32>(), size_of::<HotFlow>(), limits::HOT_SLOTS)
        && same(MAP_STATS, size_of::<u32>(), size_of::<PacketStats>(), 1)
        && same(MAP_EVENTS, 0, 0, limits::EVENT_RING_BYTES)
        && same(MAP_NO_XDP, size_of::<u32>(), size_of::<NoXdp>(), limits::MAX_NO_XDP)
}
