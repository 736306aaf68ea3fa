//! The manifests below deploy/, without a cluster: every overlay is built, and what comes out is compared with the types of the
//! Kubernetes API and with the agent's flags.

mod helm;
mod kustomize;

use std::{collections::BTreeSet, fs};

use clap::{CommandFactory, Parser};
use fastpath_agent::{cli::Cli, config::Config, core::mode::Mode};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use kustomize::{apply, directory, read, render};

/// All that can be applied.
fn all() -> Vec<(String, Vec<Value>)> {
    let overlays = fs::read_dir(directory().join("overlays")).expect("overlays");
    let mut names: Vec<_> = overlays
        .map(|entry| {
            format!("overlays/{}", entry.expect("an entry").file_name().to_str().expect("plain text"))
        })
        .collect();
    names.push("base".to_owned());
    names.sort();
    names.into_iter().map(|name| (name.clone(), render(&name))).collect()
}

fn one(objects: &[Value], kind: &str) -> Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    object.clone()
}

fn daemon_set(overlay: &str) -> Value {
    one(&render(overlay), "DaemonSet")
}

fn container(daemon_set: &Value) -> &Value {
    &daemon_set["spec"]["template"]["spec"]["containers"][0]
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|word| word.as_str().expect("a string")).collect()
}

/// The types ignore what they don't know: what comes out again must be what went in.
fn check<T: DeserializeOwned + Serialize>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}: {object:#}"));
    let again = serde_json::to_value(typed).expect("JSON");
    assert!(
        again == *object,
        "the API has no such field, or means another value: in {object:#}, out {again:#}"
    );
}

/// Of the Prometheus operator's PodMonitor, what is used (its API reference, monitoring.coreos.com/v1).
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitorSpec {
    job_label: String,
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

#[test]
fn every_object_is_one_of_the_api() {
    for (name, objects) in all() {
        assert!(!objects.is_empty());
        for object in objects {
            println!("{name}: {} {}", object["kind"], object["metadata"]["name"]);
            match (object["apiVersion"].as_str(), object["kind"].as_str()) {
                (Some("apps/v1"), Some("DaemonSet")) => check::<DaemonSet>(&object),
                (Some("v1"), Some("ConfigMap")) => check::<ConfigMap>(&object),
                (Some("v1"), Some("Namespace")) => check::<Namespace>(&object),
                (Some("monitoring.coreos.com/v1"), Some("PodMonitor")) => {
                    check::<PodMonitorSpec>(&object["spec"])
                }
                (Some("monitoring.coreos.com/v1"), Some("PrometheusRule")) => {} // see below
                _ => panic!("{name}: an object that nothing checks: {object:#}"),
            }
        }
    }
}

#[test]
fn a_typing_error_is_found() {
    for wrong in
        ["/spec/template/spec/hostNetwrk", "/spec/template/spec/containers/0/securityContext/priviledged"]
    {
        let mut object = daemon_set("base");
        apply(&json!([{ "op": "add", "path": wrong, "value": true }]), &mut object, wrong);
        assert!(std::panic::catch_unwind(|| check::<DaemonSet>(&object)).is_err(), "{wrong}");
    }
}

#[test]
fn every_flag_is_the_agents() {
    for (name, objects) in all() {
        every_flag_is_the_agents_in(&name, &objects);
    }
}

fn every_flag_is_the_agents_in(name: &str, objects: &[Value]) {
    let command = Cli::command();
    let variables: BTreeSet<_> = command
        .get_subcommands()
        .flat_map(|below| below.get_arguments())
        .filter_map(|flag| flag.get_env()?.to_str())
        .collect();
    {
        let set = one(objects, "DaemonSet");
        let container = container(&set);
        let mut known = BTreeSet::new();
        for variable in container["env"].as_array().expect("variables") {
            let variable = variable["name"].as_str().expect("a name");
            assert!(!variable.starts_with("FASTPATH_") || variables.contains(variable), "{name}: {variable}");
            known.insert(variable);
        }
        let mut words = vec!["fastpath-agent".to_owned()];
        for argument in strings(&container["args"]) {
            let filled = argument.replace("$(NODE_NAME)", "node-1").replace("$(HOST_IP)", "192.0.2.1");
            assert!(!filled.contains("$("), "{name}: {argument}");
            for variable in ["NODE_NAME", "HOST_IP"] {
                assert!(
                    !argument.contains(&format!("$({variable})")) || known.contains(variable),
                    "{name}: {argument}"
                );
            }
            words.push(filled);
        }
        let cli = Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{name}: {words:?}: {e}"));
        let config = Config::new(cli.agent().expect("the agent's flags"), "host".to_owned())
            .unwrap_or_else(|e| panic!("{name}: {words:?}: {e}"));
        assert_eq!(config.node, "node-1", "{name}");
        let mode: Result<Mode, _> =
            one(objects, "ConfigMap")["data"]["mode"].as_str().expect("a mode").parse();
        mode.unwrap_or_else(|allowed| panic!("{name}: {allowed}"));
    }
}

#[test]
fn the_pod_has_no_more_than_it_needs() {
    for (name, objects) in all() {
        let set = one(&objects, "DaemonSet");
        let pod = &set["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        let security = &container(&set)["securityContext"];
        assert_eq!(security["privileged"], false, "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"], "{name}");
        assert!(
            !objects.iter().any(|object| object["kind"].as_str().is_some_and(|kind| kind.contains("Role")))
        );
        // The flags of the image's version. Its name is that of the archive where that is loaded, else a placeholder.
        let loaded = ["overlays/local", "overlays/kind"].contains(&name.as_str());
        let registry = if loaded { "" } else { "registry.example/" };
        let image = format!("{registry}fastpath-agent:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(container(&set)["image"], image, "{name}");
        assert_eq!(container(&set)["imagePullPolicy"] == "Never", loaded, "{name}");
        // An update must not take the ruleset along.
        let cleans = strings(&container(&set)["args"]).contains(&"--cleanup-on-exit");
        assert_eq!(cleans, name == "overlays/remove", "{name}");
    }
}

#[test]
fn overlays_change_what_they_are_for() {
    let args = |overlay: &str| {
        let set = daemon_set(overlay);
        strings(&container(&set)["args"]).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        args("base"),
        ["run", "--hostname-override=$(NODE_NAME)", "--fastpath-threshold=20", "--v=2"],
        "the arguments of kindnet's document"
    );
    assert_eq!(one(&render("overlays/monitoring-only"), "ConfigMap")["data"]["mode"], "watch");
    // The agent reads the key of the ConfigMap that is mounted.
    let set = daemon_set("base");
    let found = container(&set);
    let file = found["env"].as_array().expect("variables").iter();
    let file = file.clone().find(|variable| variable["name"] == "FASTPATH_MODE_FILE").expect("the file");
    let mount =
        found["volumeMounts"].as_array().expect("mounts").iter().find(|mount| mount["name"] == "mode");
    let mount = mount.expect("a mount");
    assert_eq!(file["value"], format!("{}/mode", mount["mountPath"].as_str().expect("a path")));
    assert!(mount.get("subPath").is_none(), "the kubelet updates no such mount");

    let beside = render("overlays/beside-kindnet");
    assert!(
        beside
            .iter()
            .all(|object| object["kind"] != "Namespace" && object["metadata"]["namespace"] == "kube-system")
    );
    let mut kindnet = json!({ "spec": { "template": { "spec": { "containers": [
        { "name": "kindnet-cni", "args": ["/bin/kindnetd", "--fastpath-threshold=6"] },
    ] } } } });
    apply(&read(&directory().join("overlays/beside-kindnet/kindnet-off.yaml")), &mut kindnet, "kindnet-off");
    assert_eq!(strings(&container(&kindnet)["args"]).last(), Some(&"--fastpath-threshold=0"));
}

#[test]
fn who_scrapes_reaches_what_the_agent_serves() {
    let objects = render("overlays/prometheus-operator");
    let (set, monitor) = (one(&objects, "DaemonSet"), one(&objects, "PodMonitor"));
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().expect("labels") {
        assert_eq!(labels[label], *value);
    }
    let container = container(&set);
    let port = &container["ports"][0];
    assert_eq!(port["name"], monitor["spec"]["podMetricsEndpoints"][0]["port"]);
    let flag = format!("--metrics-bind-address=$(HOST_IP):{}", port["containerPort"]);
    assert!(strings(&container["args"]).contains(&flag.as_str()));
    for probe in ["livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], port["containerPort"]);
        assert!(container[probe]["httpGet"].get("host").is_none(), "{probe} asks where nothing listens");
    }
}

#[test]
fn alerts_are_those_of_the_rule_file() {
    let rule = one(&render("overlays/prometheus-operator"), "PrometheusRule");
    let file = read(&directory().join("monitoring/alerts.yaml"));
    assert_eq!(rule["spec"], file, "copy deploy/monitoring/alerts.yaml below `spec:`");
}
