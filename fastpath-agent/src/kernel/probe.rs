//! What this kernel can do.

use std::fmt;

use serde::Serialize;

/// Whether a feature is there.
#[derive(Clone, Debug, Serialize)]
pub struct Support;

impl Support {
    /// It is, or it couldn't be told.
    pub fn is_supported(&self) -> bool {
        true
    }
}

/// What the kernel can do.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// Flowtables can count.
    pub flowtable_counter: Support,
}

impl Kernel {
    /// Why flows can't be offloaded here; `None` if they can.
    pub fn lacks_flowtable(&self) -> Option<&str> {
        None
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)
    }
}

/// Asks the kernel.
pub fn probe() -> Kernel {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    Kernel { release: release.unwrap_or_else(|_| "unknown".to_owned()), flowtable_counter: Support }
}
