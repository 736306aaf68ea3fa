//! What a guest with systemd as PID 1 has beyond its system: a service that obeys the host as `init` does in the other
//! guests, and units that are switched off.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    directory,
    initramfs::{self, Archive},
    kernels::Kernel,
};

/// PID 1.
pub(crate) const INIT: &str = "usr/lib/systemd/systemd";

/// A service that does what PID 1 of the other guests does: obeys the host over the second serial port.
const UNIT: &str = "[Unit]
Description=What the host asks for
After=basic.target
[Service]
Environment=FASTPATH_GUEST=1 RUST_BACKTRACE=1 HOME=/root
ExecStart=/usr/bin/bash /job/serve
";

/// Answers `run SECONDS PROGRAM ARGUMENTS…` as `init` does.
const SERVE: &str = "stty -F /dev/ttyS1 115200 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo @@READY
while read -r word limit command; do
    SECONDS=0
    timeout --kill-after=5 \"$limit\" $command </dev/null 2>&1 | sed -u 's/^/| /'
    status=${PIPESTATUS[0]}
    if [ \"$status\" = 124 ]; then end='time-limit 0'; else end=\"exit $status\"; fi
    echo \"@@END $end $SECONDS\"
done
";

/// Units that only cost time: consoles without a user.
const MASKED: &[&str] = &["getty.target", "serial-getty@ttyS0.service", "getty-static.service"];

/// Puts it in, below `top` (empty, or a directory with a slash behind it) where it becomes a part of the system's own files.
pub(crate) fn add(archive: &mut Archive, top: &str) {
    archive.text("job/serve", SERVE);
    // The one that mmdebstrap leaves there forbids to start services.
    archive.text(&format!("{top}usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 0\n");
    let units = format!("{top}etc/systemd/system");
    archive.text(&format!("{units}/job.service"), UNIT);
    archive.link(&format!("{units}/multi-user.target.wants/job.service"), "../job.service");
    for name in MASKED {
        archive.link(&format!("{units}/{name}"), "/dev/null");
    }
}

/// What a guest finds in `/job`.
pub(crate) type Files = [(&'static str, PathBuf)];

/// The file system of guests for one purpose: tools and modules as in the other guests, `below` over them, and over that `extra` and the
/// files that are tried.
pub(crate) fn file_system(
    kernel: &Kernel,
    purpose: &str,
    below: Option<&Path>,
    mut extra: Archive,
    files: &Files,
) -> Result<PathBuf> {
    let base = initramfs::base(kernel, &directory().join(&kernel.name))?;
    for (name, file) in files {
        extra.file(&format!("job/{name}"), file)?;
    }
    let below: Vec<&Path> = [Some(base.as_path()), below].into_iter().flatten().collect();
    initramfs::whole(&directory().join(format!("{}-{purpose}", kernel.name)), &below, &extra)
}
