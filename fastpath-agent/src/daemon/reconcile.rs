//! One reconcile: observe, compare, commit, until the kernel has what it should have. What it remembers of the kernel
//! is dropped as soon as another program commits anything.

mod refusal;

use std::collections::{BTreeMap, BTreeSet};

use tracing::{debug, info, warn};

use self::refusal::{Blame, one_device_a_message};
use super::revalidate::{self, Emptied, EmptyError};
use crate::{
    core::{
        flow::{
            assist::{LISTED_MS, Wanted},
            one_way::Answer,
        },
        link::{
            kind::is_bridge,
            table::{LinkChange, LinkTable},
        },
        model::{IfIndex, IfName, Link, TABLE},
        pace::{Outcome, Trigger},
        ruleset::{
            desired,
            diff::{self, Decision, ForeignTable},
            observed::{Generation, Observed, ObservedSet},
            plan::{Op, Plan},
            sets::OwnSet,
            wanted::{Desired, DesiredTable, Policy},
        },
        surroundings::{Surroundings, Translates},
    },
    kernel::{
        Ruleset, Unread,
        nft::{CommitError, NftError},
    },
};

/// Transactions and re-reads that one reconcile may take; the next try is a matter of pacing.
const ATTEMPTS: u32 = 8;

/// State of our table after a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// What should.
    Right,
    /// Another program's table of the same name.
    Foreign,
    /// Not what should; it will be tried again.
    Wrong,
}

/// Outcome of a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// For pacing.
    pub outcome: Outcome,
    /// State of the table now.
    pub standing: Standing,
    /// Transactions committed.
    pub commits: u32,
}

/// Keeps the kernel's table as it should be.
pub struct Reconciler<R> {
    ruleset: R,
    policy: Policy,
    foreign: ForeignTable,
    /// Interfaces whose hook the kernel refused, with its reason; tried again when they change.
    refused: BTreeMap<IfIndex, String>,
    /// As last reported: a repeated refusal isn't reported.
    reported: BTreeMap<IfIndex, String>,
    /// What the kernel has, until another program commits.
    cache: Option<Observed>,
    /// Sets of exclusions, until another program changes them, while the rest isn't known: they may have very many keys.
    known: Vec<ObservedSet>,
    /// What the kernel had when the last reconcile ended well.
    achieved: Option<Desired>,
    /// Links that have changed since, if nothing else that the table depends on has.
    changed: Option<BTreeSet<IfIndex>>,
    standing: Option<Standing>,
    /// Why the last reconcile failed, as last reported.
    failure: Option<String>,
    /// What other programs have put into our table, as last reported.
    foreign_objects: Vec<String>,
    /// Conntrack ids that the next transaction lists.
    assisted: Vec<u32>,
    /// Those that there was no room for, since they were last asked for.
    postponed: Vec<u32>,
    /// The set of assisted connections is installed.
    assists: bool,
    /// See [`Self::take_renewed`].
    renewed: bool,
    /// Offers to the flowtable when it was last emptied, as long as the rules that count them stay installed.
    offers_when_emptied: Option<u64>,
}

impl<R: Ruleset> Reconciler<R> {
    /// Knows nothing of the kernel yet.
    pub fn new(ruleset: R, policy: Policy, foreign: ForeignTable) -> Self {
        Self {
            ruleset,
            policy,
            foreign,
            refused: BTreeMap::new(),
            reported: BTreeMap::new(),
            cache: None,
            known: Vec::new(),
            achieved: None,
            changed: None,
            standing: None,
            failure: None,
            foreign_objects: Vec::new(),
            assisted: Vec::new(),
            postponed: Vec::new(),
            assists: false,
            renewed: false,
            offers_when_emptied: None,
        }
    }

    /// Takes note of one change of the links.
    pub fn link_changed(&mut self, change: &LinkChange) {
        match change {
            LinkChange::Appeared(index) => self.link_differs(*index),
            LinkChange::Changed { before, renamed } => {
                self.refused.remove(&before.index);
                self.link_differed(before);
                if *renamed {
                    // The flowtable shows its devices by their present names.
                    self.cache = None;
                }
            }
            LinkChange::Gone(link) => {
                self.refused.remove(&link.index);
                self.link_differed(link);
                if let Some(cache) = &mut self.cache {
                    forget_device(cache, &link.name);
                }
            }
        }
    }

    fn link_differed(&mut self, before: &Link) {
        if is_bridge(before) {
            self.changed = None;
        }
        self.link_differs(before.index);
    }

    fn link_differs(&mut self, index: IfIndex) {
        if let Some(changed) = &mut self.changed {
            changed.insert(index);
        }
    }

    /// All links were read again.
    pub fn links_read(&mut self) {
        self.changed = None;
    }

    /// Another program changed our table, with whichever generation that is announced: several may wait, and what all of
    /// them changed comes with the first.
    pub fn touched(&mut self) {
        self.cache = None;
        self.known.clear();
        self.offers_when_emptied = None;
    }

    /// A transaction was committed that didn't concern our table.
    pub fn passed(&mut self, generation: Generation) {
        if let Some(cache) = &mut self.cache
            && cache.generation.next() == generation
        {
            cache.generation = generation;
        }
    }

    /// Empties the flowtable, unless no flow has entered it since it was last emptied.
    pub fn empty(&mut self) -> Result<Emptied, EmptyError> {
        let emptied = revalidate::empty_flowtable(&mut self.ruleset, self.offers_when_emptied)?;
        if let Emptied::Done { offers } = emptied {
            self.offers_when_emptied = offers;
            // The rules have new handles; nothing else changed.
            if let Some(table) = self.cache.take().and_then(|cache| cache.table) {
                self.known = table.sets.into_iter().filter(|set| !set.keys.is_empty()).collect();
            }
        }
        Ok(emptied)
    }

    /// Drops what is known of the kernel's ruleset and of refused interfaces: the next reconcile begins afresh.
    pub fn distrust(&mut self) {
        self.cache = None;
        self.known.clear();
        self.refused.clear();
        self.changed = None;
        self.offers_when_emptied = None;
    }

    /// Changes the wanted table from the next reconcile on.
    pub fn want(&mut self, change: impl FnOnce(&mut Policy)) {
        change(&mut self.policy);
        self.changed = None;
    }

    /// Takes what other programs have on this node; returns whether it is new, which takes a reconcile.
    pub fn surrounded_by(&mut self, surroundings: Surroundings) -> bool {
        if self.policy.surroundings == surroundings {
            return false;
        }
        self.policy.surroundings = surroundings;
        self.changed = None;
        true
    }

    /// What other programs have, as last taken.
    pub fn surroundings(&self) -> &Surroundings {
        &self.policy.surroundings
    }

    /// State of our table after the last reconcile; `None` before the first.
    pub fn standing(&self) -> Option<Standing> {
        self.standing
    }

    /// How many interfaces aren't in the flowtable and why, see [`desired::left_out`].
    pub fn left_out(&self, links: &LinkTable) -> BTreeMap<&'static str, u64> {
        let managed = self.offloads().map(|(_, managed)| managed.collect()).unwrap_or_default();
        desired::left_out(&self.policy, links, &self.refused, &managed)
    }

    /// Why the last reconcile failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// After how many packets flows are offloaded, and between which interfaces; `None` while no rule of the agent is installed.
    pub fn offloads(&self) -> Option<(u32, impl ExactSizeIterator<Item = IfIndex>)> {
        let table = self.achieved.as_ref().filter(|_| self.standing == Some(Standing::Right))?.as_ref()?;
        Some((self.policy.threshold, table.devices.keys().copied()))
    }

    /// Whether connections are assisted from now on, and which are added to those that are.
    pub fn assist(&mut self, wanted: Wanted) {
        if self.policy.assist != wanted.rule {
            self.policy.assist = wanted.rule;
            self.changed = None;
        }
        self.assisted.extend(wanted.ids);
    }

    /// Conntrack ids that there was no room for: they wait their turn.
    pub fn take_postponed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.postponed)
    }

    /// Whether the rules were installed, or made again and lost their flows, since the last call.
    pub fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    /// Leaves these traces in the table, if that is right. Nothing is lost if it isn't, or changes meanwhile.
    pub fn leave_traces(&mut self, answers: Vec<Answer>) {
        if self.standing != Some(Standing::Right) {
            return;
        }
        // After a revalidation it isn't known: often nothing has to be reconciled.
        let observed = match self.cache.take() {
            Some(observed) => Ok(observed),
            None => {
                self.changed = None;
                self.ruleset.observe_but(Unread::Known(&self.known))
            }
        };
        let expected = match observed {
            Ok(observed) => self.cache.insert(observed).generation,
            Err(error) => return debug!(%error, "one-way streams stay on the normal path"),
        };
        match self.ruleset.commit(&[Op::AddTraces(answers)], expected) {
            Ok(generation) if generation == expected.next() => {
                if let Some(cache) = &mut self.cache {
                    cache.generation = generation;
                }
            }
            Ok(_) => self.cache = None,
            Err(error) => debug!(%error, "one-way streams stay on the normal path"),
        }
    }

    /// Whether one-way streams may be helped (no rule could deny their answers), and of which families those whose addresses
    /// are translated.
    pub fn may_help_one_way(&self) -> Option<Translates> {
        let Surroundings { sure_of_answers, translates, .. } = &self.policy.surroundings;
        (*sure_of_answers && self.standing == Some(Standing::Right)).then_some(*translates)
    }

    /// The ruleset.
    pub fn ruleset(&mut self) -> &mut R {
        &mut self.ruleset
    }

    /// Gives the ruleset back.
    pub fn into_ruleset(self) -> R {
        self.ruleset
    }

    /// Makes the kernel have what it should have.
    ///
    /// Returns errors that no retry mends (no permission, no nf_tables). Other errors are logged, and the report says that
    /// it has to be tried again.
    #[tracing::instrument(level = "debug", skip_all, fields(%trigger))]
    pub fn reconcile(&mut self, trigger: Trigger, links: &LinkTable) -> Result<Report, NftError> {
        if matches!(trigger, Trigger::SafetyNet | Trigger::Overrun) {
            self.distrust();
        }
        let mut commits = 0;
        let mut split = false;
        let mut repaired = false;
        for _ in 0..ATTEMPTS {
            let observed = match self.cache.take() {
                Some(observed) => observed,
                None => match self.ruleset.observe_but(Unread::Known(&self.known)) {
                    Ok(observed) => {
                        self.changed = None;
                        observed
                    }
                    Err(error) => return self.failed(error, commits),
                },
            };
            let followed = self.follow(&observed, links);
            let follows = followed.is_some();
            let (wanted, ops) = match followed {
                Some((wanted, ops)) => (Some(wanted), ops),
                None => {
                    let mut wanted = desired::desired(&self.policy, links.iter(), &self.refused);
                    desired::keep_revoked(&mut wanted, &observed);
                    match diff::diff(&wanted, &observed, self.foreign) {
                        Decision::Foreign => {
                            self.cache = Some(observed);
                            self.assisted.clear();
                            return Ok(self.reached(Standing::Foreign, Outcome::Done, commits));
                        }
                        Decision::Apply(ops) => (wanted, ops),
                    }
                }
            };
            if !self.policy.assist || wanted.is_none() {
                self.assisted.clear();
            }
            if ops.is_empty() && self.assisted.is_empty() {
                let released = self.note_foreign_objects(&observed);
                self.cache = Some(observed);
                if released {
                    continue;
                }
                self.achieved = Some(wanted);
                self.changed = Some(BTreeSet::new());
                self.reported.retain(|index, _| self.refused.contains_key(index));
                let outcome = if repaired { Outcome::Repaired } else { Outcome::Done };
                return Ok(self.reached(Standing::Right, outcome, commits));
            }
            if commits == 0 && !ops.is_empty() && self.achieved.as_ref() == Some(&wanted) {
                // The wanted table is the same, so another program changed the installed one.
                repaired = true;
                info!(operations = ops.len(), "another program changed table {TABLE}: putting it back");
            }
            let mut ops = if split { one_device_a_message(ops) } else { ops };
            if !self.assisted.is_empty() {
                ops.push(Op::AddAssisted { ids: self.assisted.clone(), timeout_ms: LISTED_MS });
            }
            let going = observed.table.as_ref().map(|t| diff::rules_that_go(t, &ops)).unwrap_or_default();
            debug!(plan = %Plan(&ops), "committing");
            match self.ruleset.commit(&ops, observed.generation) {
                Ok(generation) => {
                    commits += 1;
                    if !going.is_empty() {
                        warn!(
                            rules = going.join(", "),
                            "moving a chain of table {TABLE} deleted other programs' rules in it: put such rules into a table of \
                             their own"
                        );
                    }
                    self.assisted.clear();
                    self.renewed |= ops.iter().any(|op| match op {
                        Op::AddSet(OwnSet::Assist) => self.assists,
                        op => matches!(op, Op::AddFlowtable { .. }),
                    });
                    self.assists = self.policy.assist;
                    self.known.clear();
                    self.offers_when_emptied = None;
                    if follows {
                        self.achieved = Some(wanted);
                    }
                    if generation == observed.generation.next() {
                        self.cache = diff::after(observed, &ops)
                            .map(|table| Observed { generation, table: Some(table) });
                    }
                }
                Err(CommitError::Stale) => debug!("the ruleset changed meanwhile"),
                Err(CommitError::Rejected(rejections)) => match self.blame(&ops, &rejections, split, links) {
                    Blame::Device => {}
                    Blame::SomeDevice => split = true,
                    Blame::NoRoom => self.postponed.append(&mut self.assisted),
                    Blame::Agent => {
                        return Ok(self.fail_for_now(&CommitError::Rejected(rejections), commits));
                    }
                },
                Err(CommitError::Io(error)) => return self.failed(error, commits),
            }
        }
        // Other programs committed first each time. The table is as it was found; try again later.
        debug!("other programs committed first each time");
        match self.standing {
            Some(standing @ Standing::Right) => Ok(Report { outcome: Outcome::Failed, standing, commits }),
            _ => Ok(self.fail_for_now(&CommitError::Stale, commits)),
        }
    }

    /// The wanted table and the operations to get there, worked out from the changed links only.
    /// `None` if everything has to be compared.
    fn follow(&mut self, observed: &Observed, links: &LinkTable) -> Option<(DesiredTable, Vec<Op>)> {
        let changed = self.changed.as_ref()?;
        let table = observed.table.as_ref()?;
        let mut wanted = self.achieved.take()??;
        let before = wanted.follow(&self.policy, links, &self.refused, changed)?;
        let ops = diff::diff_links(&wanted, &before, changed, table)?;
        Some((wanted, ops))
    }

    /// An error that may pass is retried; any other ends the agent.
    fn failed(&mut self, error: NftError, commits: u32) -> Result<Report, NftError> {
        if error.is_final() {
            return Err(error);
        }
        Ok(self.fail_for_now(&error, commits))
    }

    fn fail_for_now(&mut self, error: &dyn std::error::Error, commits: u32) -> Report {
        let error = error.to_string();
        if self.failure.as_ref() != Some(&error) {
            warn!(error, "table {TABLE} can't be repaired; trying again, ever more slowly");
            self.failure = Some(error);
        }
        self.reached(Standing::Wrong, Outcome::Failed, commits)
    }

    fn reached(&mut self, standing: Standing, outcome: Outcome, commits: u32) -> Report {
        let before = self.standing.replace(standing);
        if before != Some(standing) {
            if standing == Standing::Right {
                (self.failure, self.renewed) = (None, true);
            }
            match standing {
                Standing::Right if self.policy.threshold == 0 => {
                    info!("ruleset verified: threshold 0, nothing is offloaded");
                }
                Standing::Right => {
                    let devices =
                        self.achieved.iter().flatten().map(|table| table.devices.len()).sum::<usize>();
                    info!(
                        threshold = self.policy.threshold,
                        devices, "ruleset verified: flows are offloaded by table inet {TABLE}"
                    );
                }
                Standing::Foreign => {
                    self.achieved = None;
                    warn!(
                        "table inet {TABLE} was made by another program (kindnetd?): it is left alone and the agent offloads nothing. \
                         Switch that program off (kindnetd: --fastpath-threshold=0), or replace its table with --takeover"
                    );
                }
                Standing::Wrong => {}
            }
        }
        Report { outcome, standing, commits }
    }

    /// Logs once what other programs have put into our table. True if that changed: it may have held a refused interface.
    fn note_foreign_objects(&mut self, observed: &Observed) -> bool {
        let found = observed.table.as_ref().map(diff::foreign_objects).unwrap_or_default();
        if found == self.foreign_objects {
            return false;
        }
        if !found.is_empty() {
            warn!(objects = found.join(", "), "table {TABLE} holds other programs' objects: left alone");
        }
        self.foreign_objects = found;
        let released = !self.refused.is_empty();
        if released {
            self.refused.clear();
            self.changed = None;
        }
        released
    }
}

/// The kernel takes a device that goes away out of every flowtable by itself (nf_tables_flowtable_event).
fn forget_device(observed: &mut Observed, name: &IfName) {
    for flowtable in observed.table.iter_mut().flat_map(|t| t.flowtables.iter_mut()) {
        if let Some(devices) = flowtable.devices.as_mut() {
            devices.remove(name);
        }
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
