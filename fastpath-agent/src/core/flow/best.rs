//! The first of many by some order, without holding the others.

use std::cmp::Ordering;

/// Takes items one by one and keeps the first `limit` of them.
pub struct Best<T, C> {
    kept: Vec<T>,
    limit: usize,
    compare: C,
}

impl<T, C: Fn(&T, &T) -> Ordering> Best<T, C> {
    /// Keeps `limit` items, those that come first by `compare`.
    pub fn new(limit: usize, compare: C) -> Self {
        Self { kept: Vec::new(), limit, compare }
    }

    /// The next item. Never are more than twice the limit held, so that each costs a few comparisons only.
    pub fn push(&mut self, item: T) {
        self.kept.push(item);
        if self.kept.len() >= self.limit.saturating_mul(2).max(1) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.limit < self.kept.len() {
            self.kept.select_nth_unstable_by(self.limit, &self.compare);
            self.kept.truncate(self.limit);
        }
    }

    /// What was kept, in order.
    pub fn into_sorted(mut self) -> Vec<T> {
        self.cut();
        self.kept.sort_by(&self.compare);
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_beginning_of_all_sorted(items in prop::collection::vec(0..50u32, 0..100), limit in 0..20usize) {
            let mut best = Best::new(limit, |a: &(u32, usize), b: &(u32, usize)| a.cmp(b));
            let mut all: Vec<_> = items.into_iter().zip(0..).collect();
            for item in &all {
                best.push(*item);
                prop_assert!(best.kept.len() <= 2 * limit);
            }
            all.sort_unstable();
            all.truncate(limit);
            prop_assert_eq!(best.into_sorted(), all);
        }
    }
}
