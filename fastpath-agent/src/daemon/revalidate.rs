//! Revalidates offloaded flows after changes that may concern them: the flowtable is emptied, and flows that
//! the filters still accept come back with their next packet.

use std::collections::BTreeMap;

use tracing::warn;

use crate::{
    cli::OnOff,
    config::Config,
    core::{
        recurring::{Need, Recurring},
        revalidate::{BaseChains, Notice, Pace, Touched},
        ruleset::{
            empty::{self, Obstacle},
            observed::Owner,
        },
    },
    kernel::{
        Ruleset, RulesetMonitor, Unread,
        nft::{CommitError, Lost, NftError},
    },
};

/// Transactions that may lose against other programs' before the agent gives up.
const ATTEMPTS: u32 = 8;

/// Result for the flowtable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emptied {
    /// The agent has none.
    Absent,
    /// No flow has entered it since it was last emptied.
    NothingNew,
    /// All flows have left it.
    Done {
        /// Flows that our rules have offered to it until then; `None` where they don't count.
        offers: Option<u64>,
    },
}

/// The flowtable can't be emptied.
#[derive(Debug, thiserror::Error)]
pub enum EmptyError {
    /// The ruleset can't be read.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The kernel refuses the transaction.
    #[error("the flowtable can't be emptied: {0}")]
    Commit(#[source] CommitError),
    /// It can't be done without harm.
    #[error("the flowtable can't be emptied: {0}")]
    Obstacle(#[from] Obstacle),
}

/// Empties the flowtable of our table, unless our rules have offered it no flow since they had offered `offers_then`.
pub fn empty_flowtable(ruleset: &mut impl Ruleset, offers_then: Option<u64>) -> Result<Emptied, EmptyError> {
    let mut refusal = CommitError::Stale;
    for _ in 0..ATTEMPTS {
        let observed = ruleset.observe_but(Unread::Exclusions)?;
        let Some(table) = observed.table.filter(|table| table.owner == Owner::Agent) else {
            return Ok(Emptied::Absent);
        };
        let offers = empty::offers(&table);
        if offers.is_some() && offers == offers_then {
            return Ok(Emptied::NothingNew);
        }
        let ops = empty::empty(&table)?;
        if ops.is_empty() {
            return Ok(Emptied::Absent);
        }
        match ruleset.commit(&ops, observed.generation) {
            Ok(_) => return Ok(Emptied::Done { offers }),
            Err(CommitError::Io(error)) => return Err(error.into()),
            // Another program committed first, or an interface has gone meanwhile.
            Err(error) => refusal = error,
        }
    }
    Err(EmptyError::Commit(refusal))
}

/// Follows the changes of the ruleset.
pub struct Revalidation {
    /// `None` with `--revalidate=off`.
    pace: Option<Pace>,
    /// While there are rules that change without an event.
    recurring: Recurring,
    /// `None` while they can't be read.
    chains: Option<BaseChains>,
    /// Why emptying failed, as last reported.
    failure: Option<String>,
    /// What the next one is for.
    trigger: Trigger,
    counts: Counts,
    /// How often rules that change without an event had the flowtable emptied, by what they ask.
    by_cause: BTreeMap<&'static str, u64>,
}

/// Number of revalidations by trigger and outcome.
pub type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// What triggered revalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The ruleset changed.
    Ruleset,
    /// Announcements of changes were lost.
    Overrun,
    /// Policy rules (`ip rule`) changed.
    RouteRules,
    /// Routes came that the flowtable doesn't notice.
    Routes,
    /// Settings of forwarding (sysctls) changed.
    Forwarding,
    /// A link has another master (VRF, bridge, bond), name or MTU.
    Link,
    /// Other programs' settings that our rules respect have changed.
    Surroundings,
    /// Another program's rule may have changed its verdict without an event.
    ChangingRule,
}

impl Trigger {
    /// As metrics have it.
    fn name(self) -> &'static str {
        match self {
            Self::Ruleset => "ruleset",
            Self::Overrun => "overrun",
            Self::RouteRules => "route-rules",
            Self::Routes => "routes",
            Self::Forwarding => "forwarding",
            Self::Link => "link",
            Self::Surroundings => "surroundings",
            Self::ChangingRule => "changing-rule",
        }
    }
}

impl Revalidation {
    /// Reads the chains of all tables; `monitor` listens already.
    pub fn start(config: &Config, ruleset: &mut impl Ruleset) -> Self {
        let pace = match config.revalidate {
            OnOff::On => Some(Pace::new(config.revalidate_interval_ms)),
            OnOff::Off => None,
        };
        Self {
            pace,
            recurring: Recurring::new(config.enforce_within_ms),
            chains: read_chains(ruleset),
            failure: None,
            trigger: Trigger::Ruleset,
            counts: Counts::new(),
            by_cause: BTreeMap::new(),
        }
    }

    /// What the transactions since the last call, but for our own, may concern.
    /// `each` is called for all of them.
    pub fn touched(
        &mut self,
        monitor: &mut impl RulesetMonitor,
        ruleset: &mut impl Ruleset,
        mut each: impl FnMut(&Notice<'_>),
    ) -> Result<Touched, NftError> {
        let mut touched = Touched::default();
        let Some(chains) = &mut self.chains else { return self.lost(monitor, ruleset) };
        let note = |notice: &Notice<'_>| {
            touched |= chains.note(notice);
            each(notice);
        };
        match monitor.changes(note) {
            Ok(Ok(())) => Ok(touched),
            Ok(Err(Lost)) => self.lost(monitor, ruleset),
            Err(error) => self.unread(error, ruleset),
        }
    }

    /// Reads the chains again. A difference to what was announced is a change like any other.
    pub fn reread(
        &mut self,
        monitor: &mut impl RulesetMonitor,
        ruleset: &mut impl Ruleset,
        each: impl FnMut(&Notice<'_>),
    ) -> Result<Touched, NftError> {
        let mut touched = self.touched(monitor, ruleset, each)?;
        let before = std::mem::replace(&mut self.chains, read_chains(ruleset));
        touched.forwarding |= before.is_some() && self.chains.is_some() && before != self.chains;
        Ok(touched)
    }

    /// Announcements were lost, so anything may have changed.
    pub fn lost(
        &mut self,
        monitor: &mut impl RulesetMonitor,
        ruleset: &mut impl Ruleset,
    ) -> Result<Touched, NftError> {
        // What waits there is older than what is read now, or not; noted twice it does no harm.
        match monitor.changes(|_| {}) {
            Ok(_) => {
                self.chains = read_chains(ruleset);
                Ok(Touched::EVERYTHING)
            }
            Err(error) => self.unread(error, ruleset),
        }
    }

    /// Other programs' changes can't be read: they may be anything.
    fn unread(&mut self, error: NftError, ruleset: &mut impl Ruleset) -> Result<Touched, NftError> {
        if error.is_final() {
            return Err(error);
        }
        warn!(%error, "changes of the ruleset can't be read: reading everything again");
        self.chains = read_chains(ruleset);
        Ok(Touched::EVERYTHING)
    }

    /// Something changed at `now` that offloaded flows don't follow by themselves.
    pub fn changed(&mut self, trigger: Trigger, now: u64) {
        if let Some(pace) = &mut self.pace {
            if pace.due().is_none() {
                self.trigger = trigger;
            }
            pace.changed(now);
        }
    }

    /// How often it was done.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Sets what other programs' rules that change without an event make necessary.
    pub fn recurs(&mut self, need: Need, now: u64) {
        self.recurring.needed(need, now);
    }

    /// Whether something was announced of them that hasn't been read yet.
    pub fn unsure(&mut self, is: bool) {
        if is {
            self.recurring.unsure();
        }
    }

    /// The clock has reached a moment at which a rule's verdict may change, or was set.
    pub fn strikes(&mut self, now: u64) {
        self.recurring.strikes(now);
    }

    /// How often such rules made it necessary, by what they ask.
    pub fn by_cause(&self) -> &BTreeMap<&'static str, u64> {
        &self.by_cause
    }

    /// When to empty the flowtable, if at all.
    pub fn due(&self) -> Option<u64> {
        let announced = self.pace.as_ref()?.due();
        [announced, self.recurring.due()].into_iter().flatten().min()
    }

    /// It was tried; a failure is logged once and tried again. Says what for.
    pub fn ran(&mut self, result: Result<Emptied, EmptyError>, now: u64) -> Result<&'static str, NftError> {
        let Some(pace) = &mut self.pace else { return Ok("") };
        let announced = pace.due().is_some_and(|due| due <= now);
        let trigger = if announced { self.trigger } else { Trigger::ChangingRule }.name();
        let causes = self.recurring.ran(now);
        // What recurs doesn't put off the answer to a change.
        if announced {
            pace.ran(now);
        }
        let outcome = match &result {
            Ok(Emptied::Done { .. }) => "emptied",
            Ok(Emptied::NothingNew) => "nothing-new",
            Ok(Emptied::Absent) => "absent",
            Err(_) => "failed",
        };
        *self.counts.entry((trigger, outcome)).or_default() += 1;
        if !announced && matches!(result, Ok(Emptied::Done { .. })) {
            for cause in causes {
                *self.by_cause.entry(cause).or_default() += 1;
            }
        }
        self.failure = match result {
            Ok(_) => None,
            Err(EmptyError::Nft(error)) if error.is_final() => return Err(error),
            Err(error) => {
                let error = error.to_string();
                if self.failure.as_ref() != Some(&error) {
                    warn!("policy isn't enforced on offloaded flows: {error}; trying again");
                }
                pace.changed(now);
                Some(error)
            }
        };
        Ok(trigger)
    }
}

fn read_chains(ruleset: &mut impl Ruleset) -> Option<BaseChains> {
    match ruleset.base_chains() {
        Ok(chains) => Some(chains),
        Err(error) => {
            warn!(%error, "base chains can't be read: until the next reading, every change of the ruleset counts as one that concerns forwarding");
            None
        }
    }
}
