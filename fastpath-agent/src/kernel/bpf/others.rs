//! Programs of others that see an interface's packets before the flowtable does: XDP, TCX, and tc filters of any
//! kind. Looks only.

use std::{collections::BTreeSet, io};

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use fastpath_common::{PROGRAM_ETHERNET, PROGRAM_L3};

use super::{
    attach::{current_name, says_unsupported},
    error::program_io,
    tc::all_filters,
    xdp::program_ids,
};
use crate::core::{doctor::facts::IngressProgram, model::IfIndex};

/// What all names of our programs begin with.
const OURS: &str = "fastpath_";

/// Programs of others at ingress of an interface, in the order in which they run. None if the interface is gone.
pub fn at_ingress(index: IfIndex) -> io::Result<Vec<IngressProgram>> {
    let Ok(name) = current_name(index) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut ours_seen = false;
    // One program has two ids where the kernel says its mode too.
    for id in BTreeSet::from_iter(program_ids(index)?) {
        see(&mut found, &mut ours_seen, "XDP", program_name(id)?);
    }
    match SchedClassifier::query_tcx(name.as_str(), TcAttachType::Ingress).map_err(program_io) {
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
        see(&mut found, &mut ours_seen, "tc filter", name);
    }
    Ok(found)
}

fn see(found: &mut Vec<IngressProgram>, ours_seen: &mut bool, kind: &'static str, name: String) {
    debug_assert!(PROGRAM_ETHERNET.starts_with(OURS) && PROGRAM_L3.starts_with(OURS));
    if name.starts_with(OURS) {
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
