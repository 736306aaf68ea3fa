//! How `top` looks: from what `app` has to cells of the screen. Decides nothing but what fits.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{
        Block, Cell, Clear, Padding, Paragraph, RenderDirection, Row as Cells, Sparkline, Table, Wrap,
    },
};

use super::{
    app::{App, InterfaceOrder, Snapshot, Tab},
    text,
};
use crate::commands::units;
use crate::core::flow::{
    Flow, State,
    rates::{Order, Point, Row},
};

/// Below this many lines the graphs make room for the table.
const LINES_FOR_GRAPHS: u16 = 16;
/// From this width on there are columns for age and sum.
const WIDE: u16 = 100;

const HELP: &str = "\
Tab         flows or interfaces
p b t a s   order of flows: packets/s, bits/s, packets in total, age, state
p b f o n   order of interfaces: packets/s, bits/s, flows, offloaded, name
r           the other way round
/           show only flows that match all words: an address or network,
            a port, a part of an interface, state, cause or protocol
            (Enter keeps it, Esc drops it, Ctrl-U empties it)
arrows, PgUp, PgDn, Home, End, wheel, click   select; the selected flow
            is shown in full
Enter, second click   why it is fast, or isn't (watches it for a second)
space       pause        + -   read less often, more often
q, Esc, Ctrl-C           quit

Fast: its packets bypass the normal path. Could be: it needs more packets,
or something is in its way (stalled; slow: offloaded, but a meter shows its
packets on the normal path). Never: not forwarded, or left out by choice.
A > B → C: A dialled B, and C answers.
Rates are of packets as counted at ingress, both directions of a flow added.
A dash: not known yet, or not counted (neither TCP nor UDP).";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let area = frame.area();
    let graphs = if area.height >= LINES_FOR_GRAPHS { (area.height / 5).clamp(4, 10) + 1 } else { 0 };
    let [head, graph_area, tabs, table, detail, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(graphs),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(area);
    let theme = Theme { colour: app.colour };
    header(frame, head, app, theme);
    if graphs > 0 {
        history(frame, graph_area, app, theme);
    }
    app.page = usize::from(table.height.saturating_sub(1)).max(1);
    app.first_row = table.y + 1;
    match app.tab {
        Tab::Flows => flows(frame, [tabs, table, detail], app, theme),
        Tab::Interfaces => interfaces(frame, [tabs, table], app, theme),
    }
    footer(frame, foot, app, theme);
    if app.help {
        popup(frame, area, " Help ", HELP);
    }
    if let Some(why) = &app.why {
        popup(frame, area, " Why ", why);
    }
}

/// Colours, or none.
#[derive(Clone, Copy)]
struct Theme {
    colour: bool,
}

impl Theme {
    fn fg(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn state(self, flow: &Flow) -> Style {
        match &flow.state {
            _ if flow.slow() => self.fg(Color::LightRed),
            State::HwOffloaded => self.fg(Color::Cyan),
            State::Offloaded => self.fg(Color::Green),
            State::Crossed => self.fg(Color::Yellow),
            State::Never(_) => self.fg(Color::DarkGray),
            State::Stalled(_) => self.fg(Color::Red),
            State::Idle | State::BelowThreshold => Style::new(),
            State::Closing => self.fg(Color::Magenta),
            State::Gone => self.fg(Color::DarkGray),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Text on the left, and text on the right that wins where they meet.
fn both_sides(frame: &mut Frame<'_>, area: Rect, left: Line<'_>, right: Line<'_>) {
    frame.render_widget(left, area);
    let width = (right.width() as u16).min(area.width);
    let place = Rect { x: area.right() - width, width, ..area };
    frame.render_widget(Clear, place);
    frame.render_widget(right, place);
}

fn header(frame: &mut Frame<'_>, area: Rect, app: &App, theme: Theme) {
    let [first, second] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
    let threshold = app.snapshot.as_ref().and_then(|s| s.node.threshold);
    let threshold =
        threshold.map_or("no rule offloads flows".to_owned(), |n| format!("threshold {n} packets"));
    let left = Line::from(vec![
        Span::styled("fastpath ", BOLD),
        Span::styled(app.node_name.as_str(), BOLD),
        Span::raw(format!("  {threshold}  Linux {}", app.kernel)),
    ]);
    let right = if app.paused() {
        Line::styled(" PAUSED ", REVERSED)
    } else {
        let wanted = app.interval().as_secs_f64();
        let took = app.snapshot.as_ref().and_then(|s| s.sample.interval_ns).map(|ns| ns as f64 / 1e9);
        let late = took.filter(|took| *took > 1.2 * wanted).map(|took| format!(" (last after {took:.1} s)"));
        Line::raw(format!(" every {wanted} s{}", late.unwrap_or_default()))
    };
    both_sides(frame, first, left, right);
    let Some(Snapshot { sample, .. }) = &app.snapshot else { return };
    let total = sample.total;
    let [fast, could_be, never] = total.groups;
    let of_flows = (total.flows > 0).then(|| fast as f64 / total.flows as f64);
    let stalled =
        if total.stalled_flows > 0 { format!(" ({} stalled)", total.stalled_flows) } else { String::new() };
    let rate = sample.rate(total.all);
    let slow = if total.slow_flows > 0 { format!("slow {}  ", total.slow_flows) } else { String::new() };
    let line = Line::from(vec![
        Span::raw(format!("flows {}  ", total.flows)),
        Span::styled(format!("fast {fast} ({})  ", units::percent(of_flows)), theme.fg(Color::Green)),
        Span::styled(slow, theme.fg(Color::LightRed)),
        Span::raw(format!("could be {could_be}")),
        Span::styled(stalled, theme.fg(Color::Red)),
        Span::raw(format!(
            "  never {never}  {} pkt/s  {} bit/s",
            units::known(rate.map(|r| r.packets)),
            units::known(rate.map(|r| r.bits))
        )),
    ]);
    frame.render_widget(line, second);
}

fn history(frame: &mut Frame<'_>, area: Rect, app: &App, theme: Theme) {
    let [left, _, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let points: Vec<&Point> = app.history.newest_first().take(usize::from(left.width)).collect();
    let newest = points.first();
    let span = newest.zip(points.last()).map_or(0, |(new, old)| new.at_ns.saturating_sub(old.at_ns));
    let share = newest.and_then(|point| point.share);
    let title = format!("% packets on the fast path: {}", units::percent(share));
    let data = points.iter().map(|p| p.share.map(|share| (share * 1000.0).round() as u64));
    graph(frame, left, &title, data.collect(), 1000, theme.fg(Color::Green));

    let packets = |point: &&Point| point.rate.map(|rate| rate.packets.round() as u64);
    let peak = points.iter().filter_map(packets).max().unwrap_or(0);
    let title = format!("packets/s, peak {} in {}", units::short(peak as f64), units::duration(span));
    graph(frame, right, &title, points.iter().map(packets).collect(), peak.max(1), theme.fg(Color::Blue));
}

/// The newest value on the right; what isn't known is a dot.
fn graph(frame: &mut Frame<'_>, area: Rect, title: &str, data: Vec<Option<u64>>, max: u64, style: Style) {
    let bars = Sparkline::default()
        .block(Block::new().title(Line::styled(title.to_owned(), BOLD)))
        .data(data)
        .max(max)
        .direction(RenderDirection::RightToLeft)
        .absent_value_symbol("·")
        .style(style);
    frame.render_widget(bars, area);
}

fn tab_line<'a>(app: &App, right: String) -> [Line<'a>; 2] {
    let style = |tab: Tab| if app.tab == tab { REVERSED } else { Style::new() };
    let left = vec![
        Span::styled(" Flows ", style(Tab::Flows)),
        Span::styled(" Interfaces ", style(Tab::Interfaces)),
    ];
    [Line::from(left), Line::raw(right)]
}

/// A heading, with an arrow if the table is ordered by it.
fn heading(name: &'static str, by: bool, reversed: bool) -> Line<'static> {
    let arrow = match (by, reversed) {
        (false, _) => "",
        (true, false) => "▼",
        (true, true) => "▲",
    };
    Line::from(format!("{name}{arrow}"))
}

fn right<'a>(text: impl Into<Line<'a>>) -> Cell<'a> {
    Cell::new(text.into().alignment(Alignment::Right))
}

fn flows(frame: &mut Frame<'_>, [tabs, area, detail]: [Rect; 3], app: &mut App, theme: Theme) {
    let mut state = app.table;
    let rows = app.rows();
    let Some(Snapshot { node, sample, names, .. }) = &app.snapshot else { return };
    let shown = match (app.search.as_str(), sample.matched > rows.len() as u64) {
        ("", false) => String::new(),
        ("", true) => format!("first {} of {}", rows.len(), sample.matched),
        (search, false) => format!("\"{search}\": {}", rows.len()),
        (search, true) => format!("\"{search}\": {} of {}", rows.len(), sample.matched),
    };
    let [left, at_right] = tab_line(app, shown);
    both_sides(frame, tabs, left, at_right);

    let wide = area.width >= WIDE;
    let head = |name, order| heading(name, app.order == order, app.reversed);
    let mut widths =
        vec![Constraint::Length(18), Constraint::Fill(1), Constraint::Length(6), Constraint::Length(6)];
    let mut titles = vec![
        Cell::new(head("STATE", Order::State)),
        Cell::new("FLOW"),
        right(head("PKT/S", Order::Packets)),
        right(head("BIT/S", Order::Bits)),
    ];
    if wide {
        widths.extend([Constraint::Length(8), Constraint::Length(5)]);
        titles.extend([right(head("PACKETS", Order::Total)), right(head("AGE", Order::Age))]);
    }
    let inward = if wide { 24 } else { 10 };
    widths.push(Constraint::Length(inward));
    titles.push(Cell::new("IN"));
    let spent: u16 = widths.iter().map(|w| if let Constraint::Length(n) = w { *n } else { 0 } + 1).sum();
    let room = usize::from((area.width + 1).saturating_sub(spent));
    let age = |row: &Row| {
        row.flow.first_seen_ns().map_or("-".to_owned(), |at| units::duration(node.now_ns.saturating_sub(at)))
    };
    let lines = rows.iter().map(|row| {
        let mut cells = vec![
            Cell::new(text::state(&row.flow)).style(theme.state(&row.flow)),
            Cell::new(text::flow(&row.flow, names, room)),
            right(units::known(row.rate.map(|r| r.packets))),
            right(units::known(row.rate.map(|r| r.bits))),
        ];
        if wide {
            cells.extend([right(units::short(row.flow.packets() as f64)), right(age(row))]);
        }
        cells.push(Cell::new(text::interfaces(&row.flow, node)));
        Cells::new(cells)
    });
    let table =
        Table::new(lines, widths).header(Cells::new(titles).style(BOLD)).row_highlight_style(REVERSED);
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() {
        let nothing = if app.search.is_empty() { "no flows" } else { "no flow matches" };
        frame.render_widget(Line::raw(nothing), Rect { y: area.y + 1, height: 1, ..area }.intersection(area));
    }
    if let Some(row) = state.selected().and_then(|selected| rows.get(selected)) {
        let line = format!(
            "{} | {} | {} packets | {}",
            text::state_in_full(&row.flow),
            text::flow(&row.flow, names, usize::MAX),
            units::short(row.flow.packets() as f64),
            age(row),
        );
        frame.render_widget(Line::styled(line, theme.state(&row.flow)), detail);
    }
    app.table = state;
}

fn interfaces(frame: &mut Frame<'_>, [tabs, area]: [Rect; 2], app: &mut App, theme: Theme) {
    let rows = app.interfaces();
    let [left, at_right] = tab_line(app, format!("{} interfaces", rows.len()));
    both_sides(frame, tabs, left, at_right);
    let Some(Snapshot { sample, .. }) = &app.snapshot else { return };
    let head = |name, order| heading(name, app.interface_order == order, app.reversed);
    let titles = [
        Cell::new(head("INTERFACE", InterfaceOrder::Name)),
        Cell::new("FLOWTABLE"),
        right(head("PKT/S", InterfaceOrder::Packets)),
        right(head("BIT/S", InterfaceOrder::Bits)),
        right(head("FLOWS", InterfaceOrder::Flows)),
        right("OFFLOADED"),
        right(head("% PKT FAST", InterfaceOrder::Share)),
    ];
    let widths = [15, 9, 6, 6, 8, 9, 12].map(Constraint::Length);
    let lines = rows.iter().map(|row| {
        let rate = sample.rate(row.traffic.all);
        let share = row.traffic.share().filter(|_| rate.is_some());
        let managed = if row.managed { ("yes", theme.fg(Color::Green)) } else { ("no", Style::new()) };
        Cells::new([
            Cell::new(row.name.as_str()),
            Cell::new(managed.0).style(managed.1),
            right(units::known(rate.map(|r| r.packets))),
            right(units::known(rate.map(|r| r.bits))),
            right(row.traffic.flows.to_string()),
            right(row.traffic.offloaded_flows.to_string()),
            right(units::percent(share)),
        ])
    });
    let table =
        Table::new(lines, widths).header(Cells::new(titles).style(BOLD)).row_highlight_style(REVERSED);
    frame.render_stateful_widget(table, area, &mut app.table);
}

fn footer(frame: &mut Frame<'_>, area: Rect, app: &App, theme: Theme) {
    if app.search_before.is_some() {
        let prompt = format!("/{}", app.search);
        let column = (prompt.chars().count() as u16).min(area.width.saturating_sub(1));
        frame.render_widget(Line::raw(prompt), area);
        frame.set_cursor_position((area.x + column, area.y));
        return;
    }
    let snapshot = app.snapshot.as_ref();
    let crowded = snapshot.map(|s| s.sample.turned_away).filter(|n| *n > 0);
    let note = app
        .error
        .as_ref()
        .map(|error| format!("not up to date: {error}"))
        .or_else(|| snapshot.and_then(|s| s.note.clone()))
        .or_else(|| crowded.map(|n| format!("too many flows: {n} idle directions have no rate at first")));
    let line = match note {
        Some(note) => Line::styled(note, theme.fg(Color::Yellow)),
        None => {
            let order = if app.tab == Tab::Flows { "p b t a s" } else { "p b f o n" };
            Line::raw(format!("{order} order  / search  Tab view  space pause  +- interval  ? help  q quit"))
        }
    };
    frame.render_widget(line, area);
}

/// Text over the rest; lines that are too long are wrapped.
fn popup(frame: &mut Frame<'_>, area: Rect, title: &'static str, text: &str) {
    let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0) as u16 + 4;
    let width = longest.min(area.width);
    let block = Block::bordered().padding(Padding::horizontal(1)).title(title);
    let paragraph = Paragraph::new(text).wrap(Wrap { trim: false }).block(block);
    // At least as many lines as words need that aren't split.
    let inside = usize::from(width.saturating_sub(4)).max(1);
    let lines: usize = text.lines().map(|line| wrapped(line, inside)).sum();
    let place = area.centered(Constraint::Length(width), Constraint::Length(lines as u16 + 2));
    frame.render_widget(Clear, place);
    frame.render_widget(paragraph, place);
}

/// Lines that a line takes where words aren't split.
fn wrapped(line: &str, width: usize) -> usize {
    let mut lines = 1;
    let mut column = 0;
    for word in line.split_inclusive(' ') {
        let length = word.chars().count();
        if column > 0 && column + word.trim_end().chars().count() > width {
            lines += 1;
            column = 0;
        }
        lines += (column + length).saturating_sub(1) / width * usize::from(length > width);
        column += length;
    }
    lines
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
