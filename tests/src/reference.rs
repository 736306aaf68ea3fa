//! The rules that kindnet itself loads, for comparison and for questions about the kernel alone.

use crate::netns::Netns;

/// kindnet's table as its current source writes it: deleted and made again in one transaction.
pub fn kindnet(devices: &[&str]) -> String {
    kindnet_above(20, devices)
}

/// The same with another threshold.
pub fn kindnet_above(threshold: u32, devices: &[&str]) -> String {
    format!(
        "add table inet kindnet-fastpath
        delete table inet kindnet-fastpath
        table inet kindnet-fastpath {{
            comment \"rules for kindnet fastpath\"
            set kindnet-set-devices {{ type ifname; elements = {{ {quoted} }} }}
            flowtable kindnet-flowtables {{
                hook ingress priority filter + 5; devices = {{ {plain} }};
            }}
            chain kindnet-fastpath-chain {{
                type filter hook forward priority mangle; policy accept;
                iifname != @kindnet-set-devices return
                oifname != @kindnet-set-devices return
                ct state established ct packets > {threshold} flow add @kindnet-flowtables counter
            }}
        }}",
        quoted = devices.iter().map(|device| format!("\"{device}\"")).collect::<Vec<_>>().join(", "),
        plain = devices.join(", "),
    )
}

/// kindnet's table as its document shows it, an earlier form: one rule, before the filters.
pub fn kindnet_document_above(threshold: u32, devices: &[&str]) -> String {
    format!(
        "table inet kindnet-fastpath {{
            comment \"rules for kindnet fastpath\"
            flowtable kindnet-flowtables {{ hook ingress priority filter; devices = {{ {} }}; }}
            chain kindnet-fastpath-chain {{
                type filter hook forward priority -110; policy accept;
                ct packets > {threshold} flow add @kindnet-flowtables counter
            }}
        }}",
        devices.join(", "),
    )
}

/// A flowtable over `devices` and a rule that offers it every flow, whatever interfaces it takes.
pub fn flowtable_for_all(node: &Netns, devices: &[&str]) {
    node.nft(&format!(
        "table inet reference {{
            flowtable every {{ hook ingress priority filter; devices = {{ {} }}; }}
            chain late {{
                type filter hook forward priority 300; policy accept;
                ct state established ct packets > 20 flow add @every counter
            }}
        }}",
        devices.join(", "),
    ));
}
