//! The three groups that every flow belongs to: is it fast, could it be, or will it never be?

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use strum::{EnumCount, EnumIter, IntoStaticStr};

use super::{Flow, State};
use crate::core::why_not::{Cause, WhyNot};

/// Of the flows of a node. `flows`, `top`, `status`, `why`, metrics and the page speak of the same three.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ValueEnum,
    EnumCount,
    EnumIter,
    IntoStaticStr,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Group {
    /// Its packets bypass the normal path
    Fast,
    /// It has to have more packets, or something can be done about it
    CouldBeFast,
    /// Not forwarded, left out by choice, ended, or nothing that the kernel can offload
    Never,
}

impl Group {
    /// Its name, as JSON and metrics have it.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The same for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::CouldBeFast => "could be fast",
            Self::Never => "never",
        }
    }

    /// The group of a flow in this state; `slow`: it is offloaded and its packets take the normal path all the same.
    pub fn of(state: &State, slow: bool) -> Self {
        match state {
            State::Offloaded | State::HwOffloaded if !slow => Self::Fast,
            State::Offloaded | State::HwOffloaded | State::Crossed | State::Idle | State::BelowThreshold => {
                Self::CouldBeFast
            }
            State::Stalled(_) => Self::CouldBeFast,
            State::Never(_) | State::Closing | State::Gone => Self::Never,
        }
    }
}

/// What makes a flow of [`Group::CouldBeFast`] fast, in a few words; `None` for the others.
pub fn todo(state: &State, slow: bool) -> Option<&'static str> {
    match state {
        State::Offloaded | State::HwOffloaded if slow => Some("ask `why`"),
        State::Crossed => Some("nothing: it is being offloaded"),
        State::Idle => Some("nothing: its next packet brings it back"),
        State::BelowThreshold => WhyNot::BelowThreshold.todo(),
        State::Stalled(cause) => cause.todo(),
        State::Never(_) | State::Offloaded | State::HwOffloaded | State::Closing | State::Gone => None,
    }
}

impl Flow {
    /// Whether it is fast, could be, or never will be.
    pub fn group(&self) -> Group {
        Group::of(&self.state, self.slow())
    }
}

impl Cause {
    /// What to do about it, in a few words; `None` if nothing can be done, or it was chosen.
    pub fn todo(&self) -> Option<&'static str> {
        self.why.todo()
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn what_could_be_fast_has_something_to_do_and_nothing_else_has() {
        let kept_out = WhyNot::of_flows().map(State::not);
        let others = [
            State::HwOffloaded,
            State::Offloaded,
            State::Crossed,
            State::Idle,
            State::BelowThreshold,
            State::Closing,
            State::Gone,
        ];
        let mut seen = std::collections::BTreeSet::new();
        for state in others.into_iter().chain(kept_out) {
            for slow in [false, true] {
                let group = Group::of(&state, slow);
                assert_eq!(
                    group == Group::CouldBeFast,
                    todo(&state, slow).is_some(),
                    "{state:?}, slow: {slow}"
                );
                seen.insert(group);
            }
        }
        assert!(seen.into_iter().eq(Group::iter()));
    }

    #[test]
    fn what_was_chosen_and_what_isnt_forwarded_is_never_fast() {
        for why in [WhyNot::Local, WhyNot::Protocol, WhyNot::Excluded, WhyNot::Revoked, WhyNot::Helper] {
            assert_eq!(Group::of(&State::not(why), false), Group::Never, "{why:?}");
        }
        for why in
            [WhyNot::NoRule, WhyNot::NotCounted, WhyNot::Interface, WhyNot::EveryPacket, WhyNot::Unknown]
        {
            assert_eq!(Group::of(&State::not(why), false), Group::CouldBeFast, "{why:?}");
        }
    }
}
