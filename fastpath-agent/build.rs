//! Embeds the eBPF objects that `cargo xtask` built (named by `FASTPATH_EBPF_OBJECT`, and by `FASTPATH_EBPF_LOG_OBJECT`
//! the one that logs); without them the agent still builds, and says at start that it can't watch flows.

use std::{env, fs, path::PathBuf};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (variable, name) in
        [("FASTPATH_EBPF_OBJECT", "fastpath-ebpf.o"), ("FASTPATH_EBPF_LOG_OBJECT", "fastpath-ebpf-log.o")]
    {
        println!("cargo::rerun-if-env-changed={variable}");
        let out = out.join(name);
        match env::var_os(variable) {
            Some(object) => {
                println!("cargo::rerun-if-changed={}", object.display());
                fs::copy(&object, &out).unwrap_or_else(|e| {
                    panic!("cannot copy the eBPF object {}: {e} (run `cargo xtask build`)", object.display())
                });
            }
            None => fs::write(&out, []).expect("OUT_DIR is writable"),
        }
    }
}
