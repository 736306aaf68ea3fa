//! The program that sees flows go into the flowtable: attaching it, and what it is told. It is the running agent's: with the
//! agent it goes, and signals are all asked about again.

use std::{fs, os::unix::fs::MetadataExt as _};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{KProbe, Program},
};
use fastpath_common::{MAP_PROBE, PROGRAM_ADDED, Probe, probe::PROBED_FUNCTION};

use super::{BpfError, layout};

/// The program, attached.
pub(super) struct Added {
    map: Array<MapData, Probe>,
    probe: Probe,
}

impl Added {
    /// Attaches it to flowtables of the calling thread's network namespace.
    pub(super) fn attach(object: &mut Ebpf) -> Result<Self, BpfError> {
        let failed = |error| BpfError::program(PROGRAM_ADDED, error);
        kprobe(object)?.load().map_err(failed)?;
        let io = |operation: &'static str| move |error| BpfError::io(operation, error);
        let found = layout::of_this_kernel().map_err(io("read the kernel's types"))?;
        let Some(layout) = found else {
            return Err(BpfError::BadObject("this kernel's flowtable has an unknown layout".to_owned()));
        };
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(io("read the network namespace"))?;
        let probe = Probe { netns: namespace.ino() as u32, ..layout };
        let map = object.take_map(MAP_PROBE).ok_or_else(|| BpfError::BadObject("no map of it".to_owned()))?;
        let mut map = Array::try_from(map).map_err(|e| BpfError::map("open the probe's map", e))?;
        map.set(0, probe, 0).map_err(|e| BpfError::map("write the probe's map", e))?;
        kprobe(object)?.attach(PROBED_FUNCTION, 0).map_err(failed).map_err(|error| match error {
            BpfError::Permission { .. } if is_paranoid() => BpfError::PerfEventParanoid,
            error => error,
        })?;
        Ok(Self { map, probe })
    }

    /// Whether crossings of offloaded flows are signalled too.
    pub(super) fn tell_all(&mut self, all: bool) -> Result<(), BpfError> {
        self.probe.tell_all = all.into();
        self.map.set(0, self.probe, 0).map_err(|e| BpfError::map("write the probe's map", e))
    }
}

/// Whether probes take more than CAP_PERFMON here: so Debian's kernels and Ubuntu's have it above 2, and they start with more.
fn is_paranoid() -> bool {
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    level.is_ok_and(|level| level.trim().parse::<i32>().is_ok_and(|level| level > 2))
}

fn kprobe(object: &mut Ebpf) -> Result<&mut KProbe, BpfError> {
    match object.program_mut(PROGRAM_ADDED) {
        Some(Program::KProbe(program)) => Ok(program),
        _ => Err(BpfError::BadObject(format!("no kprobe {PROGRAM_ADDED}"))),
    }
}
