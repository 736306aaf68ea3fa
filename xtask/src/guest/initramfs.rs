//! The guest's initial file system, in two archives that the kernel unpacks one over the other: a base for each kernel
//! (tools of this machine, their libraries, the kernel's modules), made again only when those change, and a small one
//! with our own binaries. Uncompressed, since the guest's processor is emulated and this machine's is not.

use std::{
    collections::{BTreeMap, HashSet},
    env,
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use fs_err as fs;

use super::{RemoveLater, cards, kernels::Kernel};
use crate::{arch::Root, process, workspace};

/// Programs that the guest gets from this machine. Not BusyBox: its applets run each other instead of the real
/// programs.
const TOOLS: &str = "
    ip tc bridge ss ethtool nft conntrack iperf3 socat wg ping tcpdump bpftool xtables-nft-multi xtables-legacy-multi
    ipset ipvsadm jq kmod xz crun apparmor_parser nfcapd nfdump
    basename cat chmod chown chroot cksum comm cp cut date dd df dirname du echo env expr false head id join kill ln ls
    md5sum mkdir mkfifo mknod mktemp mv nice nohup nproc od paste printf pwd readlink realpath rm rmdir seq sha256sum
    shuf sleep sort stat stdbuf stty sync tac tail tee test timeout touch tr true truncate tty uname uniq wc yes
    bash chrt cmp diff find grep mawk sed xargs dmesg flock hostname lsns mount nsenter setpriv setsid taskset umount unshare
    free pgrep pkill ps sysctl top uptime";

/// Other names of those programs.
const ALIASES: &[(&str, &str)] = &[
    (
        "xtables-nft-multi",
        "iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore iptables-nft \
         iptables-nft-save iptables-nft-restore ip6tables-nft ip6tables-nft-save ip6tables-nft-restore",
    ),
    (
        "xtables-legacy-multi",
        "iptables-legacy iptables-legacy-save iptables-legacy-restore ip6tables-legacy ip6tables-legacy-save \
         ip6tables-legacy-restore",
    ),
    ("kmod", "modprobe insmod rmmod lsmod modinfo depmod"),
    ("bash", "sh"),
    ("mawk", "awk"),
];

/// What container runtimes allow by default.
const SECCOMP_PROFILE: &str = "/usr/share/containers/seccomp.json";

/// Modules, and directories that the guest gets whole; what they need from elsewhere comes along.
const MODULES: &[&str] = &[
    "kernel/net",
    "kernel/crypto",
    "kernel/lib",
    "kernel/arch/x86/crypto",
    "kernel/drivers/net",
    // A disk, and containers' file systems on it.
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/drivers/virtio",
    "kernel/fs/ext4",
    "kernel/fs/overlayfs",
];
/// Of those, what no emulated machine has a use for.
const NOT_MODULES: &[&str] =
    &["kernel/drivers/net/ethernet", "kernel/drivers/net/wireless", "kernel/net/wireless"];

/// Entry at a path of the archive.
enum Node {
    Directory,
    Link(String),
    File { source: PathBuf, mode: u32 },
    Text(String),
}

/// An archive in the making: paths without a leading slash, parents included.
#[derive(Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<String, Node>,
    /// Programs and libraries whose own libraries are in already.
    resolved: HashSet<PathBuf>,
    /// Where those are.
    pub(crate) root: Root,
}

impl Archive {
    fn put(&mut self, path: &str, node: Node) {
        let path = merged(path.trim_start_matches('/'));
        let mut end = 0;
        while let Some(slash) = path[end..].find('/') {
            end += slash;
            self.nodes.entry(path[..end].to_owned()).or_insert(Node::Directory);
            end += 1;
        }
        self.nodes.insert(path, node);
    }

    /// An archive for a system like this one.
    pub(crate) fn of(root: Root) -> Self {
        Self { root, ..Self::default() }
    }

    /// A file of this machine, at another or the same path.
    pub(crate) fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        let metadata = fs::metadata(source)?;
        let mode = metadata.permissions().mode() & 0o7777;
        self.put(path, Node::File { source: source.to_owned(), mode });
        Ok(())
    }

    /// A file or everything below a directory of this machine.
    pub(crate) fn tree(&mut self, path: &str, source: &Path) -> Result<()> {
        if !source.is_dir() {
            return self.file(path, source);
        }
        self.put(path, Node::Directory);
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            self.tree(&format!("{path}/{}", entry.file_name().to_string_lossy()), &entry.path())?;
        }
        Ok(())
    }

    /// A file with that content.
    pub(crate) fn text(&mut self, path: &str, content: impl Into<String>) {
        self.put(path, Node::Text(content.into()));
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link(target.to_owned()));
    }

    /// A program or a library, with the libraries that it needs.
    pub(crate) fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        self.file(path, source)?;
        for library in self.root.libraries(source)? {
            if self.resolved.insert(library.clone()) {
                let name = library.to_string_lossy();
                self.file(&name, &self.root.outside(&name))?;
            }
        }
        Ok(())
    }

    /// Writes the archive; on an error the file isn't touched.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let scratch = path.with_extension(format!("new-{}", std::process::id()));
        let file = fs::File::create(&scratch)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        for (number, (name, node)) in self.nodes.iter().enumerate() {
            let entry = Builder::new(name).ino(u32::try_from(number)? + 1).nlink(1);
            let content;
            let entry = match node {
                Node::Directory => {
                    content = Vec::new();
                    entry.mode(0o755).set_mode_file_type(ModeFileType::Directory)
                }
                Node::Link(target) => {
                    content = target.clone().into_bytes();
                    entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink)
                }
                Node::Text(text) => {
                    content = text.clone().into_bytes();
                    entry.mode(0o755).set_mode_file_type(ModeFileType::Regular)
                }
                Node::File { source, mode } => {
                    content = fs::read(source)?;
                    entry.mode(*mode).set_mode_file_type(ModeFileType::Regular)
                }
            };
            let mut writer = entry.write(&mut out, u32::try_from(content.len())?);
            writer.write_all(&content)?;
            writer.finish()?;
        }
        trailer(&mut out)?.flush()?;
        fs::rename(&scratch, path)?;
        Ok(())
    }
}

/// The path in a system where /bin, /sbin and /lib are links to directories in /usr.
fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    let moved = matches!(first, "bin" | "sbin" | "lib" | "lib64") && path.contains('/');
    if moved { format!("usr/{path}") } else { path.to_owned() }
}

/// The file that runs under that name, and nothing but a script's wrapper.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    system.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Ubuntu's bpftool is a script that looks for the running kernel's; any version does here.
pub(crate) fn find_bpftool() -> Option<PathBuf> {
    let packaged = |dir: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join("bpftool")).filter(|file| file.is_file()).collect()
    };
    let mut versions = packaged("/usr/lib/linux-tools");
    versions.sort();
    versions.pop().or_else(|| find_program("bpftool"))
}

fn find_tool(root: &Root, name: &str) -> Result<PathBuf> {
    let found = match name {
        _ if root.is_foreign() => root.program(name),
        "bpftool" => find_bpftool(),
        _ => find_program(name),
    };
    found.with_context(|| format!("the guest needs the program {name}, which isn't installed"))
}

/// The base archive of a kernel in `directory`, made if it isn't there or something in it has changed.
pub(crate) fn base(kernel: &Kernel, directory: &Path) -> Result<PathBuf> {
    let archive = directory.join("base.cpio");
    let stamp = directory.join("base.stamp");
    let root = Root::of(kernel.arch)?;
    let tool = |name| Ok((name, find_tool(&root, name)?));
    let tools = TOOLS.split_whitespace().map(tool).collect::<Result<Vec<_>>>()?;
    let inputs = inputs(kernel, &tools)?;
    if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == inputs) {
        return Ok(archive);
    }
    fs::create_dir_all(directory)?;
    eprintln!("guest {}: building its file system", kernel.name);
    let mut base = Archive::of(root);
    for name in ["bin", "sbin", "lib", "lib64"] {
        base.link(name, &format!("usr/{name}"));
    }
    base.put("root", Node::Directory);
    for (name, source) in &tools {
        base.program(&format!("usr/bin/{name}"), source)?;
    }
    for (name, aliases) in ALIASES {
        for alias in aliases.split_whitespace() {
            base.link(&format!("usr/bin/{alias}"), name);
        }
    }
    // The kernel itself calls this one, by its path.
    base.link("usr/sbin/modprobe", "../bin/kmod");
    add_plugins(&mut base, kernel)?;
    add_configuration(&mut base)?;
    // Removed only after the archive is written.
    let modules = RemoveLater(directory.join(format!("modules-{}", std::process::id())));
    add_modules(&mut base, kernel, &modules.0)?;
    base.write(&archive)?;
    fs::write(&stamp, inputs)?;
    Ok(archive)
}

/// What the archive is made of, so that a change is seen: this program too, which decides what goes in.
fn inputs(kernel: &Kernel, tools: &[(&str, PathBuf)]) -> Result<String> {
    let mut text = format!("{}\n", kernel.release);
    // Not by its path: building tests may have put a newer one there meanwhile.
    let this = PathBuf::from("/proc/self/exe");
    for path in tools.iter().map(|(_, path)| path).chain([&this, &kernel.image]) {
        let metadata = fs::metadata(path)?;
        let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        text.push_str(&format!("{} {} {modified}\n", path.display(), metadata.len()));
    }
    Ok(text)
}

/// Shared objects that programs load by name.
fn add_plugins(base: &mut Archive, kernel: &Kernel) -> Result<()> {
    for directory in [&format!("usr/lib/{}/xtables", kernel.arch.multiarch()), "usr/lib/tc"] {
        for entry in fs::read_dir(base.root.outside(directory)).into_iter().flatten() {
            let entry = entry?;
            base.program(&format!("{directory}/{}", entry.file_name().to_string_lossy()), &entry.path())?;
        }
    }
    Ok(())
}

fn add_configuration(base: &mut Archive) -> Result<()> {
    base.text("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n");
    base.text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    base.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    base.text("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n");
    base.text("etc/profile", "PS1='guest:\\w# '\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nexport PATH\n");
    for file in ["/etc/protocols", "/etc/services", "/lib/terminfo/v/vt220", SECCOMP_PROFILE] {
        if Path::new(file).exists() {
            base.file(file, Path::new(file))?;
        }
    }
    Ok(())
}

/// The modules, unpacked: kmod in the guest would do it at emulated speed.
fn add_modules(base: &mut Archive, kernel: &Kernel, scratch: &Path) -> Result<()> {
    let tree = scratch.join("lib/modules").join(&kernel.release);
    fs::create_dir_all(&tree)?;
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(kernel.modules.join(list), tree.join(list))
            .with_context(|| format!("cannot copy {list}"))?;
    }
    process::run(Command::new("cp").arg("-r").arg(kernel.modules.join("kernel")).arg(&tree))?;
    let files = workspace::files_below(&tree.join("kernel"))?;
    for (extension, program) in [("xz", "xz"), ("zst", "zstd"), ("gz", "gzip")] {
        let packed = |file: &&PathBuf| file.extension().is_some_and(|found| found == extension);
        let packed: Vec<_> = files.iter().filter(packed).collect();
        if !packed.is_empty() {
            process::run(Command::new(program).args(["-d", "-q", "-f", "--"]).args(packed))?;
        }
    }
    let mut depmod = Command::new(find_program("depmod").context("depmod isn't installed")?);
    process::run(depmod.arg("-b").arg(scratch).arg(&kernel.release))?;
    // Keep what is wanted and what that needs: "kernel/net/a.ko: kernel/net/b.ko kernel/lib/c.ko", dependencies complete.
    let dependencies = fs::read_to_string(tree.join("modules.dep"))?;
    let below = |module: &str, list: &[&str]| {
        list.iter().any(|path| module == *path || module.starts_with(&format!("{path}/")))
    };
    let mut keep = HashSet::new();
    for line in dependencies.lines() {
        let (module, needs) = line.split_once(':').unwrap_or((line, ""));
        if below(module, MODULES) && !below(module, NOT_MODULES) || below(module, cards::MODULES) {
            keep.insert(module);
            keep.extend(needs.split_whitespace());
        }
    }
    for module in &keep {
        base.file(&format!("usr/lib/modules/{}/{module}", kernel.release), &tree.join(module))?;
    }
    for entry in fs::read_dir(&tree)? {
        let list = entry?;
        if list.path().is_file() {
            let name = list.file_name().to_string_lossy().into_owned();
            base.file(&format!("usr/lib/modules/{}/{name}", kernel.release), &list.path())?;
        }
    }
    Ok(())
}

/// The whole file system in `directory`: what is there already, and `extra` over it. The kernel unpacks several archives in turn. A
/// guest that is just reading the old file goes on.
pub(crate) fn whole(directory: &Path, below: &[&Path], extra: &Archive) -> Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let (own, whole) = (directory.join("extra.cpio"), directory.join("initramfs.cpio"));
    extra.write(&own)?;
    let scratch = whole.with_extension(format!("new-{}", std::process::id()));
    let mut out = fs::File::create(&scratch)?;
    for archive in below.iter().copied().chain([own.as_path()]) {
        io::copy(&mut fs::File::open(archive)?, &mut out)?;
    }
    fs::rename(&scratch, &whole)?;
    Ok(whole)
}
