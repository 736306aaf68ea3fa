//! What became of the flows of a case in both worlds, and whether that is the same.

use std::{collections::BTreeMap, fmt};

use super::{
    WINDOW,
    case::{Change, Fate, Next, Path, Spec, With},
};
use crate::{
    duplex::Tally,
    path::{Forwarded, STRAYS},
    traffic::Proto,
};

/// Packets of a direction on the forward path in a window in which flows are revalidated once, and strays.
const REVALIDATED: u64 = 3 + STRAYS;
/// How many flows a message names.
const NAMED: usize = 6;

/// Messages so far: with and without, each flow, up and down.
pub(super) type Tallies = [Vec<[Tally; 2]>; 2];

/// What became of the flows of a case.
pub struct Findings {
    pub(super) case: &'static str,
    pub(super) with: With,
    pub(super) flows: Vec<Finding>,
    /// With and without.
    pub(super) outputs: [String; 2],
}

/// One flow in both worlds.
pub(super) struct Finding {
    spec: Spec,
    /// None: before any.
    change: Option<&'static Change>,
    /// What must become of it, and its path.
    fate: Fate,
    path: Path,
    /// Messages in the window: with and without, up and down.
    worlds: [[Tally; 2]; 2],
    /// Of those with a fast path.
    forwarded: Forwarded,
}

impl Findings {
    pub(super) fn add(
        &mut self,
        specs: &[Spec],
        change: Option<&'static Change>,
        path: Path,
        fate: Fate,
        [before, after]: [&Tallies; 2],
        forwarded: &BTreeMap<u16, Forwarded>,
    ) {
        for (at, spec) in specs.iter().enumerate() {
            let concerned = change.and_then(|change| change.family).is_none_or(|only| only == spec.family);
            let world = |world: usize| {
                let earlier = before[world].get(at).copied().unwrap_or_default();
                [0, 1].map(|direction| after[world][at][direction] - earlier[direction])
            };
            self.flows.push(Finding {
                spec: *spec,
                change,
                fate: if concerned { fate } else { Fate::Arrive },
                path,
                worlds: [world(0), world(1)],
                forwarded: forwarded[&spec.port],
            });
        }
    }

    /// A line for each change: how many flows have another fate, and the worst of them.
    pub(super) fn print_summary(&self) {
        let mut rest = &self.flows[..];
        while let Some(first) = rest.first() {
            let name = |flow: &Finding| flow.change.map(|change| change.name);
            let (same, others) =
                rest.split_at(rest.iter().take_while(|flow| name(flow) == name(first)).count());
            let wronged: Vec<&Finding> = same.iter().filter(|flow| flow.is_wronged()).collect();
            let worst = wronged.first().map_or_else(String::new, |flow| format!(", as {flow}"));
            println!(
                "{:?}, {}, {}: {} of {} wronged{worst}",
                self.with,
                self.case,
                name(first).unwrap_or("before any change"),
                wronged.len(),
                same.len(),
            );
            rest = others;
        }
        let [with, without] = &self.outputs;
        if !with.is_empty() {
            println!("{:?}, {}: {} without: {}", self.with, self.case, with.trim(), without.trim());
        }
    }

    /// Shows that the set-up does what it should without a fast path.
    #[track_caller]
    fn assert_sound(&self) {
        for flow in &self.flows {
            assert_eq!(flow.fate_in(1), flow.fate, "without a fast path: {}: {flow}", self.case);
        }
    }

    /// How many flows have another fate than without the fast path.
    fn wronged(&self) -> usize {
        self.flows.iter().filter(|flow| flow.is_wronged()).count()
    }

    /// Shows that each flow has the fate that it has without the fast path, and takes the path that it should.
    #[track_caller]
    pub fn assert_same_fate(&self) {
        if let Some(complaint) = self.complaint() {
            panic!("{complaint}");
        }
    }

    /// What is wrong, if anything is.
    #[track_caller]
    pub(super) fn complaint(&self) -> Option<String> {
        self.assert_sound();
        let wrong = |flow: &&Finding| flow.is_wronged() || !flow.is_on_its_path();
        let wrong: Vec<&Finding> = self.flows.iter().filter(wrong).collect();
        let [with, without] = &self.outputs;
        if wrong.is_empty() && with == without {
            return None;
        }
        let mut complaint = format!(
            "{}: with {:?} {} of {} flows have another fate or path than they should",
            self.case,
            self.with,
            wrong.len(),
            self.flows.len(),
        );
        for flow in wrong.iter().take(NAMED) {
            complaint += &format!("\n  {flow}");
        }
        if with != without {
            complaint += &format!("\n  the node prints\n{with}and without\n{without}");
        }
        Some(complaint)
    }

    /// Shows that with each change some flow has another fate: of those that each change of a case fails.
    #[track_caller]
    pub fn assert_each_change_wrongs(&self) {
        self.assert_sound();
        let name = |flow: &Finding| flow.change.map(|change| change.name);
        let wronged: Vec<_> = self.flows.iter().filter(|flow| flow.is_wronged()).map(name).collect();
        for change in self.flows.iter().map(name).filter(Option::is_some) {
            assert!(wronged.contains(&change), "with {:?} no flow has another fate by {change:?}", self.with);
        }
    }

    /// Shows that some flow has another fate: of those that fail a case.
    #[track_caller]
    pub fn assert_some_wronged(&self) {
        self.assert_sound();
        assert!(self.wronged() > 0, "with {:?} no flow of {} has another fate", self.with, self.case);
    }
}

fn arrives(tally: Tally) -> bool {
    tally.arrived * 10 >= tally.sent * 9
}

impl Finding {
    fn fate_in(&self, world: usize) -> Fate {
        if self.worlds[world].into_iter().all(arrives) { Fate::Arrive } else { Fate::Stop }
    }

    fn is_wronged(&self) -> bool {
        // What arrives of a TCP connection of which a direction is denied depends on its timers.
        let directions = || [0, 1].map(|world| self.worlds[world].map(arrives));
        let [with, without] = directions();
        self.fate_in(0) != self.fate_in(1) || self.spec.proto == Proto::Udp && with != without
    }

    fn is_on_its_path(&self) -> bool {
        let Forwarded { original, reply } = self.forwarded;
        match self.path {
            _ if self.fate == Fate::Stop => true,
            Path::Any => true,
            Path::Fast => original <= STRAYS && reply <= STRAYS,
            Path::Revalidated => original <= REVALIDATED && reply <= REVALIDATED,
            Path::Slow if self.spec.next == Next::ClientOnly => original >= WINDOW as u64,
            Path::Slow => original >= WINDOW as u64 && reply >= WINDOW as u64,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [[up, down], [up_without, down_without]] = self.worlds;
        let change = self.change.map_or("before any change", |change| change.name);
        write!(
            f,
            "{change}: {}: {} of {} requests and {} of {} answers arrive (without: {} of {}, {} of {}); \
             {} and {} of the last {WINDOW} on the forward path ({:?})",
            self.spec,
            up.arrived,
            up.sent,
            down.arrived,
            down.sent,
            up_without.arrived,
            up_without.sent,
            down_without.arrived,
            down_without.sent,
            self.forwarded.original,
            self.forwarded.reply,
            self.path,
        )
    }
}
