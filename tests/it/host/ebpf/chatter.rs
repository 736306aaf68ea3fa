//! What the programs say about packets, and that it costs nothing when they don't.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use aya::programs::loaded_programs;
use fastpath_agent::kernel::bpf::{Chatter, FlowEyes, Hook, LoadConfig, load};
use fastpath_tests::wait_until;
use tracing_subscriber::filter::LevelFilter;

use super::{frames::*, setup::*};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_programs_say_what_they_do_when_asked_to() {
    for hook in HOOKS {
        for chatter in [Chatter::Flows, Chatter::Packets] {
            let lines = Lines::default();
            let sink = lines.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_writer(move || sink.clone())
                .with_ansi(false)
                .with_max_level(LevelFilter::TRACE)
                .finish();
            let subscriber = Arc::new(subscriber);
            let pair = Pair::new();
            let config = LoadConfig {
                pin_path: pair.bpffs.pin_path(),
                max_flows: 1024,
                threshold: 1,
                hook,
                forward: false,
                chatter,
            };
            let mut programs = load(&config).unwrap_or_else(|e| panic!("{e}"));
            pair.node.run(|| programs.attach(&pair.rx0()).unwrap());
            let raw = RawSocket::open(&pair.sender, "tx0");
            raw.send(&ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(1234, 53, 40))));
            raw.send(&ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(1234, 53, 40))));
            raw.send(&ethernet(&[], IPV6, &ipv6(TCP, &tcp(5, 443, 2, 0))));
            raw.send(&ethernet(&[], 0x0806, &[0; 28]));
            pair.stats_of(4);
            let mut log = programs.take_log().unwrap();
            let text = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            let wanted = [
                "entered 10.1.2.3 1234 to 192.0.2.77 53 protocol 17, packets 1",
                "crossing signalled: 10.1.2.3 1234 to 192.0.2.77 53 protocol 17, packets 2",
                "entered 2001:db8:1:2:3:4:5:6 5 to fd00::99 443 protocol 6, packets 1",
            ];
            wait_until(&format!("what they say, {hook:?}"), Duration::from_secs(2), || {
                tracing::subscriber::with_default(Arc::clone(&subscriber), || log.flush());
                wanted.iter().all(|line| text().contains(line))
            });
            let refused = format!("not_ip, 42 bytes, interface {}", pair.rx0().index.0);
            assert_eq!(text().contains(&refused), chatter == Chatter::Packets, "{}", text());
        }
    }
}

/// Ids of maps go into the instructions, so they are compared by number; the code that logs isn't there at all.
#[test]
fn without_it_the_programs_have_no_code_for_it() {
    let lengths = |chatter| {
        let pair = Pair::new();
        let config = LoadConfig {
            pin_path: pair.bpffs.pin_path(),
            max_flows: 16,
            threshold: 0,
            hook: Hook::Xdp,
            chatter,
            forward: false,
        };
        let _programs = load(&config).unwrap_or_else(|e| panic!("{e}"));
        let map = aya::maps::MapInfo::from_pin(pair.bpffs.pin_path().join("fastpath_flows")).unwrap().id();
        let own = loaded_programs()
            .filter_map(Result::ok)
            .filter(|info| info.map_ids().ok().flatten().is_some_and(|ids| ids.contains(&map)));
        let mut found: Vec<_> = own
            .map(|info| {
                let maps = info.map_ids().unwrap().unwrap().len();
                (
                    info.name_as_str().unwrap().to_owned(),
                    info.size_translated().unwrap(),
                    maps,
                    info.verified_instruction_count(),
                )
            })
            .collect();
        found.sort();
        found
    };
    let (silent, chatty) = (lengths(Chatter::Silent), lengths(Chatter::Packets));
    eprintln!("silent {silent:?}\nchatty {chatty:?}");
    assert_eq!((silent.len(), chatty.len()), (6, 6));
    for (silent, chatty) in silent.iter().zip(&chatty) {
        assert_eq!(silent.0, chatty.0);
        if ["fastpath_mark", "fastpath_ask", "fastpath_added"].contains(&silent.0.as_str()) {
            // They see no packet: they have nothing to say.
            assert_eq!(silent, chatty);
            continue;
        }
        // No ring to write to, and no level to ask.
        assert!(silent.2 < chatty.2 && silent.1 < chatty.1, "{silent:?} {chatty:?}");
    }
}
