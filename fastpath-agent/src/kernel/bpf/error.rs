//! What can go wrong with eBPF, each with its remedy in one line.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError, tc::TcError},
    util::KernelVersion,
};

use super::denied::Denied;
use crate::core::model::IfName;

/// The programs need ring buffers (5.8), coarse clock reading (5.11) and fetching atomics (5.12).
const LOWEST_KERNEL: KernelVersion = KernelVersion::new(5, 12, 0);
/// The verifier's log ends with what matters: its verdict is before the statistics.
const LOG_LINES: usize = 4;

/// Loading, attaching or reading the eBPF programs failed.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The agent was built without an eBPF object.
    #[error(
        "this agent was built without eBPF programs; build it with `cargo xtask build`, or run it with --ebpf=off"
    )]
    NotBuilt,
    /// The embedded object isn't one that aya can read.
    #[error("the embedded eBPF object is damaged ({0}); build it again with `cargo xtask build`")]
    BadObject(String),
    /// The pin directory is not on a bpf file system.
    #[error("no bpf file system at {}; mount one with `mount -t bpf bpf /sys/fs/bpf`, or name another place with --pin-path", path.display())]
    NoBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// The kernel or the file system said EPERM or EACCES.
    #[error("not permitted to {operation} {denied}; or run with --ebpf=off")]
    Permission {
        /// What was tried.
        operation: String,
        /// What it takes.
        denied: Denied,
    },
    /// The kernel is too old or built without.
    #[error("this kernel has no {feature} (Linux {lowest_kernel} or newer has); run with --ebpf=off")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// Where it came from.
        lowest_kernel: &'static str,
    },
    /// The verifier refused a program.
    #[error(
        "the kernel's verifier refused the program {program}: {source}: {log}; please report it, and run with --ebpf=off meanwhile"
    )]
    Verifier {
        /// Name of the program.
        program: &'static str,
        /// errno.
        source: io::Error,
        /// The last lines of the verifier's log.
        log: String,
    },
    /// A setting of the kernel forbids the probe.
    #[error(
        "the kernel allows no probe without CAP_SYS_ADMIN while kernel.perf_event_paranoid is above 2: set it to 2 to follow offloaded flows at lower cost"
    )]
    PerfEventParanoid,
    /// The types of conntrack's module can't be opened.
    #[error("asking conntrack takes CAP_SYS_ADMIN to start: grant it, or start the agent with --forward=off")]
    ModuleTypes,
    /// There is no memory for them.
    #[error(
        "the memory limit of {} MiB is too low for eBPF: raise it to {} MiB or more, or run with --ebpf=off",
        limit >> 20,
        mib(*needed)
    )]
    MemoryLimit {
        /// In bytes.
        limit: u64,
        /// For the smallest map, in bytes.
        needed: u64,
    },
    /// A map couldn't be made.
    #[error("cannot create the map {map}: {source}; if memory is short, choose a smaller --max-flows")]
    CreateMap {
        /// Name of the map.
        map: String,
        /// errno.
        source: io::Error,
    },
    /// A program couldn't be attached or detached.
    #[error("cannot {operation} {iface}: {source}")]
    Attach {
        /// "attach to" or "detach from".
        operation: &'static str,
        /// The interface.
        iface: IfName,
        /// errno.
        source: io::Error,
    },
    /// The pinned maps are of another version of the agent.
    #[error("the maps in {} have ABI version {found}, this agent has {expected}; a running agent of this version replaces them, `fastpath-agent cleanup` removes them", path.display())]
    AbiMismatch {
        /// The pin directory.
        path: PathBuf,
        /// As read from the config map; 0 if they couldn't be told.
        found: u32,
        /// [`fastpath_common::ABI_VERSION`].
        expected: u32,
    },
    /// Nothing is pinned.
    #[error("no maps are pinned in {}; is the agent running with --ebpf=tc and this --pin-path?", path.display())]
    NotPinned {
        /// The pin directory.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was tried.
        operation: String,
        /// errno.
        source: io::Error,
    },
}

impl BpfError {
    /// The interface isn't there (any more).
    pub fn is_about_absence(&self) -> bool {
        matches!(
            self,
            Self::Io { source, .. } | Self::Attach { source, .. } if source.raw_os_error() == Some(libc::ENODEV)
        )
    }

    /// An I/O error, told apart by errno.
    pub(super) fn io(operation: impl Into<String>, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                Self::Permission { operation: operation.into(), denied: Denied::find() }
            }
            Some(libc::ENOSYS) => Self::Unsupported { feature: "bpf() system call", lowest_kernel: "5.12" },
            _ => Self::Io { operation: operation.into(), source },
        }
    }

    /// A map operation failed.
    pub(super) fn map(operation: impl Into<String>, error: MapError) -> Self {
        match error {
            MapError::CreateError { name, io_error } if !is_permission(&io_error) => {
                Self::CreateMap { map: name, source: io_error }
            }
            error => Self::io(operation, map_io(error)),
        }
    }

    /// The object couldn't be loaded.
    pub(super) fn object(error: EbpfError) -> Self {
        match error {
            EbpfError::MapError(error) => Self::map("create eBPF maps", error),
            EbpfError::ProgramError(error) => Self::io("load eBPF programs", program_io(error)),
            error => Self::BadObject(chain(&error)),
        }
    }

    /// A program couldn't be loaded.
    pub(super) fn program(program: &'static str, error: ProgramError) -> Self {
        match error {
            // The verifier says EACCES too, but not without a word; and it forbids more to whom a capability is missing.
            ProgramError::LoadError { io_error, verifier_log }
                if is_permission(&io_error)
                    && (verifier_log.to_string().trim().is_empty() || Denied::find().is_a_capability()) =>
            {
                Self::io("load eBPF programs", io_error)
            }
            ProgramError::LoadError { .. } if KernelVersion::current().is_ok_and(|v| v < LOWEST_KERNEL) => {
                Self::Unsupported { feature: "eBPF that the programs need", lowest_kernel: "5.12" }
            }
            ProgramError::LoadError { io_error, verifier_log } => {
                Self::Verifier { program, source: io_error, log: last_lines(&verifier_log.to_string()) }
            }
            error => Self::io("load eBPF programs", program_io(error)),
        }
    }

    /// Attaching or detaching failed.
    pub(super) fn attach(operation: &'static str, iface: &IfName, source: io::Error) -> Self {
        if is_permission(&source) {
            return Self::io(format!("{operation} {iface}"), source);
        }
        Self::Attach { operation, iface: iface.clone(), source }
    }
}

fn is_permission(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

fn last_lines(log: &str) -> String {
    let mut lines: Vec<_> =
        log.lines().map(str::trim).filter(|l| !l.is_empty()).rev().take(LOG_LINES).collect();
    lines.reverse();
    lines.join(" | ")
}

/// The error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// The errno in a map error, or its text.
pub(super) fn map_io(error: MapError) -> io::Error {
    match error {
        MapError::CreateError { io_error, .. } | MapError::IoError(io_error) => io_error,
        MapError::SyscallError(error) => error.io_error,
        MapError::PinError { error: PinError::SyscallError(error), .. } => error.io_error,
        error => io::Error::other(chain(&error)),
    }
}

/// The errno in a program error, or its text.
pub(super) fn program_io(error: ProgramError) -> io::Error {
    let errno = match &error {
        ProgramError::NetlinkError(e) | ProgramError::TcError(TcError::NetlinkError(e)) => e.raw_os_error(),
        _ => None,
    };
    match (errno, error) {
        (Some(errno), _) => io::Error::from_raw_os_error(errno),
        (_, ProgramError::SyscallError(error)) => error.io_error,
        (_, ProgramError::IOError(error) | ProgramError::TcError(TcError::IoError(error))) => error,
        (_, error) => io::Error::other(chain(&error)),
    }
}

/// The errno in a link error, or its text.
pub(super) fn link_io(error: LinkError) -> io::Error {
    match error {
        LinkError::SyscallError(error) => error.io_error,
        error => io::Error::other(chain(&error)),
    }
}

/// The errno in a pinning error, or its text.
pub(super) fn pin_io(error: PinError) -> io::Error {
    match error {
        PinError::SyscallError(error) => error.io_error,
        error => io::Error::other(chain(&error)),
    }
}

/// Mebibytes that hold so many bytes.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
