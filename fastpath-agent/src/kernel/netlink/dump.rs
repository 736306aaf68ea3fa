//! Lists of objects (`NLM_F_DUMP`). Whose objects are asked for has to be said, and what comes back says whether it belongs
//! together: a part can't be mistaken for all.

use std::io;

use libc::NLM_F_DUMP;

use super::Request;
use crate::core::printable;

/// Whose objects are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) enum Families {
    /// Those of all families (`NFPROTO_UNSPEC`, `AF_UNSPEC`). Not every list of rtnetlink knows it.
    All,
    /// Those of one (`NFPROTO_*`, `AF_*`).
    One(u8),
}

impl Families {
    /// The byte that says so, the first one behind the netlink header.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::All => 0,
            Self::One(family) => family,
        }
    }
}

/// What is asked for.
pub(in crate::kernel) struct Dump(pub(super) Request);

impl Dump {
    /// Objects of a kind, by the type of the request. `header` is what such a request begins with; its first byte becomes
    /// the family.
    pub(in crate::kernel) fn new<const N: usize>(kind: u16, families: Families, mut header: [u8; N]) -> Self {
        header[0] = families.byte();
        Self(Request::new(kind, NLM_F_DUMP, &header))
    }

    /// Objects with no family in the request.
    pub(in crate::kernel) fn without_family(kind: u16, header: &[u8]) -> Self {
        Self(Request::new(kind, NLM_F_DUMP, header))
    }

    /// Only those with this attribute, where the kernel filters by it.
    pub(in crate::kernel) fn with(self, kind: u16, value: &[u8]) -> Self {
        Self(self.0.attribute(kind, value))
    }

    /// Only those in, or with, the object of this name, as it is shown.
    pub(in crate::kernel) fn named(self, kind: u16, name: &str) -> Self {
        let name = printable::name(name).unwrap_or(name.as_bytes().into());
        Self(self.0.name(kind, &name))
    }
}

/// What a dump gave. To get the value, the caller has to handle an interrupted dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(in crate::kernel) enum Dumped<T> {
    /// All of it belongs together.
    Complete(T),
    /// Something changed meanwhile (`NLM_F_DUMP_INTR`): there may be less than there was at any moment, or something twice.
    Interrupted(T),
}

impl<T> Dumped<T> {
    pub(super) fn new(value: T, interrupted: bool) -> Self {
        if interrupted { Self::Interrupted(value) } else { Self::Complete(value) }
    }

    /// The value, and `true` in `interrupted` if it was.
    pub(in crate::kernel) fn noting(self, interrupted: &mut bool) -> T {
        match self {
            Self::Complete(value) => value,
            Self::Interrupted(value) => {
                *interrupted = true;
                value
            }
        }
    }

    /// The value, for a list of what changes all the time: no reader takes it for more.
    pub(in crate::kernel) fn passing(self) -> T {
        match self {
            Self::Complete(value) | Self::Interrupted(value) => value,
        }
    }
}

/// Reads again, `attempts` times at most, until what is read belongs together.
pub(in crate::kernel) fn settle<T, E>(
    attempts: u32,
    mut read: impl FnMut() -> Result<Dumped<T>, E>,
) -> Result<Dumped<T>, E> {
    for _ in 1..attempts {
        if let complete @ Dumped::Complete(_) = read()? {
            return Ok(complete);
        }
    }
    read()
}

/// Whether the kernel says that it has no such kind of object, or no such family.
pub(in crate::kernel) fn has_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_until_it_belongs_together() {
        let mut reads = 0;
        let mut read = |complete_at: u32| {
            reads += 1;
            Ok::<_, ()>(Dumped::new(reads, reads < complete_at))
        };
        assert_eq!(settle(4, || read(3)), Ok(Dumped::Complete(3)));
        assert_eq!(settle(2, || read(9)), Ok(Dumped::Interrupted(5)));
    }

    #[test]
    fn an_interruption_stays_noted() {
        let mut interrupted = false;
        assert_eq!(Dumped::Complete(1).noting(&mut interrupted), 1);
        assert!(!interrupted);
        assert_eq!(Dumped::Interrupted(2).noting(&mut interrupted), 2);
        assert_eq!(Dumped::Complete(3).noting(&mut interrupted), 3);
        assert!(interrupted);
    }
}
