//! One reconcile: observe, compare, commit, until the kernel has what it should have. Holds no truth of its own:
//! what it remembers of the kernel is dropped as soon as somebody else commits anything.

use std::{collections::BTreeMap, io};

use tracing::{debug, info, warn};

use crate::{
    core::{
        desired::{self, Desired, Policy},
        diff::{self, Decision, ForeignTable},
        link_table::{LinkChange, LinkTable},
        model::{FLOWTABLE, IfIndex, IfName, TABLE},
        observed::{Generation, Observed},
        pace::{Outcome, Trigger},
        plan::Op,
    },
    kernel::{
        Ruleset,
        nft::{CommitError, NftError, Rejection},
    },
};

/// Transactions and re-reads that one reconcile may take; the next try is a matter of pacing.
const ATTEMPTS: u32 = 8;

/// What stands in our table's place after a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// What should.
    Right,
    /// Somebody else's table of the same name.
    Foreign,
    /// Not what should; it will be tried again.
    Wrong,
}

/// What a reconcile came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// For pacing.
    pub outcome: Outcome,
    /// What stands in the kernel now.
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
    /// What the kernel has, as long as nobody else commits.
    cache: Option<Observed>,
    /// What stood in the kernel when the last reconcile ended well.
    achieved: Option<Desired>,
    standing: Option<Standing>,
    /// What others have put into our table, as last reported.
    foreign_objects: Vec<String>,
}

impl<R: Ruleset> Reconciler<R> {
    /// Knows nothing of the kernel yet.
    pub fn new(ruleset: R, policy: Policy, foreign: ForeignTable) -> Self {
        Self {
            ruleset,
            policy,
            foreign,
            refused: BTreeMap::new(),
            cache: None,
            achieved: None,
            standing: None,
            foreign_objects: Vec::new(),
        }
    }

    /// Takes note of one change of the links.
    pub fn link_changed(&mut self, change: &LinkChange) {
        match change {
            LinkChange::Appeared(_) => {}
            LinkChange::Changed { before, renamed } => {
                self.refused.remove(&before.index);
                if *renamed {
                    // The flowtable shows its devices by their present names.
                    self.cache = None;
                }
            }
            LinkChange::Gone(link) => {
                self.refused.remove(&link.index);
                if let Some(cache) = &mut self.cache {
                    forget_device(cache, &link.name);
                }
            }
        }
    }

    /// A transaction was committed by anybody; says whether it was news.
    pub fn committed(&mut self, generation: Generation) -> bool {
        match &self.cache {
            Some(cache) if generation.is_after(cache.generation) => {
                self.cache = None;
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    /// Drops what is known of the kernel's ruleset and of refused interfaces: the next reconcile begins afresh.
    pub fn distrust(&mut self) {
        self.cache = None;
        self.refused.clear();
    }

    /// Takes our table away, if it is ours.
    pub fn remove(&mut self) -> Result<(), CommitError> {
        for _ in 0..ATTEMPTS {
            let observed = self.ruleset.observe()?;
            self.cache = None;
            match diff::diff(&None, &observed, ForeignTable::Refuse) {
                Decision::Apply(ops) if !ops.is_empty() => {
                    match self.ruleset.commit(&ops, observed.generation) {
                        Err(CommitError::Stale) => {}
                        other => return other.map(drop),
                    }
                }
                Decision::Apply(_) | Decision::Foreign => return Ok(()),
            }
        }
        Err(CommitError::Stale)
    }

    /// Makes the kernel have what it should have.
    ///
    /// Errors are those that no retry mends (no permission, no nf_tables); others are logged, and the report says that
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
                None => self.ruleset.observe()?,
            };
            let wanted = desired::desired(&self.policy, links.iter(), &self.refused);
            let ops = match diff::diff(&wanted, &observed, self.foreign) {
                Decision::Foreign => {
                    self.cache = Some(observed);
                    return Ok(self.stands(Standing::Foreign, Outcome::Done, commits));
                }
                Decision::Apply(ops) => ops,
            };
            if ops.is_empty() {
                self.note_foreign_objects(&observed);
                self.cache = Some(observed);
                self.achieved = Some(wanted);
                let outcome = if repaired { Outcome::Repaired } else { Outcome::Done };
                return Ok(self.stands(Standing::Right, outcome, commits));
            }
            if commits == 0 && self.achieved.as_ref() == Some(&wanted) {
                // Nothing that we know of has changed, so somebody undid what we had done.
                repaired = true;
                info!(operations = ops.len(), "somebody changed table {TABLE}: putting it back");
            }
            let ops = if split { one_device_a_message(ops) } else { ops };
            debug!(?ops, "plan");
            match self.ruleset.commit(&ops, observed.generation) {
                Ok(generation) => {
                    commits += 1;
                    if generation == observed.generation.next() {
                        self.cache = diff::after(&observed, &ops)
                            .map(|table| Observed { generation, table: Some(table) });
                    }
                }
                Err(CommitError::Stale) => debug!("the ruleset changed meanwhile"),
                Err(CommitError::Rejected(rejections)) => match self.blame(&ops, &rejections, split, links) {
                    Blame::Device => {}
                    Blame::SomeDevice => split = true,
                    Blame::Ours => {
                        let error = CommitError::Rejected(rejections);
                        warn!(%error, "the kernel refused a change of table {TABLE}; trying again later");
                        return Ok(self.stands(Standing::Wrong, Outcome::Failed, commits));
                    }
                },
                Err(CommitError::Io(error)) => return Err(error),
            }
        }
        warn!("the ruleset or the interfaces change faster than they can be followed; trying again later");
        Ok(self.stands(Standing::Wrong, Outcome::Failed, commits))
    }

    fn stands(&mut self, standing: Standing, outcome: Outcome, commits: u32) -> Report {
        let before = self.standing.replace(standing);
        if before != Some(standing) {
            match standing {
                Standing::Right if self.policy.threshold == 0 => {
                    info!("ruleset verified: threshold 0, nothing is offloaded");
                }
                Standing::Right => {
                    let devices =
                        self.achieved.as_ref().and_then(|d| d.as_ref()).map_or(0, |t| t.devices.len());
                    info!(
                        threshold = self.policy.threshold,
                        devices, "ruleset verified: flows are offloaded by table inet {TABLE}"
                    );
                }
                Standing::Foreign => {
                    self.achieved = None;
                    warn!(
                        "table inet {TABLE} was made by somebody else (kindnetd?): it is left alone and nothing is offloaded by \
                         this agent. Switch the other one off (kindnetd: --fastpath-threshold=0), or replace its table with \
                         --takeover"
                    );
                }
                Standing::Wrong => {}
            }
        }
        Report { outcome, standing, commits }
    }

    fn note_foreign_objects(&mut self, observed: &Observed) {
        let found = observed.table.as_ref().map(diff::foreign_objects).unwrap_or_default();
        if found != self.foreign_objects {
            // One of them may have held a device that we were refused.
            self.refused.clear();
            if !found.is_empty() {
                warn!(
                    objects = found.join(", "),
                    "table {TABLE} holds things of others: they are left alone"
                );
            }
            self.foreign_objects = found;
        }
    }

    /// Finds out who is to blame for a refused transaction, and remembers devices that were.
    fn blame(&mut self, ops: &[Op], rejections: &[Rejection], split: bool, links: &LinkTable) -> Blame {
        let mut blame = Blame::Ours;
        for rejection in rejections {
            match ops.get(rejection.index) {
                Some(Op::AddDevices(names)) if names.len() == 1 => {
                    self.refuse(&names[0], &rejection.source, links);
                    blame = Blame::Device;
                }
                Some(Op::AddDevices(_)) if !split => return Blame::SomeDevice,
                // A device that is gone already leaves the flowtable by itself; a table that was recreated has other
                // handles. The next look shows.
                Some(Op::RemoveDevices(_) | Op::RemoveIndices(_) | Op::DeleteRule { .. })
                    if rejection.source.raw_os_error() == Some(libc::ENOENT) =>
                {
                    blame = Blame::Device;
                }
                _ => {}
            }
        }
        blame
    }

    fn refuse(&mut self, name: &IfName, error: &io::Error, links: &LinkTable) {
        if self.policy.hw_offload && error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            self.policy.hw_offload = false;
            warn!(
                iface = %name,
                "no hardware offload: this interface can't do it, and a flowtable is either hardware or software; flows are \
                 offloaded in software (--exclude-interfaces leaves interfaces out, --hw-offload=off silences this)"
            );
            return;
        }
        let Some(index) = links.iter().find(|l| l.name == *name).map(|l| l.index) else { return };
        warn!(
            iface = %name, errno = error.raw_os_error(),
            "the kernel refused this interface in {FLOWTABLE} ({error}): its flows take the normal path; tried again when \
             it changes"
        );
        self.refused.insert(index, error.to_string());
    }
}

enum Blame {
    /// A device that is left out from now on, or something that a new look clears up.
    Device,
    /// One of several devices in a message: each has to be sent alone to tell which.
    SomeDevice,
    /// The plan itself, or the kernel's resources.
    Ours,
}

/// The same operations, with each new device in a message of its own so that the kernel names the culprits.
fn one_device_a_message(ops: Vec<Op>) -> Vec<Op> {
    ops.into_iter()
        .flat_map(|op| match op {
            Op::AddDevices(names) => names.into_iter().map(|name| Op::AddDevices(vec![name])).collect(),
            other => vec![other],
        })
        .collect()
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
