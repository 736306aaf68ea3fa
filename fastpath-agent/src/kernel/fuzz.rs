//! Entrances for fuzzing (`fastpath-agent/fuzz`): bytes that the kernel might hand over, through everything that reads them.
//! Each takes any bytes, and panics where something is read out of them that can't be. Compiled for fuzzing and for the test
//! that runs the committed inputs.

use fastpath_common::{
    Config, FlowCounters, FlowEvent, FlowKey, HotFlow, MatchWords, NoXdp, PacketStats, limits,
};

use super::{
    bpf, conntrack, ipvs, links, misread_routes, netconf,
    netlink::{Message, Refusal, messages},
    nft, node_monitor, route, route_rules, surface, xfrm,
};

/// Messages of a datagram that are whole.
fn each(datagram: &[u8], read: impl Fn(&Message<'_>)) {
    let mut total = 0;
    for message in messages(datagram).map_while(Result::ok) {
        total += message.bytes().len();
        drop(Refusal::parse(&message));
        read(&message);
    }
    assert!(total <= datagram.len(), "messages don't overlap");
}

/// Messages of nftables: objects as listed, and what a transaction announces.
pub fn nft(datagram: &[u8]) {
    each(datagram, nft::fuzz::read);
}

/// Messages of routing: links, addresses, neighbours, routes, policy rules, settings, filters; and IPsec policies.
pub fn route(datagram: &[u8]) {
    each(datagram, |message| {
        links::fuzz(message);
        route::fuzz(message.payload());
        route_rules::fuzz(message);
        drop(netconf::parse(message.kind(), message.payload()));
        drop(node_monitor::parse(message));
        drop((surface::other_end(message), misread_routes::announced(message)));
        drop(xfrm::policy(message, &|_| true));
        bpf::fuzz_link(message);
    });
}

/// Messages of conntrack.
pub fn conntrack(datagram: &[u8]) {
    each(datagram, |message| {
        drop(conntrack::over(message));
        let Some(entry) = conntrack::entry(message) else { return };
        assert_eq!(entry.original.reversed().reversed(), entry.original);
        drop(serde_json::to_string(&entry).expect("a connection is JSON"));
        // What was read can be asked for, and the question says the same tuple.
        let request = conntrack::question(&entry.original, entry.zone);
        let asked = messages(request.bytes()).next().expect("a message").expect("a whole one");
        if matches!(entry.original.protocol, 6 | 17) {
            assert_eq!(conntrack::original(&asked), Some(entry.original));
        }
    });
}

/// Records of the ring of events, and values of pinned maps, of this version or another.
pub fn records(bytes: &[u8]) {
    use bpf::plain;

    if let Some(event) = plain::<FlowEvent>(bytes) {
        drop(format!("{event:?}"));
    }
    if let Some(key) = plain::<FlowKey>(bytes) {
        assert!(MatchWords::of(&key).slot() < limits::HOT_SLOTS);
        assert_eq!(key.words().map(u64::to_ne_bytes).concat(), &bytes[..size_of::<FlowKey>()]);
    }
    if let (Some(mut counters), Some(slot)) = (plain::<FlowCounters>(bytes), plain::<HotFlow>(bytes)) {
        bpf::add_hot(&mut counters, &slot);
    }
    if let Some(stats) = plain::<PacketStats>(bytes) {
        let _ = bpf::add(&stats, &stats);
    }
    if let Some(config) = plain::<Config>(bytes) {
        assert_eq!(config.with_threshold(7, 1).threshold, 7);
    }
    let _ = plain::<NoXdp>(bytes);
}

/// The kernel's description of its types: the file of the kernel, and one of a module behind it. The first two bytes say where the
/// second begins.
pub fn types(bytes: &[u8]) {
    let Some(([low, high], rest)) = bytes.split_first_chunk() else { return };
    let at = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (base, module) = rest.split_at(at);
    bpf::fuzz_types(base, module);
}

/// Text of `/proc`: the table of IPVS.
pub fn proc(text: &str) {
    let services = ipvs::count(text);
    assert!(services <= text.lines().count());
    text.lines().filter_map(|line| ipvs::service(line, "TCP")).for_each(drop);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Runs what is committed for a target, also where there is no fuzzer.
    fn run(target: &str, read: impl Fn(&[u8])) {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let mut files: Vec<_> = fs::read_dir(seeds).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{target} has seeds");
        for file in files {
            println!("{}", file.display());
            let bytes = fs::read(file).unwrap();
            // Miri takes a thousand times as long.
            if cfg!(miri) && bytes.len() > 200 {
                continue;
            }
            read(&bytes);
            // Cut short anywhere.
            let step = if cfg!(miri) { 1009 } else { 7 };
            (0..bytes.len()).step_by(step).for_each(|length| read(&bytes[..length]));
        }
    }

    #[test]
    fn committed_inputs_are_read() {
        run("nft", nft);
        run("route", route);
        run("conntrack", conntrack);
        run("records", records);
        run("types", types);
    }
}
