//! 5,000 services as kube-proxy's nftables mode lays them out: maps from address and port to a chain for each service,
//! and chains that look at new connections in every hook.
//!
//! The layout is that of Kubernetes 1.36 (`pkg/proxy/nftables/proxier.go`: `nftablesBaseChains`, `nftablesJumpChains`,
//! `setupNFTables`), with a pod range of 10.0.0.0/8 and cluster addresses in 10.96.0.0/16.

use std::fmt::Write as _;

/// Number of services, each with one endpoint.
const SERVICES: u32 = 5_000;

/// The ruleset. The first service is that of [`Topology::service_at`](crate::topology::Topology::service_at), UDP port 2001.
pub(super) fn rules() -> String {
    let mut chains = String::new();
    let mut elements = String::new();
    let mut addresses = String::new();
    for number in 0..SERVICES {
        let address = format!("10.96.{}.{}", number / 250, number % 250 + 1);
        let (proto, port, endpoint) = if number == 0 {
            ("udp", 2001, "10.2.0.2:2001".to_owned())
        } else {
            ("tcp", 80, format!("10.100.{}.{}:8080", number / 250, number % 250 + 1))
        };
        let name = format!("service-{number:08X}-default/service-{number}/{proto}/http");
        writeln!(chains, "chain {name} {{ meta l4proto {proto} dnat to {endpoint}; }}").expect("string");
        writeln!(elements, "{address} . {proto} . {port} : goto {name},").expect("string");
        writeln!(addresses, "{address},").expect("string");
    }
    format!(
        "table ip kube-proxy {{
            comment \"rules for kube-proxy\"
            {chains}
            set cluster-ips {{ type ipv4_addr; elements = {{ {addresses} }} }}
            set nodeport-ips {{ type ipv4_addr; elements = {{ 10.2.0.1 }} }}
            set hairpin-connections {{
                type ipv4_addr . ipv4_addr . inet_proto . inet_service
                elements = {{ 10.2.0.2 . 10.2.0.2 . udp . 2001 }}
            }}
            map service-ips {{
                type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}
            }}
            map service-nodeports {{ type inet_proto . inet_service : verdict; }}
            map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
            map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
            map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
            chain services {{
                ip daddr @cluster-ips ip saddr != 10.0.0.0/8 meta mark set meta mark or 0x4000
                ip daddr . meta l4proto . th dport vmap @service-ips
                ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
            }}
            chain masquerading {{
                meta mark and 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random
                ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
            }}
            chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
            chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
            chain nodeport-endpoints-check {{
                ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
            }}
            chain cluster-ips-check {{
                ip daddr @cluster-ips reject
                ip daddr {{ 10.96.0.0/16 }} drop
            }}
            chain reject-chain {{ reject; }}
            chain filter-prerouting-pre-dnat {{
                type filter hook prerouting priority -110; ct state new jump firewall-check
            }}
            chain filter-output-pre-dnat {{
                type filter hook output priority -110; ct state new jump firewall-check
            }}
            chain filter-input {{
                type filter hook input priority 0
                ct state new jump nodeport-endpoints-check
                ct state new jump service-endpoints-check
            }}
            chain filter-forward {{
                type filter hook forward priority 0
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }}
            chain filter-output {{
                type filter hook output priority 0
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }}
            chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
            chain nat-output {{ type nat hook output priority -100; jump services; }}
            chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
        }}\n"
    )
}
