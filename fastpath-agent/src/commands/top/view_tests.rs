//! Tests of `view`: what can be read on the screen, at the sizes that people have.

use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::{
    commands::top::app::tests::{app, press, snapshot},
    core::{
        flow::path::Path,
        why_not::{Cause, WhyNot},
    },
};

fn drawn(app: &mut App, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app)).unwrap();
    terminal
}

fn lines(app: &mut App, width: u16, height: u16) -> Vec<String> {
    let terminal = drawn(app, width, height);
    let cells = terminal.backend().buffer().content();
    let line = |cells: &[ratatui::buffer::Cell]| {
        cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
    };
    cells.chunks(usize::from(width)).map(line).collect()
}

/// Words of the first line that begins with `start`.
fn words<'a>(lines: &'a [String], start: &str) -> Vec<&'a str> {
    let found = lines.iter().find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("{start:?} in\n{}", lines.join("\n"))).split_whitespace().collect()
}

#[test]
fn a_small_screen_has_it_all() {
    let mut app = app(30);
    let lines = lines(&mut app, 80, 24);
    let text = lines.join("\n");
    assert!(lines[0].starts_with("fastpath node-a  threshold 20 packets  Linux 6.12.0"), "{text}");
    assert!(lines[0].ends_with("every 1 s"), "{text}");
    assert!(lines[1].contains("465 pkt/s") && lines[1].contains("3.72M bit/s"), "{text}");
    assert!(lines[2].contains("% packets on the fast path: <1%"), "{text}");
    assert!(lines[2].contains("packets/s, peak 465 in 0s"), "{text}");
    assert_eq!(words(&lines, " Flows"), ["Flows", "Interfaces"]);
    assert_eq!(words(&lines, "STATE"), ["STATE", "FLOW", "PKT/S▼", "BIT/S", "IN"]);
    assert_eq!(
        words(&lines, "gone "),
        ["gone", "tcp", "10.0.0.30:40000", ">", "192.0.2.9:443", "30", "240k", "eth0"]
    );
    assert_eq!(lines.iter().filter(|line| line.starts_with("gone ") && line.ends_with("eth0")).count(), 13);
    assert!(
        lines[22].starts_with("gone | tcp 10.0.0.30:40000 > 192.0.2.9:443 | 4.03k packets | 100s"),
        "{text}"
    );
    assert!(lines[23].ends_with("? help  q quit"), "{text}");
}

#[test]
fn a_large_screen_has_more() {
    let mut app = app(30);
    let lines = lines(&mut app, 120, 40);
    assert_eq!(words(&lines, "STATE"), ["STATE", "FLOW", "PKT/S▼", "BIT/S", "PACKETS", "AGE", "IN"]);
    assert_eq!(
        words(&lines, "gone "),
        ["gone", "tcp", "10.0.0.30:40000", ">", "192.0.2.9:443", "30", "240k", "4.03k", "100s", "eth0"]
    );
    assert_eq!(lines.iter().filter(|line| line.contains(":40000 >") && line.ends_with("eth0")).count(), 25);
}

#[test]
fn interfaces_have_a_table_of_their_own() {
    let mut app = app(3);
    press(&mut app, "\t");
    for (width, height) in [(80, 24), (120, 40)] {
        let lines = lines(&mut app, width, height);
        assert_eq!(
            words(&lines, "INTERFACE"),
            ["INTERFACE", "FLOWTABLE", "PKT/S▼", "BIT/S", "FLOWS", "OFFLOADED", "%", "PKT", "FAST"]
        );
        assert_eq!(words(&lines, "eth0"), ["eth0", "yes", "6.0", "48.0k", "0", "0", "17%"]);
        assert_eq!(words(&lines, "eth1"), ["eth1", "no", "0", "0", "0", "0", "-"]);
    }
}

#[test]
fn a_cause_is_a_word_in_its_row_and_spelt_out_below() {
    let mut app = app(1);
    let rows = &mut app.snapshot.as_mut().unwrap().sample.rows;
    rows[0].flow.state = State::Stalled(Cause::about(WhyNot::Interface, "eth9".to_owned()));
    let lines = lines(&mut app, 80, 24);
    assert_eq!(words(&lines, "stalled: interface")[2], "tcp");
    assert!(
        lines[22].starts_with("stalled: eth9 isn't in the flowtable | tcp 10.0.0.1:40000"),
        "{}",
        lines[22]
    );
}

#[test]
fn a_slow_flow_is_called_so() {
    let mut app = app(2);
    let snapshot = app.snapshot.as_mut().unwrap();
    snapshot.sample.total.slow_flows = 1;
    for row in &mut snapshot.sample.rows {
        row.flow.state = State::Offloaded;
        row.flow.path =
            Path { accelerated: Some(false), bypassed: Some(0), metered: Some(1234), forwarded: 0 };
    }
    let terminal = drawn(&mut app, 80, 24);
    let state = &terminal.backend().buffer()[(0, 9)];
    assert_eq!((state.symbol(), state.fg), ("o", Color::LightRed), "a colour of its own");
    let lines = lines(&mut app, 80, 24);
    assert_eq!(words(&lines, "offloaded, slow")[2], "tcp");
    assert!(lines[1].contains("slow 1  could be 0  never 0"), "{}", lines[1]);
    assert!(
        lines[22].starts_with("offloaded, but 1.23k packets took the normal path | tcp 10.0.0.2:40000"),
        "{}",
        lines[22]
    );
}

#[test]
fn a_flow_that_is_forwarded_in_ebpf_is_called_so() {
    let mut app = app(2);
    for row in &mut app.snapshot.as_mut().unwrap().sample.rows {
        row.flow.state = State::Offloaded;
        row.flow.path = Path { accelerated: Some(true), forwarded: 1234, ..Path::default() };
    }
    let lines = lines(&mut app, 80, 24);
    assert!(lines[22].starts_with("offloaded, 1234 packets forwarded in eBPF | tcp"), "{}", lines[22]);
}

#[test]
fn keys_show() {
    let mut app = app(30);
    press(&mut app, "? ?");
    let help = lines(&mut app, 80, 24);
    for line in HELP.lines() {
        assert!(help.iter().any(|shown| shown.contains(line)), "{line:?} fits");
    }
    press(&mut app, "x/10.0.0.2");
    let typing = lines(&mut app, 80, 24);
    assert_eq!(typing[23], "/10.0.0.2");
    assert!(typing.iter().any(|line| line.ends_with("\"10.0.0.2\": 1 of 30")));
    press(&mut app, "\n ");
    assert!(lines(&mut app, 80, 24)[0].ends_with("PAUSED"));
}

#[test]
fn what_is_wrong_is_said_in_the_last_line() {
    let mut app = app(1);
    app.snapshot.as_mut().unwrap().note = Some("no rates: nothing is pinned".to_owned());
    assert_eq!(lines(&mut app, 80, 24)[23], "no rates: nothing is pinned");
    app.take(Err("out of luck".to_owned()));
    assert_eq!(lines(&mut app, 80, 24)[23], "not up to date: out of luck");
}

#[test]
fn a_reading_that_came_late_is_told() {
    let mut app = app(1);
    app.snapshot.as_mut().unwrap().sample.interval_ns = Some(3_400_000_000);
    assert!(lines(&mut app, 80, 24)[0].ends_with("every 1 s (last after 3.4 s)"));
}

#[test]
fn nothing_to_show_is_said_too() {
    assert!(lines(&mut app(0), 80, 24).contains(&"no flows".to_owned()));
    let mut app = app(2);
    press(&mut app, "/nowhere\n");
    assert!(lines(&mut app, 80, 24).contains(&"no flow matches".to_owned()));
}

#[test]
fn the_last_row_is_reached_and_survives_a_shorter_table() {
    let mut app = app(30);
    press(&mut app, "G");
    assert!(lines(&mut app, 80, 24)[22].contains("10.0.0.1:40000"));
    let fewer = snapshot(2, &app.wanted());
    app.take(Ok(fewer));
    assert!(lines(&mut app, 80, 24)[22].contains("10.0.0.1:40000"));
}

#[test]
fn colours_tell_states_apart_unless_they_are_not_wanted() {
    let colours = |app: &mut App| {
        let terminal = drawn(app, 80, 24);
        let cells = terminal.backend().buffer().content();
        cells.iter().map(|cell| cell.fg).filter(|fg| *fg != Color::Reset).count()
    };
    let mut app = app(2);
    assert!(colours(&mut app) > 0);
    app.colour = false;
    assert_eq!(colours(&mut app), 0);
}

#[test]
fn any_size_will_do() {
    let mut app = app(30);
    for keys in ["", "?", "x\t", "\t/1"] {
        press(&mut app, keys);
        for (width, height) in [(1, 1), (2, 40), (10, 3), (20, 5), (79, 15), (80, 16), (300, 100)] {
            drawn(&mut app, width, height);
        }
    }
}

#[test]
fn who_answers_is_shown_where_there_is_room_and_why_in_full() {
    let mut app = app(1);
    let rows = &mut app.snapshot.as_mut().unwrap().sample.rows;
    rows[0].flow.reply = rows[0].flow.original.reversed().into();
    assert!(!lines(&mut app, 120, 24).join("\n").contains('→'), "no NAT");
    let reply = app.snapshot.as_mut().unwrap().sample.rows[0].flow.reply.as_mut().unwrap();
    reply.source = [10, 2, 0, 2].into();
    let shown = lines(&mut app, 120, 24).join("\n");
    assert!(shown.contains("tcp 10.0.0.1:40000 > 192.0.2.9:443 → 10.2.0.2:443"), "{shown}");
    for width in [40, 80] {
        app.why = Some("a line\n\nwords that are quite long, ".repeat(9) + "the end");
        let shown = lines(&mut app, width, 40).join("\n");
        assert!(shown.contains(" Why ") && shown.contains("the end"), "{shown}");
    }
}
