//! The chart, by the real Helm, which set-up brings: linted, rendered, and compared with what kustomize makes of the same settings.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    all, check, container, daemon_set, every_flag_is_the_agents_in,
    kustomize::{directory, documents, read, render, tool},
    one, strings,
};

/// The placeholder of the base.
const IMAGE: &str = "--set=image.repository=registry.example/fastpath-agent";

/// Helm's own labels, which kustomize's objects don't have.
const LABELS: [&str; 3] = ["app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"];

fn chart() -> PathBuf {
    directory().join("helm/fastpath")
}

fn helm(words: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a directory");
    let mut command = tool("helm");
    command.args(words).env("HELM_CACHE_HOME", home.path()).env("HELM_CONFIG_HOME", home.path());
    command.env("HELM_DATA_HOME", home.path()).output().expect("helm runs")
}

/// `helm template` with these flags.
fn template(flags: &[&str]) -> Result<Vec<Value>, String> {
    template_of(&chart(), flags)
}

fn template_of(chart: &Path, flags: &[&str]) -> Result<Vec<Value>, String> {
    let words = [&["template", "fastpath", chart.to_str().expect("plain text")], flags].concat();
    let output = helm(&words);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    Ok(documents(&text))
}

fn rendered(flags: &[&str]) -> Vec<Value> {
    template(&[&["--namespace=fastpath"], flags].concat())
        .unwrap_or_else(|error| panic!("{flags:?}: {error}"))
}

fn values(name: &str) -> String {
    format!("--values={}", directory().join("helm/values").join(name).with_extension("yaml").display())
}

/// Without labels of Helm's, wherever they are, and sorted.
fn plain(mut objects: Vec<Value>) -> Vec<Value> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| !LABELS.contains(&name.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    objects.iter_mut().for_each(strip);
    objects.sort_by_key(|object| object["kind"].to_string());
    objects
}

#[test]
fn every_overlay_is_a_set_of_values_and_the_same_objects() {
    for (name, objects) in all() {
        let short = name.strip_prefix("overlays/").unwrap_or(&name);
        let file = values(short);
        // The namespace is made by `helm install --create-namespace`, and never removed.
        let (namespace, mut expected): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| object["kind"] == "Namespace");
        let mut flags = match short {
            "base" => vec![IMAGE],
            "beside-kindnet" => vec![IMAGE, "--namespace=kube-system"],
            _ => vec![IMAGE, file.as_str()],
        };
        assert_eq!(namespace.is_empty(), short == "beside-kindnet", "{name}");
        if short == "local" || short == "kind" {
            flags.remove(0);
        }
        expected = plain(expected);
        let found = plain(template(&[&["--namespace=fastpath"][..], &flags].concat()).expect("objects"));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{name}: helm left, kustomize right");
        }
    }
}

#[test]
fn values_become_flags_and_fields() {
    let flags = [
        IMAGE,
        "--set=image.tag=1.2.3",
        "--set=threshold=100000000",
        "--set=interfaces={eth*,veth*}",
        "--set=excludeInterfaces={docker*}",
        "--set=exclude={port/53,10.9.0.0/16}",
        "--set=verbosity=4",
        "--set=extraArgs={--page=off,--max-flows=131072}",
        "--set=mode=25%",
        "--set=resources.limits.memory=512Mi",
        "--set=priorityClassName=",
        "--set-json=tolerations=[{\"key\":\"a\",\"operator\":\"Exists\"}]",
        "--set=nodeSelector.kubernetes\\.io/arch=arm64",
        "--set-json=updateStrategy={\"type\":\"OnDelete\",\"rollingUpdate\":null}",
        "--set-json=imagePullSecrets=[{\"name\":\"registry\"}]",
        "--set-json=affinity={\"nodeAffinity\":{}}",
        "--set=fullnameOverride=fastpath-arm",
        "--set=seLinuxOptions.type=spc_t",
        "--set=monitoring.podMonitor.enabled=true",
        "--set=monitoring.podMonitor.interval=1m",
        "--set=monitoring.podMonitor.labels.release=prometheus",
        "--set-json=monitoring.podMonitor.metricRelabelings=[{\"action\":\"drop\"}]",
    ];
    let objects = rendered(&flags);
    let set = one(&objects, "DaemonSet");
    check::<k8s_openapi::api::apps::v1::DaemonSet>(&set);
    let found = container(&set);
    assert_eq!(
        strings(&found["args"]),
        [
            "run",
            "--hostname-override=$(NODE_NAME)",
            "--fastpath-threshold=100000000",
            "--v=4",
            "--interfaces=eth*,veth*",
            "--exclude-interfaces=docker*",
            "--exclude=port/53,10.9.0.0/16",
            "--metrics-bind-address=$(HOST_IP):19080",
            "--page=off",
            "--max-flows=131072",
        ]
    );
    every_flag_is_the_agents_in("helm", &objects);
    assert_eq!(found["image"], "registry.example/fastpath-agent:1.2.3");
    assert_eq!(found["resources"]["limits"]["memory"], "512Mi");
    let pod = &set["spec"]["template"]["spec"];
    assert!(pod.get("priorityClassName").is_none());
    assert_eq!(pod["tolerations"][0]["key"], "a");
    assert_eq!(pod["nodeSelector"]["kubernetes.io/arch"], "arm64");
    assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux");
    assert_eq!(pod["imagePullSecrets"][0]["name"], "registry");
    assert_eq!(pod["securityContext"]["seLinuxOptions"]["type"], "spc_t");
    let monitor = one(&objects, "PodMonitor");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(
        (&endpoint["interval"], &endpoint["metricRelabelings"][0]["action"]),
        (&"1m".into(), &"drop".into())
    );
    assert!(pod["affinity"]["nodeAffinity"].is_object());
    assert_eq!(set["spec"]["updateStrategy"]["type"], "OnDelete");
    assert_eq!(set["metadata"]["name"], "fastpath-arm");
    let map = one(&objects, "ConfigMap");
    assert_eq!((&map["data"]["mode"], &map["metadata"]["name"]), (&"25%".into(), &"fastpath-arm".into()));
    assert_eq!(pod["volumes"][2]["configMap"]["name"], "fastpath-arm");
}

#[test]
fn wrong_values_are_refused_with_a_reason() {
    for (flags, says) in [
        (&[][..], "set image.repository to where you pushed"),
        (&[IMAGE, "--set=mode=off"], "at '/mode'"),
        (&[IMAGE, "--set=mode=101%"], "at '/mode'"),
        (&[IMAGE, "--set=threshold=many"], "at '/threshold'"),
        (&[IMAGE, "--set=thrshold=3"], "'thrshold' not allowed"),
        (&[IMAGE, "--set=image.name=x"], "at '/image': additional properties 'name'"),
        (&[IMAGE, "--set=exclude={a b}"], "at '/exclude/0'"),
        (&[IMAGE, "--set=extraArgs={page=off}"], "at '/extraArgs/0'"),
        (&[IMAGE, "--set=forward=on"], "at '/forward'"),
        (&[IMAGE, "--set=updateStrategy.type=Recreate"], "at '/updateStrategy/type'"),
    ] {
        let error = template(flags).expect_err("refused");
        assert!(error.contains(says), "{flags:?}: {error}");
    }
}

#[test]
fn lint_finds_nothing() {
    let chart = chart();
    let chart = chart.to_str().expect("plain text");
    let files = fs::read_dir(directory().join("helm/values")).expect("values");
    let files = files.map(|file| format!("--values={}", file.expect("a file").path().display()));
    for file in files.chain(["--set=mode=10%".to_owned()]) {
        let output = helm(&["lint", "--strict", chart, IMAGE, &file]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.contains("[WARNING]"), "{file}: {said}");
    }
}

/// The chart can't reach files outside of it.
#[test]
fn the_charts_alerts_and_versions_are_the_projects() {
    assert_eq!(
        fs::read_to_string(chart().join("alerts.yaml")).expect("a file"),
        fs::read_to_string(directory().join("monitoring/alerts.yaml")).expect("a file"),
        "copy deploy/monitoring/alerts.yaml to deploy/helm/fastpath"
    );
    let about = read(&chart().join("Chart.yaml"));
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
}

/// An object that holds the notes: `helm template` doesn't print them, and the commands that do ask a cluster.
const NOTES: &str =
    "kind: Notes\ntext: |\n{{ include (print .Template.BasePath \"/NOTES.txt\") . | indent 2 }}\n";

#[test]
fn notes_say_how_to_see_it_work_and_how_to_remove_it() {
    let copy = tempfile::tempdir().expect("a directory");
    let copied = copy.path().join("fastpath");
    let status = Command::new("cp").arg("-r").arg(chart()).arg(&copied).status().expect("cp runs");
    assert!(status.success());
    fs::write(copied.join("templates/notes.yaml"), NOTES).expect("a file");
    let notes = |flags: &[&str]| {
        let objects = template_of(&copied, &[&["--namespace=net", IMAGE], flags].concat()).expect("objects");
        one(&objects, "Notes")["text"].as_str().expect("text").to_owned()
    };
    let usual = notes(&[]);
    for line in [
        "kubectl -n net exec ds/fastpath-agent -- fastpath-agent status",
        "kubectl -n net patch configmap fastpath-agent --type=merge -p '{\"data\":{\"mode\":\"watch\"}}'",
        "kubectl -n net annotate pod -l app.kubernetes.io/name=fastpath-agent,app.kubernetes.io/instance=fastpath --overwrite",
        "helm -n net upgrade fastpath CHART --reuse-values --set remove=true",
    ] {
        assert!(usual.contains(line), "no {line} in {usual}");
    }
    assert!(!usual.contains("--advise"), "{usual}");
    assert!(notes(&["--set=mode=watch"]).contains("fastpath-agent doctor --advise"));
    assert!(notes(&["--set=remove=true"]).contains("helm -n net uninstall fastpath"));
}

/// The switch is a change of the ConfigMap alone: a change of the DaemonSet would restart every agent.
#[test]
fn another_mode_restarts_no_agent() {
    let (on, off) = (rendered(&[IMAGE]), rendered(&[IMAGE, "--set=mode=watch"]));
    assert_eq!(one(&on, "DaemonSet"), one(&off, "DaemonSet"));
    assert_ne!(one(&on, "ConfigMap"), one(&off, "ConfigMap"));
    assert_eq!(daemon_set("base"), daemon_set("overlays/monitoring-only"));
    assert_ne!(one(&render("base"), "ConfigMap"), one(&render("overlays/monitoring-only"), "ConfigMap"));
}
