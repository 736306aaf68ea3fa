//! Tests of `app`: what keys do.

use fastpath_common::FlowCounters;

use super::*;
use crate::core::{
    flow::{
        Flow, State,
        connection::{TCP, Tuple},
        path::Metered,
        rates::{Collector, Rates},
    },
    model::IfName,
};

/// Flows 10.0.0.1 to 10.0.0.`count`, of which each has as many packets a second as its number says and the first is
/// offloaded; on eth0 (in the flowtable), and eth1 has none.
pub(in crate::commands::top) fn snapshot(count: u8, wanted: &Wanted) -> Snapshot {
    let name = |name| IfName::new(name).unwrap();
    let mut node = Node {
        threshold: Some(20),
        managed: [IfIndex(2)].into(),
        names: [(IfIndex(2), name("eth0")), (IfIndex(3), name("eth1"))].into(),
        ..Node::default()
    };
    let mut rates = Rates::new(1000);
    let mut read = |second: u64| {
        node.now_ns = second * 1_000_000_000;
        let mut collector = Collector::begin(&mut rates, &node, wanted);
        for number in 1..=count {
            let tuple = Tuple {
                source: [10, 0, 0, number].into(),
                destination: [192, 0, 2, 9].into(),
                protocol: TCP,
                source_port: 40000,
                destination_port: 443,
            };
            let packets = 1000 + second * u64::from(number);
            let counters = FlowCounters {
                packets,
                bytes: 1000 * packets,
                first_seen_ns: u64::from(number),
                ifindex: 2,
                ..FlowCounters::default()
            };
            let mut flow = Flow::gone(tuple, counters);
            if number == 1 {
                flow.state = State::Offloaded;
                flow = flow.measured(&Metered::Nothing, &node);
            }
            collector.add(flow);
        }
        collector.end()
    };
    read(100);
    let sample = read(101);
    Snapshot { node, sample, note: None, names: Arc::default() }
}

pub(in crate::commands::top) fn app(count: u8) -> App {
    let mut app = App::new("node-a", "6.12.0", true, Duration::from_secs(1));
    let snapshot = snapshot(count, &app.wanted());
    app.take(Ok(snapshot));
    app
}

pub(in crate::commands::top) fn press(app: &mut App, keys: &str) -> Next {
    keys.chars().fold(Next::Draw, |_, key| {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\x1b' => KeyCode::Esc,
            '\x08' => KeyCode::Backspace,
            key => KeyCode::Char(key),
        };
        app.key(KeyEvent::new(code, KeyModifiers::NONE))
    })
}

fn sources(app: &App) -> Vec<String> {
    app.rows().iter().map(|row| row.flow.original.source.to_string()).collect()
}

#[test]
fn keys_quit() {
    assert_eq!(press(&mut app(1), "q"), Next::Quit);
    assert_eq!(press(&mut app(1), "\x1b"), Next::Quit);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    let mut typing = app(1);
    press(&mut typing, "/");
    assert_eq!(typing.key(control_c), Next::Quit);
    assert_eq!(app(1).key(control_c), Next::Quit);
}

#[test]
fn letters_are_orders_and_r_turns_them_round() {
    let mut app = app(3);
    assert_eq!(sources(&app), ["10.0.0.3", "10.0.0.2", "10.0.0.1"]);
    press(&mut app, "a");
    assert_eq!(sources(&app), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    press(&mut app, "r");
    assert_eq!(sources(&app), ["10.0.0.3", "10.0.0.2", "10.0.0.1"]);
    press(&mut app, "s");
    assert_eq!(sources(&app)[0], "10.0.0.1", "offloaded comes first");
    for (key, order) in [("p", Order::Packets), ("b", Order::Bits), ("t", Order::Total)] {
        press(&mut app, key);
        assert_eq!((app.order, app.reversed), (order, false));
    }
}

#[test]
fn a_search_is_typed_kept_or_given_up() {
    let mut app = app(3);
    assert_eq!(press(&mut app, "/10.0.0.2q"), Next::Draw, "q is a letter here");
    assert!(sources(&app).is_empty());
    press(&mut app, "\x08\n");
    assert_eq!(sources(&app), ["10.0.0.2"]);
    assert_eq!(app.wanted().search, Search::new("10.0.0.2", Arc::default()));
    press(&mut app, "/443\x1b");
    assert_eq!((app.search.as_str(), sources(&app).len()), ("10.0.0.2", 1));
    press(&mut app, "/");
    app.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
    press(&mut app, "\n");
    assert_eq!(sources(&app).len(), 3, "what was hidden is there again");
}

#[test]
fn the_interval_has_steps_and_ends() {
    let mut app = app(1);
    assert_eq!(press(&mut app, "+"), Next::Reschedule);
    assert_eq!(app.interval().as_secs(), 2);
    press(&mut app, "------");
    assert_eq!(app.interval().as_secs(), 1);
    press(&mut app, "++++++++++++");
    assert_eq!(app.interval().as_secs(), 3600);
}

#[test]
fn what_is_paused_stays_on_show() {
    let mut app = app(2);
    press(&mut app, " ");
    assert!(app.paused());
    let newer = snapshot(5, &app.wanted());
    app.take(Ok(newer));
    assert_eq!(app.rows().len(), 2);
    press(&mut app, " ");
    let newer = snapshot(5, &app.wanted());
    app.take(Ok(newer));
    assert_eq!(app.rows().len(), 5);
}

#[test]
fn a_failure_leaves_what_was_there_and_is_forgotten_with_the_next_reading() {
    let mut app = app(2);
    app.take(Err("no such luck".to_owned()));
    assert_eq!((app.rows().len(), app.error.as_deref()), (2, Some("no such luck")));
    let newer = snapshot(1, &app.wanted());
    app.take(Ok(newer));
    assert_eq!((app.rows().len(), app.error.as_deref()), (1, None));
}

#[test]
fn interfaces_without_packets_are_there_too() {
    let mut app = app(2);
    let names = |app: &App| app.interfaces().into_iter().map(|row| row.name).collect::<Vec<_>>();
    press(&mut app, "\t");
    assert_eq!((app.tab, names(&app)), (Tab::Interfaces, vec!["eth0".to_owned(), "eth1".to_owned()]));
    press(&mut app, "nr");
    assert_eq!(names(&app), ["eth1", "eth0"]);
}

#[test]
fn enter_and_a_second_click_ask_why() {
    use crossterm::event::{MouseButton, MouseEvent, MouseEventKind};

    let mut app = app(5);
    app.first_row = 9;
    app.page = 10;
    let enter = KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE);
    let asked = |next: Next| match next {
        Next::Ask(flow) => flow.tuple.source.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(app.key(enter)), "10.0.0.5");
    assert!(app.why.as_ref().is_some_and(|why| why.contains("watching it")));
    // Any key closes what is shown.
    assert_eq!(app.key(enter), Next::Draw);
    assert_eq!(app.why, None);

    let mouse = |kind, row| MouseEvent { kind, column: 3, row, modifiers: KeyModifiers::NONE };
    let click = |row| mouse(MouseEventKind::Down(MouseButton::Left), row);
    assert_eq!(app.mouse(click(2)), Next::Draw, "above the table");
    assert_eq!(app.mouse(click(11)), Next::Draw);
    assert_eq!(app.table.selected(), Some(2));
    assert_eq!(asked(app.mouse(click(11))), "10.0.0.3");
    app.mouse(click(11));
    assert_eq!(app.why, None);
    app.mouse(mouse(MouseEventKind::ScrollDown, 11));
    assert_eq!(app.table.selected(), Some(3));
    // Interfaces have no story.
    press(&mut app, "\t");
    assert_eq!(app.key(enter), Next::Draw);
}
