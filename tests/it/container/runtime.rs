//! What kubelet and containerd make of the pod, run with crun: `config.json` is made from the DaemonSet and the image's
//! configuration, its defaults are those of containerd's CRI plugin.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use fastpath_tests::{agent::Agent, config_map::ConfigMapVolume, netns::Netns, wait_until};
use nix::mount::{MntFlags, MsFlags, mount as mount_now, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    image::{ARCHIVE, Image},
    pod::{PodSpec, bytes, mode_in},
    seccomp,
};

/// What the pod is told that it runs on.
pub(super) const NODE_NAME: &str = "node-1";

/// The image, unpacked on the node.
pub(super) struct Unpacked {
    directory: TempDir,
    config: Value,
    name: String,
}

impl Unpacked {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir_in("/run").expect("a directory");
        let image = Image::known(Path::new(ARCHIVE));
        image.unpack(&directory.path().join("rootfs"));
        Self { directory, config: image.config, name: image.name }
    }

    /// The pod as the DaemonSet has it.
    pub(super) fn pod(&self) -> Bundle {
        self.changed(|_| {})
    }

    /// With something changed in it.
    pub(super) fn changed(&self, change: impl FnOnce(&mut PodSpec)) -> Bundle {
        let mut pod = PodSpec::read();
        change(&mut pod);
        // The kustomization gives it the registry and the tag.
        let name = format!("docker.io/library/{}:{}", pod.container().image, env!("CARGO_PKG_VERSION"));
        assert_eq!(self.name, name, "the DaemonSet's image");
        let directory = tempfile::tempdir_in("/run").expect("a directory");
        let mode = config_map(&pod, directory.path());
        let mut config = config(&pod, &self.config, directory.path());
        config["root"]["path"] = self.directory.path().join("rootfs").to_str().expect("plain text").into();
        Bundle { directory, pod, config, mode }
    }
}

/// A pod that can be started.
pub(super) struct Bundle {
    directory: TempDir,
    pub(super) pod: PodSpec,
    pub(super) config: Value,
    /// The ConfigMap's volume.
    pub(super) mode: ConfigMapVolume,
}

impl Bundle {
    /// Starts it in the node's network namespace (`hostNetwork`).
    pub(super) fn start(&self, node: &Netns, name: &'static str) -> Container {
        let path = self.directory.path();
        fs::write(path.join("config.json"), self.config.to_string()).expect("a file");
        // An initramfs is no file system that one could pivot from.
        let mut command = crun();
        command.args(["run", "--no-pivot", "--bundle"]).arg(path).arg(name);
        Container { name, node: node.clone(), agent: Agent::spawn(node, &mut command) }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for volume in self.pod.volumes.iter().filter(|volume| volume.empty_dir.is_some()) {
            let _ = umount2(&self.directory.path().join(&volume.name), MntFlags::MNT_DETACH);
        }
    }
}

fn crun() -> Command {
    let mut command = Command::new("crun");
    command.args(["--root", "/run/crun", "--cgroup-manager=cgroupfs"]);
    command
}

/// A container that runs; removed when dropped.
pub(super) struct Container {
    name: &'static str,
    node: Netns,
    /// crun, and so the agent's log and end.
    pub(super) agent: Agent,
}

impl Container {
    /// `kubectl exec`: the agent's binary with these words, and the container's environment.
    fn exec(&self, words: &[&str]) -> Child {
        let mut command = crun();
        command.args(["exec", self.name, "fastpath-agent"]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.node.spawn(&mut command)
    }

    /// Lines of the log that say that something isn't as it should be.
    pub(super) fn warnings(&self) -> Vec<String> {
        let lines = self.agent.log().into_iter();
        lines.filter(|line| ["WARN", "ERROR", "error:"].iter().any(|word| line.contains(word))).collect()
    }

    /// What that prints; it must succeed.
    pub(super) fn output(&self, words: &[&str]) -> String {
        let output = self.exec(words).wait_with_output().expect("crun");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {}\n{errors}", output.status);
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What it prints until it ends by itself, of something that happens after its start.
    pub(super) fn output_while(&self, words: &[&str], happens: impl FnOnce()) -> String {
        let child = self.exec(words);
        // Until it listens; emulated, it is started in a second or so.
        thread::sleep(Duration::from_secs(3));
        happens();
        let output = child.wait_with_output().expect("crun");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What the kubelet does to end a pod.
    pub(super) fn terminate(mut self, grace: Duration) -> Vec<String> {
        let output =
            self.node.spawn(crun().args(["kill", self.name, "TERM"])).wait_with_output().expect("crun");
        assert!(output.status.success());
        let status = self.agent.wait_exit(grace);
        assert!(status.success(), "{status}\n{}", self.agent.log().join("\n"));
        self.agent.log()
    }

    /// Waits for its end by itself.
    pub(super) fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        self.agent.wait_exit(limit)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have gone already.
        let _ = crun().args(["delete", "--force", self.name]).output();
        wait_until("the container's end", Duration::from_secs(5), || {
            !PathBuf::from("/run/crun").join(self.name).exists()
        });
    }
}

fn config(pod: &PodSpec, image: &Value, directory: &Path) -> Value {
    let container = pod.container();
    let security = &container.security_context;
    assert!(pod.host_network && !security.privileged && security.capabilities.drop == ["ALL"]);
    assert!(!pod.automount_service_account_token);
    let environment = container.environment(NODE_NAME);
    let mut args: Vec<String> = strings(&image["config"]["Entrypoint"]);
    args.extend(container.arguments(&environment));
    let mut env = strings(&image["config"]["Env"]);
    env.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    let capabilities: Vec<_> = security.capabilities.add.iter().map(|name| format!("CAP_{name}")).collect();
    assert_eq!(pod.security_context.seccomp_profile.r#type, "RuntimeDefault");
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": security.run_as_user, "gid": security.run_as_group },
            "args": args,
            "env": env,
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": !security.allow_privilege_escalation,
            "oomScoreAdj": -997,
        },
        "root": { "readonly": security.read_only_root_filesystem },
        "mounts": mounts(pod, directory),
        "linux": {
            // Those of network and host name are the node's.
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "mount" }, { "type": "cgroup" }],
            "cgroupsPath": format!("/{}", directory.file_name().expect("a name").display()),
            "resources": {
                "memory": { "limit": bytes(&container.resources.limits.memory) },
                "devices": [{ "allow": false, "access": "rwm" }],
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp::runtime_default(&capabilities),
        },
    })
}

/// Fills the volume of the ConfigMap as the kubelet does.
fn config_map(pod: &PodSpec, directory: &Path) -> ConfigMapVolume {
    let mut maps = pod.volumes.iter().filter_map(|volume| Some((&volume.name, volume.config_map.as_ref()?)));
    let (volume, map) = maps.next().expect("a ConfigMap");
    assert!(maps.next().is_none());
    let directory = directory.join(volume);
    fs::create_dir(&directory).expect("a directory");
    ConfigMapVolume::new(&directory, "mode", &mode_in(&map.name))
}

fn mounts(pod: &PodSpec, directory: &Path) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    for wanted in &pod.container().volume_mounts {
        let volume =
            pod.volumes.iter().find(|volume| volume.name == wanted.name).expect("a volume of that name");
        let access = if wanted.read_only { "ro" } else { "rw" };
        mounts.push(match (&volume.host_path, &volume.empty_dir, &volume.config_map) {
            (None, None, Some(_)) => json!({
                "destination": wanted.mount_path, "type": "bind",
                "source": directory.join(&wanted.name).to_str().expect("plain text"),
                "options": ["rbind", "rprivate", access],
            }),
            (Some(host), None, None) => {
                assert_eq!(host.r#type, "Directory");
                assert!(Path::new(&host.path).is_dir(), "the kubelet wouldn't start the pod");
                json!({
                    "destination": wanted.mount_path, "type": "bind", "source": host.path,
                    "options": ["rbind", "rprivate", access],
                })
            }
            (None, Some(empty), None) => {
                assert_eq!(empty.medium, "Memory");
                let source = directory.join(&wanted.name);
                fs::create_dir_all(&source).expect("a directory");
                let size = format!("size={}", bytes(&empty.size_limit));
                let source = source.to_str().expect("plain text");
                mount_now(Some("tmpfs"), source, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
                    .expect("a tmpfs");
                json!({
                    "destination": wanted.mount_path, "type": "bind", "source": source,
                    "options": ["rbind", "rprivate", access],
                })
            }
            _ => panic!("{}: a kind of volume that this test doesn't know", volume.name),
        });
    }
    mounts.into()
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|word| word.as_str().expect("a string").to_owned()).collect()
}
