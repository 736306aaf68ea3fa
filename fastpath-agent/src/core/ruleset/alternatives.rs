//! Several conditions of which a packet must meet one. A small number of them: nothing here may grow with the rules of a node.

use std::fmt;

use super::conditions::Conditions;

/// Conditions of which packets must meet one or the other; none at all: no packet comes along. Few: where there are more, only
/// what all of them have in common is kept, and more packets meet that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    list: Vec<Conditions>,
    /// There were too many.
    common_only: bool,
}

/// So many are told apart.
pub const MOST: usize = 8;

impl Alternatives {
    /// Every packet meets them.
    pub fn everything() -> Self {
        Self { list: vec![Conditions::default()], common_only: false }
    }

    /// Adds one, unless packets that meet it meet another one anyway.
    pub fn add(&mut self, conditions: Conditions) {
        let includes = |more: &Conditions, fewer: &Conditions| fewer.groups().all(|group| more.has(group));
        if self.list.iter().any(|known| includes(&conditions, known)) {
            return;
        }
        self.list.retain(|known| !includes(known, &conditions));
        self.list.push(conditions);
        if self.common_only || self.list.len() > MOST {
            let common = |one: Conditions, other: Conditions| one.common(&other);
            self.list = self.list.drain(..).reduce(common).into_iter().collect();
            self.common_only = true;
        }
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Conditions> {
        self.list.iter()
    }
}

impl FromIterator<Conditions> for Alternatives {
    fn from_iter<T: IntoIterator<Item = Conditions>>(list: T) -> Self {
        let mut alternatives = Self::default();
        list.into_iter().for_each(|conditions| alternatives.add(conditions));
        alternatives
    }
}

impl fmt::Display for Alternatives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.list.iter().map(Conditions::to_string).collect();
        f.write_str(&list.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ruleset::expr::{CmpOp, Expr, MetaKey, PayloadBase};

    fn group(load: Expr, data: &[u8]) -> Vec<Expr> {
        vec![load, Expr::Cmp { sreg: 1, op: CmpOp::Eq, data: data.to_vec() }]
    }

    fn input(index: u8) -> Vec<Expr> {
        group(Expr::Meta { key: MetaKey::InIfIndex, dreg: 1 }, &[index, 0, 0, 0])
    }

    fn family(family: u8) -> Vec<Expr> {
        group(Expr::Meta { key: MetaKey::NfProto, dreg: 1 }, &[family])
    }

    fn address(last: u8) -> Vec<Expr> {
        let load = Expr::Payload { base: PayloadBase::Network, offset: 12, len: 4, dreg: 1 };
        group(load, &[10, 0, 0, last])
    }

    fn text(list: &[Vec<Vec<Expr>>]) -> String {
        list.iter().map(|groups| Conditions(groups.concat())).collect::<Alternatives>().to_string()
    }

    #[test]
    fn what_others_include_is_left_out() {
        assert_eq!(text(&[]), "");
        assert_eq!(text(&[vec![input(1)], vec![input(2), family(2)]]), "iif 1 or iif 2 meta nfproto ipv4");
        assert_eq!(text(&[vec![input(1)], vec![family(2), input(1)]]), "iif 1");
        assert_eq!(text(&[vec![family(2), input(1)], vec![input(1)]]), "iif 1");
        assert_eq!(text(&[vec![input(1)], vec![]]), "");
    }

    #[test]
    fn of_too_many_there_is_left_what_all_have_in_common() {
        let of = |last: u8| vec![family(2), input(1), address(last)];
        let few: Vec<_> = (1..=MOST as u8).map(of).collect();
        assert_eq!(text(&few).matches(" or ").count(), MOST - 1);
        let many: Vec<_> = (0..=MOST as u8).map(of).collect();
        assert_eq!(text(&many), "meta nfproto ipv4 iif 1");
        let more = [many, vec![vec![input(1)]]].concat();
        assert_eq!(text(&more), "iif 1");
        let other = [more, vec![vec![input(2)]]].concat();
        assert_eq!(text(&other), "", "every packet may come along");
    }

    #[test]
    fn addresses_are_nothing_in_common_without_their_family() {
        let many = (0..=MOST as u8).map(|at| vec![family(at), address(1), input(1)]).collect::<Vec<_>>();
        assert_eq!(text(&many), "iif 1");
    }
}
