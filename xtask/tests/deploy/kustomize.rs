//! What the real `kubectl kustomize` makes of deploy/, which set-up brings with Helm. Warnings of kustomize's fail.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use json_patch::Patch;
use serde::Deserialize;
use serde_json::Value;

/// Directory of the manifests.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A YAML file as JSON.
pub(crate) fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// helm or kubectl, where `xtask/src/wheel.rs` puts them, told of no cluster.
pub(crate) fn tool(name: &str) -> Command {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let program = cache.expect("a home").join("fastpath/cluster-tools").join(name);
    assert!(program.exists(), "no {}: `cargo xtask setup` brings it", program.display());
    let mut command = Command::new(program);
    command.env("KUBECONFIG", "/dev/null");
    command
}

/// The documents of a YAML file with several, as JSON.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let documents = documents.map(|document| Value::deserialize(document).expect("YAML"));
    documents.filter(|document| !document.is_null()).collect()
}

/// Built once each.
static BUILT: Mutex<BTreeMap<String, Vec<Value>>> = Mutex::new(BTreeMap::new());

/// The objects of a kustomization below deploy/.
pub(crate) fn render(name: &str) -> Vec<Value> {
    let mut built = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    built.entry(name.to_owned()).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> Vec<Value> {
    let output = tool("kubectl").arg("kustomize").arg(directory().join(name)).output().expect("kubectl runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{name}: {said}");
    documents(&String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Applies a JSON patch (RFC 6902), all of it.
pub(crate) fn apply(patch: &Value, object: &mut Value, name: &str) {
    let patch: Patch = serde_json::from_value(patch.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    json_patch::patch(object, &patch).unwrap_or_else(|e| panic!("{name}: {e}"));
}
