//! Embeds the eBPF object that `cargo xtask` built (named by `FASTPATH_EBPF_OBJECT`); without one the agent is
//! built all the same and says at start that it has no eye on flows.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=FASTPATH_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("fastpath-ebpf.o");
    match env::var_os("FASTPATH_EBPF_OBJECT") {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(&object, &out).unwrap_or_else(|e| {
                panic!("cannot copy the eBPF object {}: {e} (run `cargo xtask build`)", object.display())
            });
        }
        None => fs::write(&out, []).expect("OUT_DIR is writable"),
    }
}
