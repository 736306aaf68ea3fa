//! What exclusions mean: parsed, as sets, and as rules against a ruleset in memory.

use std::{net::SocketAddr, sync::Arc};

use super::*;
use crate::{
    core::{
        flow::connection::{Status, Tuple},
        ruleset::{desired, diff, observed::Generation, wanted::Policy},
    },
    kernel::{Ruleset, fake::FakeRuleset},
};

fn parse(entries: &[&str]) -> Exclusions {
    let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
    Exclusions::new(&entries, "").unwrap()
}

#[test]
fn entries_of_every_kind() {
    let exclusions = parse(&[
        "10.1.2.3",
        "10.1.0.0/16",
        "10.1.7.7/16",
        "fd00::/8",
        "fd00::1",
        "tcp/443",
        "udp/8000-8002",
        "port/53",
        "protocol/gre",
        "protocol/6",
        "interface/veth*",
        "mark/0x10",
        "mark/16/0xff",
    ]);
    assert_eq!(exclusions.keys(ExcludeSet::V4(32)), [Key::new(&[10, 1, 2, 3])]);
    assert_eq!(exclusions.keys(ExcludeSet::V4(16)), [Key::new(&[10, 1, 0, 0])], "the same network");
    assert_eq!(exclusions.keys(ExcludeSet::V6(128)).len(), 1);
    assert_eq!(
        exclusions.keys(ExcludeSet::V6(8)),
        [Key::new(&{
            let mut key = [0; 16];
            key[0] = 0xfd;
            key
        })]
    );
    let ports = |ports: &[u16]| ports.iter().map(|p| Key::new(&p.to_be_bytes())).collect::<Vec<_>>();
    assert_eq!(exclusions.keys(ExcludeSet::TcpPorts), ports(&[53, 443]));
    assert_eq!(exclusions.keys(ExcludeSet::UdpPorts), ports(&[53, 8000, 8001, 8002]));
    assert_eq!(exclusions.keys(ExcludeSet::Protocols), [Key::new(&[6]), Key::new(&[47])]);
    let marks: Vec<_> = exclusions.marks().map(|mark| mark.to_string()).collect();
    assert_eq!(marks, ["0x10/0xff", "0x10"]);
    assert!(exclusions.has_interface(&IfName::new("veth12").unwrap()));
    assert!(!exclusions.has_interface(&IfName::new("eth0").unwrap()));
    assert_eq!(exclusions.len(), 15);
}

#[test]
fn what_cannot_be_is_refused_with_its_line() {
    for entry in [
        "10.1.0.0/33",
        "10.1",
        "tcp",
        "tcp/",
        "tcp/70000",
        "tcp/9-8",
        "tcp/1-",
        "sctp/1",
        "protocol/256",
        "interface/[",
        "mark/0x1ff/0xff",
        "mark/x",
        "443",
        "tcp:443",
    ] {
        let error = Exclusions::new(&[entry.to_owned()], "").unwrap_err();
        assert_eq!((error.line, error.entry.as_str()), (None, entry));
        let error = Exclusions::new(&[], &format!("# first\n10.0.0.1\n\n {entry} # why\n")).unwrap_err();
        assert_eq!((error.line, error.entry.as_str()), (Some(4), entry));
        assert!(error.to_string().starts_with("line 4: '"), "{error}");
    }
    let marks: Vec<String> = (0..17).map(|mark| format!("mark/{mark}")).collect();
    assert_eq!(Exclusions::new(&marks, "").unwrap_err().entry, "mark/16");
    assert!(Exclusions::new(&marks[..16], "").is_ok());
}

/// By the rules and sets that the agent would install.
#[test]
fn a_connection_is_excluded_by_either_end_before_and_after_nat() {
    let tuple = |source: &str, destination: &str| {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        Tuple {
            source: source.ip(),
            destination: destination.ip(),
            protocol: TCP,
            source_port: source.port(),
            destination_port: destination.port(),
        }
    };
    let entry = Entry {
        id: 1,
        original: tuple("10.1.0.2:40000", "10.96.0.1:443"),
        reply: tuple("10.2.0.2:8443", "10.2.0.1:50000"),
        status: Status(0),
        zone: 0,
        tcp_state: None,
        helper: None,
        mark: 0x15,
        counters: None,
    };
    let said = |exclusion: &str| {
        let mut kernel = FakeRuleset::new([]);
        let policy = Policy { exclusions: Arc::new(parse(&[exclusion])), ..Policy::default() };
        let wanted = desired::desired(&policy, [], &BTreeMap::new()).unwrap();
        kernel.commit(&diff::create(&wanted), Generation(1)).unwrap();
        Exclusions::of_rules(kernel.table.as_ref().unwrap()).of(&entry)
    };
    for exclusion in [
        "10.1.0.2",
        "10.96.0.0/12",
        "10.2.0.2",
        "10.2.0.1",
        "tcp/443",
        "tcp/8443",
        "tcp/40000",
        "tcp/50000",
        "protocol/6",
        "mark/0x10/0xf0",
    ] {
        assert_eq!(said(exclusion).as_deref(), Some(exclusion));
    }
    for exclusion in ["10.1.0.3", "fd00::/8", "udp/443", "tcp/80", "protocol/17", "mark/0x10", "interface/*"]
    {
        assert_eq!(said(exclusion), None, "{exclusion}");
    }
}

#[test]
fn order_repetition_and_comments_make_no_difference() {
    let file = "# all\n\nudp/53 # dns\n10.0.0.2\n10.0.0.1\r\n";
    let flags = ["10.0.0.1".to_owned()];
    assert_eq!(Exclusions::new(&flags, file).unwrap(), parse(&["10.0.0.1", "10.0.0.2", "udp/53"]));
    assert_ne!(parse(&["10.0.0.1"]), parse(&["10.0.0.2"]));
    assert_ne!(parse(&["interface/a*"]), parse(&["interface/b*"]));
    assert!(parse(&[]).is_empty());
}
