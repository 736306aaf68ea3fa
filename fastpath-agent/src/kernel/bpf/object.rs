//! Programs of the loaded object by name.

use aya::programs::{Program, SchedClassifier, Xdp};

use super::error::BpfError;

/// The program of that name in the object.
pub(super) fn classifier<'a>(
    object: &'a mut aya::Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, BpfError> {
    match object.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(BpfError::BadObject(format!("no classifier {name}"))),
    }
}

/// The XDP program of that name in the object.
pub(super) fn xdp_program<'a>(
    object: &'a mut aya::Ebpf,
    name: &'static str,
) -> Result<&'a mut Xdp, BpfError> {
    match object.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(BpfError::BadObject(format!("no XDP program {name}"))),
    }
}
