//! Names for the page: asked for when a list of flows is, and kept for some seconds.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use crate::{
    core::names::{Names, NamesFrom},
    kernel::names,
};

/// A pod that came since may lack its name for so long.
const FRESH: Duration = Duration::from_secs(10);

/// Who has which address.
pub(super) struct Runtimes {
    from: NamesFrom,
    last: Mutex<Option<Known>>,
}

/// What the runtimes have told.
#[derive(Clone)]
pub(super) struct Known {
    at: Instant,
    pub(super) names: Arc<Names>,
    /// Which of them couldn't be asked, and why.
    pub(super) errors: Arc<[String]>,
}

#[cfg(test)]
impl Known {
    /// That an address has a name.
    pub(super) fn of(address: &str, name: &str) -> Self {
        let mut names = Names::default();
        names.add(address.parse().expect("an address"), name);
        Self { at: Instant::now(), names: Arc::new(names), errors: Arc::default() }
    }
}

impl Runtimes {
    pub(super) fn new(from: NamesFrom) -> Self {
        Self { from, last: Mutex::default() }
    }

    /// The names, but for the addresses of the node itself.
    pub(super) async fn names(&self, node: &BTreeSet<IpAddr>) -> Known {
        let mut last = self.last.lock().await;
        if let Some(known) = last.as_ref().filter(|known| known.at.elapsed() < FRESH) {
            return known.clone();
        }
        let (names, errors) = names::read(self.from).await;
        let errors = errors.iter().map(ToString::to_string).collect();
        last.insert(Known { at: Instant::now(), names: Arc::new(names.without(node)), errors }).clone()
    }
}
