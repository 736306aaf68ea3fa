//! Other programs' eBPF programs and filters that see an interface's packets before the flowtable does: XDP, TCX, and tc
//! filters of any kind. Changes nothing.

use std::{collections::BTreeSet, io, path::Path};

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use fastpath_common::{PROGRAM_ETHERNET, PROGRAM_L3};

use super::{
    attach::{current_name, link_pins, says_unsupported},
    error::{link_io, program_io},
    sys,
    tc::{self, Filter, all_filters},
    xdp::program_ids,
};

use crate::{
    core::{doctor::facts::IngressProgram, model::IfIndex},
    kernel::bpf::pins::is_absent,
};

/// What all names of our programs begin with.
const PREFIX: &str = "fastpath_";

/// Other programs' eBPF programs and filters at ingress of an interface, in the order in which they run. None if the
/// interface is gone.
pub fn at_ingress(index: IfIndex) -> io::Result<Vec<IngressProgram>> {
    let Ok(name) = current_name(index) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut ours_seen = false;
    // One program has two ids where the kernel says its mode too.
    for id in BTreeSet::from_iter(program_ids(index)?) {
        see(&mut found, &mut ours_seen, "XDP", program_name(id)?);
    }
    match SchedClassifier::query_tcx(name.as_text(), TcAttachType::Ingress).map_err(program_io) {
        Ok((_, programs)) => {
            for program in programs {
                let name = program.name_as_str().filter(|name| !name.is_empty());
                let name = name.map_or_else(|| format!("id {}", program.id()), str::to_owned);
                see(&mut found, &mut ours_seen, "TCX", name);
            }
        }
        // Kernels without TCX.
        Err(error) if says_unsupported(&error) => {}
        Err(error) => return Err(error),
    }
    for filter in all_filters(index)? {
        let name = filter.program.unwrap_or(filter.kind);
        // Of u32 the kernel lists tables as well as what is in them.
        if !found.iter().any(|seen| seen.kind == "tc filter" && seen.name == name) {
            see(&mut found, &mut ours_seen, "tc filter", name);
        }
    }
    Ok(found)
}

/// Filters of traffic control that ask for the marks of packets that leave by an interface, each once. None if it is gone.
pub fn filters_by_mark(index: IfIndex) -> io::Result<BTreeSet<String>> {
    Ok(tc::filters_by_mark(index)?.into_iter().collect())
}

/// Whether another program has an eBPF program or filter at ingress of an interface. Pins tell the agent's own, since
/// asking for a program's name takes CAP_SYS_ADMIN. False if the interface is gone.
pub fn is_inspected(index: IfIndex, pin_path: &Path) -> io::Result<bool> {
    let is_ours = |filter: Filter| filter.program.is_some_and(|name| name.starts_with(PREFIX));
    if !all_filters(index)?.into_iter().all(is_ours) {
        return Ok(true);
    }
    let mut programs = match sys::tcx_program_ids(index.0) {
        Ok(programs) => programs,
        // Kernels without TCX, and interfaces that are gone.
        Err(error) if says_unsupported(&error) || error.raw_os_error() == Some(libc::ENODEV) => Vec::new(),
        Err(error) => return Err(error),
    };
    match program_ids(index) {
        Ok(at_xdp) => programs.extend(at_xdp),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
        Err(error) => return Err(error),
    }
    if programs.is_empty() {
        return Ok(false);
    }
    let pinned =
        link_pins(pin_path, index).into_iter().map(|pin| match PinnedLink::from_pin(pin).map_err(link_io) {
            Ok(pinned) => FdLink::from(pinned).info().map(|info| Some(info.program_id())).map_err(link_io),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        });
    let pinned = pinned.collect::<io::Result<Vec<_>>>()?;
    Ok(programs.into_iter().any(|id| !pinned.contains(&Some(id))))
}

/// Whether a program or a filter is at egress of an interface; the agent has none there. False if the interface is gone.
pub fn is_inspected_at_egress(index: IfIndex) -> io::Result<bool> {
    if tc::filters_at_egress(index)? {
        return Ok(true);
    }
    match sys::tcx_egress_program_ids(index.0) {
        Ok(programs) => Ok(!programs.is_empty()),
        // Kernels without TCX, and interfaces that are gone.
        Err(error) if says_unsupported(&error) || error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn see(found: &mut Vec<IngressProgram>, ours_seen: &mut bool, kind: &'static str, name: String) {
    debug_assert!(PROGRAM_ETHERNET.starts_with(PREFIX) && PROGRAM_L3.starts_with(PREFIX));
    if name.starts_with(PREFIX) {
        *ours_seen = true;
    } else {
        found.push(IngressProgram { kind, name, before_ours: !*ours_seen });
    }
}

/// The name of a loaded program, or its id where it has none or is gone.
fn program_name(id: u32) -> io::Result<String> {
    for program in loaded_programs() {
        let program = program.map_err(program_io)?;
        if program.id() == id
            && let Some(name) = program.name_as_str().filter(|name| !name.is_empty())
        {
            return Ok(name.to_owned());
        }
    }
    Ok(format!("id {id}"))
}
