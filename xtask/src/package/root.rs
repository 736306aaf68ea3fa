//! A small system with systemd and dpkg, of the release that this machine has, as an archive that a guest boots from:
//! made once with mmdebstrap, kept in the user's cache, never installed.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{progress, setup, workspace};

/// Beyond what is essential: PID 1, what maintainer scripts call, and what the agent's package depends on.
const PACKAGES: &str = "systemd,systemd-sysv,init-system-helpers,kmod,libmnl0,libnftnl11";

/// What nobody reads in a guest.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/zoneinfo/*", "/usr/share/i18n/*"];

/// The archive, a cpio file that is made of `codename`'s packages.
fn archive(codename: &str) -> Result<PathBuf> {
    Ok(workspace::cache()?.join("roots").join(format!("{codename}.cpio")))
}

/// The archive, if it is in the cache.
pub(crate) fn cached() -> Result<Option<PathBuf>> {
    Ok(Some(archive(&codename()?)?).filter(|path| path.exists()))
}

/// Makes it.
pub(crate) fn make() -> Result<()> {
    let codename = codename()?;
    let path = archive(&codename)?;
    let directory = path.parent().context("a file in the cache has a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // Renamed at the end, so that half of one is never taken for it.
    let scratch = path.with_extension(format!("new-{}", std::process::id()));
    // With apt's own rights mmdebstrap needs no tricks.
    let mut command = setup::as_root("mmdebstrap")?.context(
        "making a small Debian system needs root, and sudo wants a password here: run `sudo -v` first",
    )?;
    command.args(["--quiet", "--variant=essential", &format!("--include={PACKAGES}")]);
    for left_out in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={left_out}"));
    }
    let pack = format!(
        "cd \"$1\" && rm -rf var/cache/apt var/lib/apt/lists && find . -xdev | cpio --quiet -o -H newc -F '{0}' && \
         chmod a+r '{0}'",
        scratch.display()
    );
    // The system itself is thrown away: the archive is what is wanted.
    command.arg(format!("--customize-hook={pack}")).args([&codename, "/dev/null"]);
    let made = progress::step(&format!("making a small {codename} system for the guest"), &mut command);
    let result = made.and_then(|()| Ok(fs::rename(&scratch, &path)?));
    if result.is_err() {
        let _ = fs::remove_file(&scratch);
    }
    result
}

/// What the release of this machine is called, as in `bookworm`.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"').to_owned())
}
