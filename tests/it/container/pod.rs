//! The DaemonSet's pod as far as a runtime has to do with it. Fields that these types don't know fail the test: what is added to the
//! manifest has to be told to the runtime here too, or be named as nothing to it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use serde::{Deserialize, de::IgnoredAny};

/// Where the guest has the manifest.
const MANIFEST: &str = "/usr/share/fastpath/deploy/base/daemonset.yaml";
const CONFIG_MAP: &str = "/usr/share/fastpath/deploy/base/configmap.yaml";

#[derive(Deserialize)]
struct DaemonSet {
    spec: DaemonSetSpec,
}

#[derive(Deserialize)]
struct DaemonSetSpec {
    template: Template,
}

#[derive(Deserialize)]
struct Template {
    spec: PodSpec,
}

/// `PodSpec`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodSpec {
    pub(super) host_network: bool,
    pub(super) security_context: PodSecurityContext,
    pub(super) containers: Vec<Container>,
    pub(super) volumes: Vec<Volume>,
    pub(super) automount_service_account_token: bool,
    #[serde(rename = "dnsPolicy")]
    _dns_policy: IgnoredAny, // the agent resolves no names
    #[serde(rename = "priorityClassName")]
    _priority_class_name: IgnoredAny, // scheduler and kubelet
    #[serde(rename = "nodeSelector")]
    _node_selector: IgnoredAny, // scheduler
    #[serde(rename = "tolerations")]
    _tolerations: IgnoredAny, // scheduler
    #[serde(rename = "enableServiceLinks")]
    _enable_service_links: IgnoredAny, // no services here
    #[serde(rename = "terminationGracePeriodSeconds")]
    pub(super) termination_grace_period_seconds: u64,
}

/// `PodSecurityContext`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodSecurityContext {
    pub(super) seccomp_profile: Typed,
}

/// Something that is no more than its type.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Typed {
    pub(super) r#type: String,
}

/// `Container`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Container {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<EnvVar>,
    pub(super) security_context: SecurityContext,
    pub(super) resources: Resources,
    pub(super) volume_mounts: Vec<VolumeMount>,
    pub(super) liveness_probe: Probe,
    pub(super) readiness_probe: Probe,
    #[serde(rename = "name")]
    _name: IgnoredAny,
    pub(super) image: String,
    #[serde(rename = "imagePullPolicy")]
    _image_pull_policy: IgnoredAny, // kubelet
}

/// `EnvVar`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EnvVar {
    pub(super) name: String,
    pub(super) value: Option<String>,
    pub(super) value_from: Option<ValueFrom>,
}

/// `EnvVarSource`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ValueFrom {
    pub(super) field_ref: FieldRef,
}

/// `ObjectFieldSelector`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FieldRef {
    pub(super) field_path: String,
}

/// `SecurityContext`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SecurityContext {
    pub(super) privileged: bool,
    pub(super) allow_privilege_escalation: bool,
    pub(super) read_only_root_filesystem: bool,
    pub(super) run_as_user: u32,
    pub(super) run_as_group: u32,
    pub(super) capabilities: Capabilities,
}

/// `Capabilities`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Capabilities {
    pub(super) drop: Vec<String>,
    pub(super) add: Vec<String>,
}

/// `ResourceRequirements`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resources {
    #[serde(rename = "requests")]
    _requests: IgnoredAny, // scheduler
    pub(super) limits: Limits,
}

/// Those that are set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) memory: String,
}

/// `VolumeMount`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VolumeMount {
    pub(super) name: String,
    pub(super) mount_path: String,
    #[serde(default)]
    pub(super) read_only: bool,
}

/// `Probe`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Probe {
    pub(super) http_get: HttpGet,
}

/// `HTTPGetAction`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpGet {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
}

/// `Volume`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) host_path: Option<HostPath>,
    pub(super) empty_dir: Option<EmptyDir>,
    pub(super) config_map: Option<ConfigMapSource>,
}

/// `ConfigMapVolumeSource`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigMapSource {
    pub(super) name: String,
    #[serde(rename = "optional")]
    _optional: IgnoredAny, // it is there
}

/// `ConfigMap`.
#[derive(Deserialize)]
struct ConfigMap {
    metadata: Named,
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// `HostPathVolumeSource`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostPath {
    pub(super) path: String,
    pub(super) r#type: String,
}

/// `EmptyDirVolumeSource`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EmptyDir {
    pub(super) medium: String,
    pub(super) size_limit: String,
}

impl HttpGet {
    /// What the kubelet is answered: the status.
    pub(super) fn ask(&self) -> String {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).expect("the agent listens");
        write!(stream, "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.path, self.host)
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }
}

/// The mode in the base's ConfigMap of this name.
pub(super) fn mode_in(name: &str) -> String {
    let text = fs::read_to_string(CONFIG_MAP).unwrap_or_else(|e| panic!("{CONFIG_MAP}: {e}"));
    let mut map: ConfigMap = serde_yaml_ng::from_str(&text).expect("a ConfigMap");
    assert_eq!(map.metadata.name, name);
    map.data.remove("mode").expect("a mode")
}

impl PodSpec {
    /// The base's pod.
    pub(super) fn read() -> Self {
        let text = fs::read_to_string(MANIFEST).unwrap_or_else(|e| panic!("{MANIFEST}: {e}"));
        let set: DaemonSet =
            serde_yaml_ng::from_str(&text).expect("a DaemonSet with fields that are known here");
        set.spec.template.spec
    }

    /// Its one container.
    pub(super) fn container(&self) -> &Container {
        assert_eq!(self.containers.len(), 1);
        &self.containers[0]
    }
}

impl Container {
    /// What the kubelet makes of `env` on a node of that name.
    pub(super) fn environment(&self, node_name: &str) -> BTreeMap<String, String> {
        let value = |variable: &EnvVar| match (&variable.value, &variable.value_from) {
            (Some(value), None) => value.clone(),
            (None, Some(from)) if from.field_ref.field_path == "spec.nodeName" => node_name.to_owned(),
            _ => panic!("{}: the kubelet does something here that this test doesn't", variable.name),
        };
        self.env.iter().map(|variable| (variable.name.clone(), value(variable))).collect()
    }

    /// `args` with `$(NAME)` filled in.
    pub(super) fn arguments(&self, environment: &BTreeMap<String, String>) -> Vec<String> {
        let fill_in = |argument: &String| {
            let filled = environment
                .iter()
                .fold(argument.clone(), |text, (name, value)| text.replace(&format!("$({name})"), value));
            assert!(!filled.contains("$("), "{argument} names a variable that isn't there");
            filled
        };
        self.args.iter().map(fill_in).collect()
    }
}

/// Bytes in a quantity like `256Mi`.
pub(super) fn bytes(quantity: &str) -> u64 {
    let (number, unit) =
        quantity.split_at(quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len()));
    let shift = match unit {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => panic!("{quantity}: a unit that this test doesn't know"),
    };
    number.parse::<u64>().expect("a number") << shift
}
