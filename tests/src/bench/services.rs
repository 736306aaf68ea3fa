//! 5,000 services as kube-proxy's nftables mode lays them out: maps from address and port to a chain for each service,
//! and chains that look at new connections in every hook.

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
            ("tcp", 80, format!("10.{}.{}.{}:8080", 100 + number / 60_000, number / 250, number % 250 + 1))
        };
        let pod = endpoint.split(':').next().unwrap_or_default();
        let name = format!("{number:08X}-default/service-{number}/{proto}/http");
        // kube-proxy chooses among the endpoints with a map in every such chain. Only the first packet of a connection
        // gets there, so here only the service in use has one: 5,000 of them take the kernel a minute to load.
        let endpoint_chain = format!("endpoint-{name}__{pod}/{port}");
        let choose = match number {
            0 => format!("numgen random mod 1 vmap {{ 0 : goto {endpoint_chain} }}"),
            _ => format!("goto {endpoint_chain}"),
        };
        write!(
            chains,
            "chain {endpoint_chain} {{
                ip saddr {pod} jump mark-for-masquerade
                meta l4proto {proto} dnat to {endpoint}
            }}
            chain service-{name} {{
                ip daddr {address} {proto} dport {port} ip saddr != 10.0.0.0/8 jump mark-for-masquerade
                {choose}
            }}\n"
        )
        .expect("string");
        writeln!(elements, "{address} . {proto} . {port} : goto service-{name},").expect("string");
        writeln!(addresses, "{address},").expect("string");
    }
    format!(
        "table ip kube-proxy {{
            chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
            {chains}
            set cluster-ips {{ type ipv4_addr; elements = {{ {addresses} }} }}
            set nodeport-ips {{ type ipv4_addr; elements = {{ 10.1.0.1, 10.2.0.1 }} }}
            map service-ips {{
                type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}
            }}
            map service-nodeports {{ type inet_proto . inet_service : verdict; }}
            map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
            map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
            map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
            chain services {{
                ip daddr . meta l4proto . th dport vmap @service-ips
                ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
            }}
            chain masquerading {{
                meta mark & 0x4000 == 0 return
                meta mark set meta mark xor 0x4000
                masquerade fully-random
            }}
            chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
            chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
            chain nodeport-endpoints-check {{
                ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
            }}
            chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
            chain filter-prerouting {{
                type filter hook prerouting priority -110; ct state new jump firewall-check
            }}
            chain filter-input {{
                type filter hook input priority -110
                ct state new jump nodeport-endpoints-check
                ct state new jump service-endpoints-check
            }}
            chain filter-forward {{
                type filter hook forward priority -110
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }}
            chain filter-output {{
                type filter hook output priority -110
                ct state new jump service-endpoints-check
                ct state new jump firewall-check
            }}
            chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
            chain nat-output {{ type nat hook output priority -100; jump services; }}
            chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
        }}\n"
    )
}
