//! Chains at a device's egress come behind the flowtable, and offloaded packets come there without their connection.

use fastpath_tests::topology::Topology;

/// So no rule there can be fooled. If a kernel takes one, all flows are left out (`core/policy/blind.rs`), and that
/// wants a test.
#[test]
fn the_kernel_takes_no_rule_there_that_asks_for_the_connection() {
    let topology = Topology::routed();
    let rule = |rule| {
        let table = format!(
            "table netdev edge {{ chain out {{ type filter hook egress device s0 priority 0; {rule}; }}; }}"
        );
        let output = topology.node.try_run("nft", &["-f", "-"], &table);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for asking in ["ct state invalid drop", "ct count over 3 drop", "ct mark 7 drop"] {
        let (taken, why) = rule(asking);
        assert!(!taken && why.contains("Protocol error"), "{asking}: {why}");
    }
    assert_eq!(rule("meta mark 7 drop"), (true, String::new()));
}
