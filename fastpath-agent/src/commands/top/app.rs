//! What `top` has on its screen and what keys do to it. Reads and draws nothing.

use std::{mem, sync::Arc, time::Duration};

use crossterm::event::{
    KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use ratatui::widgets::TableState;

use crate::core::{
    flow::{
        Node,
        rates::{History, Order, Row, Sample, Traffic, Wanted},
        search::Search,
    },
    model::IfIndex,
    names::Names,
    why::FlowSpec,
};

/// Flows that are kept to be scrolled through.
pub(super) const MAX_ROWS: usize = 500;
/// Points of the graphs: one for each column of a wide screen.
const MAX_POINTS: usize = 512;
/// Characters of a search.
const MAX_SEARCH: usize = 100;
/// Seconds between readings that + and - go through.
const INTERVALS: [u64; 8] = [1, 2, 5, 10, 30, 60, 300, 3600];

/// A reading, with what it was judged by.
pub(super) struct Snapshot {
    pub(super) node: Node,
    pub(super) sample: Sample,
    /// What is missing, and what to do about it.
    pub(super) note: Option<String>,
    /// Shown instead of addresses.
    pub(super) names: Arc<Names>,
}

/// The two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Flows,
    Interfaces,
}

/// By what interfaces are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InterfaceOrder {
    Packets,
    Bits,
    Flows,
    Share,
    Name,
}

/// What a key asks of the loop.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Draw,
    /// The time of the next reading has changed.
    Reschedule,
    /// The user wants to know why this flow is fast, or isn't.
    Ask(FlowSpec),
    Quit,
}

/// An interface and what came in on it.
pub(super) struct InterfaceRow {
    pub(super) name: String,
    pub(super) managed: bool,
    pub(super) traffic: Traffic,
}

/// Everything that is on the screen.
pub(super) struct App {
    pub(super) node_name: String,
    pub(super) kernel: String,
    pub(super) colour: bool,
    pub(super) tab: Tab,
    pub(super) order: Order,
    pub(super) interface_order: InterfaceOrder,
    pub(super) reversed: bool,
    /// The text typed so far.
    pub(super) search: String,
    /// While the user types: what was searched before.
    pub(super) search_before: Option<String>,
    pub(super) help: bool,
    /// What `why` says of a flow, while that is shown.
    pub(super) why: Option<String>,
    /// Where the table's first row is on the screen, as last drawn.
    pub(super) first_row: u16,
    /// Why the last reading failed; what is shown is older.
    pub(super) error: Option<String>,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) history: History,
    /// Selected row and first row shown.
    pub(super) table: TableState,
    /// Rows of the table that fit, as last drawn.
    pub(super) page: usize,
    paused: bool,
    interval: Duration,
}

impl App {
    pub(super) fn new(node_name: &str, kernel: &str, colour: bool, interval: Duration) -> Self {
        Self {
            node_name: node_name.to_owned(),
            kernel: kernel.to_owned(),
            colour,
            tab: Tab::Flows,
            order: Order::Packets,
            interface_order: InterfaceOrder::Packets,
            reversed: false,
            search: String::new(),
            search_before: None,
            help: false,
            why: None,
            first_row: 0,
            error: None,
            snapshot: None,
            history: History::new(MAX_POINTS),
            table: TableState::new().with_selected(0),
            page: 1,
            paused: false,
            interval,
        }
    }

    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// What the next reading has to keep.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted { order: self.order, reversed: self.reversed, search: self.filter(), rows: MAX_ROWS }
    }

    fn filter(&self) -> Search {
        let names = self.snapshot.as_ref().map(|snapshot| Arc::clone(&snapshot.names));
        Search::new(&self.search, names.unwrap_or_default())
    }

    /// Takes the result of a reading, unless the user paused meanwhile to look at the last one.
    pub(super) fn take(&mut self, result: Result<Snapshot, String>) {
        match result {
            Ok(snapshot) => {
                self.error = None;
                self.history.push(&snapshot.sample);
                if !self.paused {
                    self.snapshot = Some(snapshot);
                    // Keys may have come while it was read.
                    self.arrange();
                }
            }
            Err(error) => self.error = Some(error),
        }
    }

    /// Brings the rows that are there into order; those that aren't come with the next reading.
    fn arrange(&mut self) {
        let wanted = self.wanted();
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.sample.rows.sort_by(|a, b| wanted.compare(a, b));
        }
    }

    /// The flows on show.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let search = self.filter();
        let Some(Snapshot { node, sample, .. }) = &self.snapshot else { return Vec::new() };
        sample.rows.iter().filter(|row| search.matches(&row.flow, node)).collect()
    }

    /// The interfaces on show: all there are, and those that are gone but were counted on.
    pub(super) fn interfaces(&self) -> Vec<InterfaceRow> {
        let Some(Snapshot { node, sample, .. }) = &self.snapshot else { return Vec::new() };
        let row = |index: IfIndex, name: String| InterfaceRow {
            name,
            managed: node.managed.contains(&index),
            traffic: sample.interfaces.get(&index).copied().unwrap_or_default(),
        };
        let named = node.names.iter().map(|(index, name)| row(*index, name.to_string()));
        let gone = sample.interfaces.keys().filter(|index| !node.names.contains_key(index));
        let mut rows: Vec<_> = named.chain(gone.map(|index| row(*index, format!("#{index}")))).collect();
        rows.sort_by(|a, b| {
            let (x, y) = (&a.traffic, &b.traffic);
            let order = match self.interface_order {
                InterfaceOrder::Packets => y.all.packets.cmp(&x.all.packets),
                InterfaceOrder::Bits => y.all.bytes.cmp(&x.all.bytes),
                InterfaceOrder::Flows => y.flows.cmp(&x.flows),
                InterfaceOrder::Share => y.share().unwrap_or(-1.0).total_cmp(&x.share().unwrap_or(-1.0)),
                InterfaceOrder::Name => std::cmp::Ordering::Equal,
            };
            let order = order.then_with(|| a.name.cmp(&b.name));
            if self.reversed { order.reverse() } else { order }
        });
        rows
    }

    /// Does what a key asks for.
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Draw;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Next::Quit;
        }
        if self.search_before.is_some() {
            self.type_search(key.code, control);
            return Next::Draw;
        }
        if mem::take(&mut self.help) || self.why.take().is_some() {
            return Next::Draw;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('/') => self.search_before = Some(self.search.clone()),
            KeyCode::Char(' ') => {
                self.paused = !self.paused;
                return Next::Reschedule;
            }
            KeyCode::Char('+' | '=') => return self.step_interval(true),
            KeyCode::Char('-') => return self.step_interval(false),
            KeyCode::Tab | KeyCode::BackTab => {
                self.tab = if self.tab == Tab::Flows { Tab::Interfaces } else { Tab::Flows };
                self.table = TableState::new().with_selected(0);
            }
            KeyCode::Enter => return self.ask(),
            KeyCode::Up | KeyCode::Char('k') => self.table.select_previous(),
            KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
            KeyCode::PageUp => self.table.scroll_up_by(self.page as u16),
            KeyCode::PageDown => self.table.scroll_down_by(self.page as u16),
            KeyCode::Home | KeyCode::Char('g') => self.table.select_first(),
            KeyCode::End | KeyCode::Char('G') => self.table.select_last(),
            KeyCode::Char('r') => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            KeyCode::Char(letter) => self.sort_by(letter),
            _ => {}
        }
        Next::Draw
    }

    /// Does what the mouse asks for: the wheel selects, a click too, and a second one asks why.
    pub(super) fn mouse(&mut self, mouse: MouseEvent) -> Next {
        match mouse.kind {
            MouseEventKind::ScrollUp => self.table.select_previous(),
            MouseEventKind::ScrollDown => self.table.select_next(),
            MouseEventKind::Down(MouseButton::Left) => {
                if mem::take(&mut self.help) || self.why.take().is_some() {
                    return Next::Draw;
                }
                let Some(line) = mouse.row.checked_sub(self.first_row).map(usize::from) else {
                    return Next::Draw;
                };
                if line < self.page {
                    let row = self.table.offset() + line;
                    if self.table.selected() == Some(row) {
                        return self.ask();
                    }
                    self.table.select(Some(row));
                }
            }
            _ => {}
        }
        Next::Draw
    }

    fn ask(&mut self) -> Next {
        let selected = self.table.selected().filter(|_| self.tab == Tab::Flows);
        let Some(tuple) = selected.and_then(|at| self.rows().get(at).map(|row| row.flow.original)) else {
            return Next::Draw;
        };
        self.why = Some(format!("{tuple}\n\nwatching it for a second ..."));
        Next::Ask(FlowSpec { tuple })
    }

    fn sort_by(&mut self, letter: char) {
        match self.tab {
            Tab::Flows => {
                self.order = match letter {
                    'p' => Order::Packets,
                    'b' => Order::Bits,
                    't' => Order::Total,
                    'a' => Order::Age,
                    's' => Order::State,
                    _ => return,
                };
            }
            Tab::Interfaces => {
                self.interface_order = match letter {
                    'p' => InterfaceOrder::Packets,
                    'b' => InterfaceOrder::Bits,
                    'f' => InterfaceOrder::Flows,
                    'o' => InterfaceOrder::Share,
                    'n' => InterfaceOrder::Name,
                    _ => return,
                };
            }
        }
        self.reversed = false;
        self.table = TableState::new().with_selected(0);
        self.arrange();
    }

    fn type_search(&mut self, code: KeyCode, control: bool) {
        match code {
            KeyCode::Enter => self.search_before = None,
            KeyCode::Esc => self.search = self.search_before.take().unwrap_or_default(),
            KeyCode::Backspace => {
                self.search.pop();
            }
            KeyCode::Char('u') if control => self.search.clear(),
            KeyCode::Char(c) if !control && self.search.chars().count() < MAX_SEARCH => self.search.push(c),
            _ => {}
        }
        self.table = TableState::new().with_selected(0);
        self.arrange();
    }

    fn step_interval(&mut self, longer: bool) -> Next {
        let now = self.interval.as_secs();
        let step = if longer {
            INTERVALS.into_iter().find(|step| *step > now)
        } else {
            INTERVALS.into_iter().rev().find(|step| *step < now)
        };
        if let Some(seconds) = step {
            self.interval = Duration::from_secs(seconds);
        }
        Next::Reschedule
    }
}

#[cfg(test)]
#[path = "app_tests.rs"]
pub(super) mod tests;
