//! `RuntimeDefault`: the profile that Debian ships for containers, with what depends on capabilities resolved as runtimes do.

use std::fs;

use serde_json::{Value, json};

/// From Debian's golang-github-containers-common.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// System calls that this older profile still ties to CAP_SYS_ADMIN. containerd (since 1.6.9) and docker (since 23) allow them with a
/// capability of their own: containerd/containerd#7301 and #7574, moby/moby#43987.
const OWN_CAPABILITY: [(&str, &str); 2] = [("bpf", "CAP_BPF"), ("perf_event_open", "CAP_PERFMON")];

/// The profile of a container with these capabilities, as `linux.seccomp`.
pub(super) fn runtime_default(capabilities: &[String]) -> Value {
    let mut profile = as_shipped(capabilities);
    let allowed: Vec<_> = OWN_CAPABILITY
        .into_iter()
        .filter(|(_, capability)| capabilities.iter().any(|has| has == capability))
        .map(|(call, _)| call)
        .collect();
    let rules = profile["syscalls"].as_array_mut().expect("rules");
    for rule in rules.iter_mut() {
        let names = rule["names"].as_array_mut().expect("names");
        names.retain(|name| !allowed.iter().any(|call| name == call));
    }
    rules.push(json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" }));
    rules.retain(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()));
    profile
}

/// The profile as it is, where `bpf` takes CAP_SYS_ADMIN.
pub(super) fn as_shipped(capabilities: &[String]) -> Value {
    let text = fs::read_to_string(PROFILE).unwrap_or_else(|e| panic!("{PROFILE}: {e}"));
    let profile: Value = serde_json::from_str(&text).expect("JSON");
    let lists = |condition: &Value, key: &str, has: &dyn Fn(&str) -> bool| {
        condition[key].as_array().map(|list| list.iter().any(|name| name.as_str().is_some_and(has)))
    };
    let has_capability = |name: &str| capabilities.iter().any(|has| has == name);
    let is_here = |name: &str| name == "amd64";
    let applies = |rule: &&Value| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        lists(includes, "caps", &has_capability).unwrap_or(true)
            && lists(includes, "arches", &is_here).unwrap_or(true)
            && !lists(excludes, "caps", &has_capability).unwrap_or(false)
            && !lists(excludes, "arches", &is_here).unwrap_or(false)
    };
    let rules: Vec<_> = profile["syscalls"]
        .as_array()
        .expect("rules")
        .iter()
        .filter(applies)
        .map(|rule| {
            let mut rule = rule.clone();
            let fields = rule.as_object_mut().expect("a rule");
            fields.retain(|key, value| {
                ["names", "action", "errnoRet", "args"].contains(&key.as_str()) && !value.is_null()
            });
            rule
        })
        .collect();
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    })
}
