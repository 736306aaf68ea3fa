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
    for (field, value) in [("packets", 1), ("segments", 1), ("bytes", 40), ("flags", 2), ("signal", 0)] {
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

/// The commands of the page, each fenced block one of them.
fn recipes() -> Vec<String> {
    const PAGE: &str = include_str!("../../../../docs/bpftool.md");
    PAGE.split("```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

#[test]
fn every_recipe_of_the_page_works() {
    let pair = Pair::new();
    let mut programs = pair.load(5, 1024);
    pair.node.run(|| programs.attach(&pair.rx0()).unwrap());
    // The flow that the page speaks of, and packets that belong to none.
    let mut packet = ipv4(UDP, &[], 0, &udp(4001, 4002, 100));
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let raw = RawSocket::open(&pair.sender, "tx0");
    for _ in 0..7 {
        raw.send(&ethernet(&[], IPV4, &packet));
        // One to a tick of the kernel, so that all counts are in the flows map.
        std::thread::sleep(std::time::Duration::from_millis(11));
    }
    raw.send(&ethernet(&[], 0x0806, &[0; 28]));
    pair.stats_of(8);
    drop(programs);

    let pin_path = pair.bpffs.pin_path();
    let outputs: Vec<_> = recipes()
        .into_iter()
        .map(|recipe| {
            let script =
                recipe.replace("/sys/fs/bpf/fastpath", pin_path.to_str().unwrap()).replace("eth0", "rx0");
            let output = pair.node.output("bash", &["-euo", "pipefail", "-c", &script]);
            (recipe, output)
        })
        .collect();
    let output_of = |part: &str| {
        let matching: Vec<_> = outputs.iter().filter(|(recipe, _)| recipe.contains(part)).collect();
        assert_eq!(matching.len(), 1, "recipes with {part}");
        matching[0].1.as_str()
    };
    assert_eq!(
        output_of("ls "),
        "fastpath_config\nfastpath_events\nfastpath_flows\nfastpath_hot\nfastpath_no_xdp\nfastpath_stats\nlinks\n"
    );
    assert_eq!(output_of("grep -c"), "1\n");
    assert_eq!(output_of("sort -rn"), "896 7 17 10.0.0.1:4001 10.0.0.2:4002\n");
    let sums = output_of("END {");
    for sum in ["counted 7", "not_ip 1", "flows_entered 1", "events_sent 1", "malformed 0"] {
        assert!(sums.lines().any(|line| line == sum), "{sum}:\n{sums}");
    }
    let hot = output_of("fastpath_hot");
    assert!(
        hot.lines().all(|line| line.split(' ').filter(|n| n.parse::<u64>().is_ok()).count() == 4),
        "{hot}"
    );
    assert!(output_of("map lookup").contains("\"packets\": 7"));
    assert!(pair.flows().is_empty(), "deleted");
    assert_eq!(pair.pinned().config().unwrap().threshold, 50);
    assert!(output_of("prog dump xlated").contains("call bpf_ktime_get_coarse_ns"));
}
