//! What `kubectl kustomize` does, as far as deploy/ makes use of it. Anything else in a kustomization fails, so that nothing is
//! believed to be checked that isn't.

use std::{
    fs,
    path::{Path, PathBuf},
};

use json_patch::Patch;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    patches: Vec<PatchFile>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Image {
    name: String,
    new_name: Option<String>,
    new_tag: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchFile {
    path: String,
    target: Option<Target>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

/// Directory of the manifests.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A YAML file as JSON.
pub(crate) fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The objects of a kustomization below deploy/.
pub(crate) fn render(name: &str) -> Vec<Value> {
    let mut objects = Vec::new();
    build(&directory().join(name), "Kustomization", &mut objects);
    objects
}

fn build(directory: &Path, kind: &str, objects: &mut Vec<Value>) {
    let file = directory.join("kustomization.yaml");
    let this: Kustomization =
        serde_json::from_value(read(&file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let version = if kind == "Component" { "v1alpha1" } else { "v1beta1" };
    assert_eq!((this.kind.as_str(), this.api_version), (kind, format!("kustomize.config.k8s.io/{version}")));
    for resource in &this.resources {
        let path = directory.join(resource);
        if path.is_dir() {
            build(&path, "Kustomization", objects);
        } else {
            objects.push(read(&path));
        }
    }
    for component in &this.components {
        build(&directory.join(component), "Component", objects);
    }
    for patch in &this.patches {
        let content = read(&directory.join(&patch.path));
        match &patch.target {
            Some(target) => {
                let mut found = 0;
                for object in objects.iter_mut().filter(|object| is(object, &target.kind, &target.name)) {
                    apply(&content, object, &patch.path);
                    found += 1;
                }
                assert_eq!(found, 1, "{}: the patch's target", file.display());
            }
            None => {
                assert_eq!(
                    content["$patch"], "delete",
                    "{}: a patch that this test doesn't know",
                    patch.path
                );
                let (kind, name) = (content["kind"].as_str(), content["metadata"]["name"].as_str());
                let (kind, name) = (kind.expect("a kind"), name.expect("a name"));
                let before = objects.len();
                objects.retain(|object| !is(object, kind, name));
                assert_eq!(objects.len() + 1, before, "{}: the patch's target", file.display());
            }
        }
    }
    this.images.iter().for_each(|image| image.apply(objects));
    for object in objects.iter_mut() {
        let Some(namespace) = &this.namespace else { break };
        let key = if object["kind"] == "Namespace" { "name" } else { "namespace" };
        object["metadata"][key] = namespace.clone().into();
    }
}

impl Image {
    /// Changes the image of every container that has this name.
    fn apply(&self, objects: &mut [Value]) {
        let containers = objects
            .iter_mut()
            .filter_map(|object| object.pointer_mut("/spec/template/spec/containers")?.as_array_mut());
        let mut found = false;
        for container in containers.flatten() {
            let image = container["image"].as_str().expect("an image");
            // A port of the registry has a slash behind it.
            let (name, tag) = match image.rsplit_once(':') {
                Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
                _ => (image, None),
            };
            if name == self.name {
                let tag = self.new_tag.as_deref().or(tag);
                let name = self.new_name.as_deref().unwrap_or(name);
                container["image"] = tag.map_or(name.to_owned(), |tag| format!("{name}:{tag}")).into();
                found = true;
            }
        }
        assert!(found, "no image {}", self.name);
    }
}

fn is(object: &Value, kind: &str, name: &str) -> bool {
    object["kind"] == kind && object["metadata"]["name"] == name
}

/// Applies a JSON patch (RFC 6902), all of it.
pub(crate) fn apply(patch: &Value, object: &mut Value, name: &str) {
    let patch: Patch = serde_json::from_value(patch.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    json_patch::patch(object, &patch).unwrap_or_else(|e| panic!("{name}: {e}"));
}
