//! Settings (sysctls) that decide whether this node forwards a packet, as the kernel announces them. Tells a change from
//! an announcement that says nothing new.

use std::collections::BTreeMap;

/// All interfaces (`NETCONFA_IFINDEX_ALL`).
pub const ALL: i32 = -1;
/// Interfaces to come (`NETCONFA_IFINDEX_DEFAULT`).
pub const DEFAULT: i32 = -2;

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// Index of the interface, [`ALL`] or [`DEFAULT`].
    pub interface: i32,
    /// Which (`NETCONFA_*`, include/uapi/linux/netconf.h).
    pub kind: u16,
}

/// What an announcement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// A setting has this value.
    Is(Setting, i32),
    /// An interface has no settings of this family any more.
    Gone {
        /// `AF_INET` or `AF_INET6`.
        family: u8,
        /// Its index.
        interface: i32,
    },
}

/// All settings, as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    values: BTreeMap<Setting, i32>,
    /// They were read as a whole.
    whole: bool,
}

impl Settings {
    /// Those that were read.
    pub fn read(values: impl IntoIterator<Item = Announced>) -> Self {
        let mut settings = Self { whole: true, ..Self::default() };
        for announced in values {
            settings.note(announced);
        }
        settings
    }

    /// Takes note of an announcement; says whether forwarded packets may fare otherwise since. What an interface begins
    /// with is no change, nor is what holds for interfaces to come.
    pub fn note(&mut self, announced: Announced) -> bool {
        match announced {
            Announced::Is(Setting { interface: DEFAULT, .. }, _) => false,
            Announced::Is(setting, value) => match self.values.insert(setting, value) {
                Some(before) => before != value,
                None => !self.whole,
            },
            Announced::Gone { family, interface } => {
                self.values.retain(|s, _| (s.family, s.interface) != (family, interface));
                false
            }
        }
    }

    /// Whether one that both know has another value in `other`.
    pub fn differs(&self, other: &Self) -> bool {
        self.values.iter().any(|(setting, value)| other.values.get(setting).is_some_and(|v| v != value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(interface: i32, value: i32) -> Announced {
        Announced::Is(Setting { family: 2, interface, kind: 2 }, value)
    }

    #[test]
    fn only_another_value_is_a_change() {
        let mut settings = Settings::read([is(ALL, 1), is(3, 1), is(DEFAULT, 1)]);
        assert!(!settings.note(is(ALL, 1)) && !settings.note(is(3, 1)));
        assert!(settings.note(is(ALL, 0)) && settings.note(is(3, 0)));
        assert!(!settings.note(is(3, 0)));
        assert!(!settings.note(is(DEFAULT, 0)), "for interfaces to come");
        assert!(!settings.note(is(4, 1)), "a new interface");
        assert!(settings.note(is(4, 0)));
        // Its index is used again.
        assert!(!settings.note(Announced::Gone { family: 2, interface: 4 }) && !settings.note(is(4, 1)));
    }

    #[test]
    fn without_a_reading_all_counts() {
        let mut settings = Settings::default();
        assert!(settings.note(is(3, 1)));
        assert!(!settings.note(is(3, 1)));
        let read = Settings::read([is(3, 0)]);
        assert!(settings.differs(&read) && !read.differs(&Settings::read([is(4, 1), is(3, 0)])));
    }
}
