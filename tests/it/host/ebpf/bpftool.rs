//! What an operator sees with bpftool.

use fastpath_agent::kernel::bpf::FlowEyes;

use super::{frames::*, setup::*};

#[test]
fn dumps_name_every_field() {
    let pair = Pair::new();
    let mut programs = pair.load(5, 1024);
    pair.node.run(|| programs.attach(&pair.rx0()).unwrap());
    RawSocket::open(&pair.sender, "tx0").send(&ethernet(
        &[],
        IPV4,
        &ipv4(TCP, &[], 0, &tcp(4321, 443, 2, 0)),
    ));
    pair.stats_of(1);
    // The agent needn't run.
    drop(programs);

    let dump = |map: &str| -> serde_json::Value {
        let pin = pair.bpffs.pin_path().join(map);
        let text = pair.node.output("bpftool", &["-j", "map", "dump", "pinned", pin.to_str().unwrap()]);
        serde_json::from_str(&text).unwrap()
    };
    // "formatted" is what BTF makes of an entry.
    let flow = &dump("fastpath_flows")[0]["formatted"];
    assert_eq!(flow["key"]["dst_port"], 443);
    assert_eq!(flow["key"]["src_port"], 4321);
    assert_eq!(flow["key"]["protocol"], 6);
    assert_eq!(flow["key"]["family"], 4);
    for (field, value) in [("packets", 1), ("segments", 1), ("bytes", 40), ("tcp_flags", 2), ("signal", 0)] {
        assert_eq!(flow["value"][field], value, "{field}: {flow:#}");
    }
    for field in ["first_seen_ns", "last_seen_ns", "ifindex"] {
        assert!(flow["value"][field].as_u64().unwrap() > 0, "{field}: {flow:#}");
    }
    let stats = &dump("fastpath_stats")[0]["formatted"]["values"];
    let counted: u64 = stats
        .as_array()
        .unwrap()
        .iter()
        .map(|cpu| cpu["value"]["counted"]["packets"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, 1, "{stats:#}");
    let config = &dump("fastpath_config")[0]["formatted"]["value"];
    assert_eq!(config["threshold"], 5);
    assert_eq!(config["abi_version"], fastpath_common::ABI_VERSION);
}
