//! Debian systems that guests boot, of the release that this machine has: made once with mmdebstrap, kept in the user's
//! cache, never installed. What is in one is said here, not what is done with it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::{process, progress, workspace};

/// What no test reads in a guest.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/zoneinfo/*", "/usr/share/i18n/*"];

/// A system.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct System {
    /// For who is asked whether it may be made.
    pub(crate) described: &'static str,
    /// Seconds and megabytes.
    pub(crate) cost: (u64, u64),
    /// Behind the release's name, in the cache.
    suffix: &'static str,
    /// Whose it is, if it isn't this machine's: then its packages are only unpacked.
    architecture: Option<&'static str>,
    /// Packages beyond what is essential.
    packages: &'static str,
    /// Whether some of them are in the release's backports only.
    backports: bool,
    /// Packs the system in directory `$1` into the file `$2`.
    pack: &'static str,
}

/// A small system, as an archive that a kernel unpacks: PID 1, what maintainer scripts call, and what the agent's package
/// depends on.
pub(crate) const SMALL: System = System {
    described: "a small system with systemd for the test guest",
    cost: (60, 60),
    suffix: ".cpio",
    architecture: None,
    packages: "systemd,systemd-sysv,init-system-helpers,kmod,libmnl0,libnftnl11,nftables",
    backports: false,
    pack: "cd \"$1\" && rm -rf var/cache/apt var/lib/apt/lists && find . -xdev | cpio --quiet -o -H newc -F \"$2\"",
};

/// A system for arm64, as a directory, unpacked and not installed: the libraries that the agent is linked with, and what the guest
/// needs besides. No program of it runs on this machine, so what dpkg's tools ask for is written here: which package has a file, and in
/// `DEBIAN` what depending on a library takes. Links don't lead out of it.
pub(crate) const ARM64: System = System {
    described: "arm64's libraries, programs and kernel, unpacked and not installed",
    cost: (50, 90),
    suffix: "-arm64",
    architecture: Some("arm64"),
    packages: "libmnl-dev,libnftnl-dev,linux-image-6.12-cloud-arm64,\
               apparmor,bash,bpftool,conntrack,coreutils,crun,diffutils,ethtool,findutils,grep,hostname,iperf3,ipset,iproute2,iptables,\
               iputils-ping,ipvsadm,jq,kmod,mawk,mount,nfdump,nftables,procps,sed,socat,tcpdump,util-linux,wireguard-tools,xz-utils",
    backports: false,
    pack: "set -e; cd \"$1\"; database=var/lib/dpkg; echo 1 > $database/info/format; mkdir DEBIAN
for deb in var/cache/apt/archives/*.deb; do
    rm -rf tmp/control; dpkg-deb --control \"$deb\" tmp/control
    name=$(dpkg-deb --field \"$deb\" Package)
    [ \"$(dpkg-deb --field \"$deb\" Multi-Arch)\" != same ] || name=$name:arm64
    for file in symbols shlibs; do
        [ ! -e tmp/control/$file ] || cat tmp/control/$file >> DEBIAN/$file
    done
    dpkg-deb --fsys-tarfile \"$deb\" | tar --list | sed 's,^\\.,,; s,/$,,; s,^$,/.,' > \"$database/info/$name.list\"
    { cat tmp/control/control; echo 'Status: install ok installed'; echo; } >> $database/status
done
find bin lib sbin usr -type l -lname '/*' | while read -r link; do ln -sfnr \".$(readlink \"$link\")\" \"$link\"; done
mkdir \"$2\"; tar --create DEBIAN bin boot lib sbin usr $database | tar --extract --no-same-owner --directory \"$2\"
chown -R --reference=\"$(dirname \"$2\")\" \"$2\"",
};

/// A system with the software that the agent works beside, as a disk. No service starts by itself: a trial starts its own.
pub(crate) const FIELD: System = System {
    described: "a system with firewalls, container engines and tunnels for the test guest (2 GB of disk)",
    cost: (180, 700),
    suffix: "-field.ext4",
    architecture: None,
    packages: "systemd,systemd-sysv,init-system-helpers,kmod,udev,dbus,libmnl0,libnftnl11,\
               iproute2,nftables,iptables,ipset,conntrack,bpftool,ethtool,procps,iputils-ping,socat,tcpdump,apparmor,apt,sudo,\
               docker.io,containerd,containernetworking-plugins,curl,podman,netavark,aardvark-dns,\
               firewalld,ufw,suricata,libhtp2/bookworm-backports,keepalived,ipvsadm,strongswan-swanctl,charon-systemd,ppp,pppoe,wireguard-tools,openvpn,fail2ban,\
               openvswitch-switch,libvirt-daemon-system,libvirt-clients,dnsmasq-base,frr,network-manager",
    backports: true,
    // Without what is mounted in it meanwhile.
    pack: "rm -rf \"$1\"/var/cache/apt/* \"$1\"/var/lib/apt/lists/* \"$1\"/etc/systemd/system/*.wants \"$1\"/etc/rc?.d/S* && \
           unshare --mount sh -c 'mount --bind \"$1\" /mnt && mke2fs -q -t ext4 -d /mnt \"$2\" 4G' sh \"$1\" \"$2\"",
};

impl System {
    /// Where it is, made of `codename`'s packages.
    fn path(&self, codename: &str) -> Result<PathBuf> {
        Ok(workspace::cache()?.join("roots").join(format!("{codename}{}", self.suffix)))
    }

    /// What it is made of, so that a change is seen.
    fn recipe(&self) -> String {
        format!("{}\n{}\n{}\n", self.packages, self.pack, LEFT_OUT.join(" "))
    }

    /// Its file, if it is in the cache and made as it would be now.
    pub(crate) fn cached(&self) -> Result<Option<PathBuf>> {
        let path = self.path(&codename()?)?;
        let same = fs::read_to_string(path.with_extension("recipe")).is_ok_and(|old| old == self.recipe());
        Ok(Some(path).filter(|path| same && path.exists()))
    }

    /// Why it can't be made on this machine.
    pub(crate) fn hindrance(&self) -> Result<Option<String>> {
        let codename = codename()?;
        Ok(((self.backports || self.architecture.is_some()) && codename != "bookworm").then(|| {
            format!(
                "the system {} is made of Debian 12's packages, and this machine's apt has {codename}'s",
                self.suffix.trim_matches(['-', '.'])
            )
        }))
    }

    /// Makes it.
    pub(crate) fn make(&self) -> Result<()> {
        let codename = codename()?;
        if let Some(reason) = self.hindrance()? {
            bail!("{reason}");
        }
        let path = self.path(&codename)?;
        let directory = path.parent().context("a file in the cache has a directory")?;
        fs::create_dir_all(directory)?;
        // Renamed at the end, so that half of one is never taken for it.
        let scratch = path.with_extension(format!("new-{}", std::process::id()));
        // With apt's own rights mmdebstrap needs no tricks.
        let mut command = process::as_root("mmdebstrap")?.context(
            "making a Debian system needs root, and sudo wants a password here: run `sudo -v` first",
        )?;
        command.args(["--quiet", &format!("--include={}", self.packages)]);
        let hook = match self.architecture {
            Some(architecture) => {
                command.args(["--variant=extract", &format!("--architectures={architecture}")]);
                "--extract-hook"
            }
            None => {
                command.arg("--variant=essential");
                "--customize-hook"
            }
        };
        for left_out in LEFT_OUT {
            command.arg(format!("--dpkgopt=path-exclude={left_out}"));
        }
        if self.backports {
            // From the same archive as the release.
            command.arg(format!(
                "--setup-hook=cd \"$1\"/etc/apt && \
                 sed -n 's/ {codename} main$/ {codename}-backports main/p' sources.list > sources.list.d/backports.list"
            ));
        }
        let scratch_name = scratch.display();
        let pack = format!("set -- \"$1\" '{scratch_name}' && {} && chmod a+r '{scratch_name}'", self.pack);
        // The system itself is thrown away: the file is what is wanted.
        command.arg(format!("{hook}={pack}")).args([&codename, "/dev/null"]);
        let label = format!("making the system {codename}{}", self.suffix);
        let made = progress::step(&label, &mut command);
        let result = made.and_then(|()| {
            let _ = fs::remove_dir_all(&path); // of an older recipe
            fs::rename(&scratch, &path)?;
            Ok(fs::write(path.with_extension("recipe"), self.recipe())?)
        });
        if result.is_err() {
            let _ = fs::remove_file(&scratch).or_else(|_| fs::remove_dir_all(&scratch));
        }
        result
    }
}

/// What the release of this machine is called, as in `bookworm`.
fn codename() -> Result<String> {
    let name = workspace::os_release("VERSION_CODENAME");
    if name.is_empty() { bail!("/etc/os-release names no VERSION_CODENAME") } else { Ok(name) }
}
