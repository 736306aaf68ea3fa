//! Names in a message, borrowed from it, but for those that had to be made printable.

use std::{borrow::Cow, cell::OnceCell};

use crate::kernel::netlink::Attribute;

/// Names that had to be made printable, as long as the message is in use. Nearly always none.
#[derive(Default)]
pub(super) struct Names(OnceCell<Box<(String, Names)>>);

impl Names {
    /// The attribute's value as a name.
    pub(super) fn of<'a>(&'a self, nla: &Attribute<'a>) -> &'a str {
        let name = match nla.text() {
            Cow::Borrowed(name) => return name,
            Cow::Owned(name) => name,
        };
        let mut end = self;
        while let Some(kept) = end.0.get() {
            end = &kept.1;
        }
        &end.0.get_or_init(|| Box::new((name, Self::default()))).0
    }
}
