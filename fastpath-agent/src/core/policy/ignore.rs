//! Rules that flows may bypass by the operator's choice (`--ignore-rule`). Pure text in, yes or no out.

use super::{
    concern::{Class, Concern},
    traits::{CHANGING, EVERY_PACKET, PASSIVE},
};

use crate::core::printable::means;

/// Which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignore {
    /// All of them.
    All,
    /// Those of a class, or that ask what this word says.
    Word(String),
    /// Those of a chain.
    Chain {
        /// "inet", "ip" or "ip6".
        family: String,
        /// Its table.
        table: String,
        /// Its name.
        chain: String,
    },
    /// One, by its handle, which is unique in its table.
    Handle {
        /// "inet", "ip" or "ip6".
        family: String,
        /// Its table.
        table: String,
        /// The handle.
        handle: u64,
    },
    /// Those with this comment.
    Comment(String),
}

impl Ignore {
    /// Reads a value of the flag. Whatever isn't one of the other forms is a comment.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let words: Vec<&str> = text.split_whitespace().collect();
        let owned = |word: &str| word.to_owned();
        match words.as_slice() {
            ["all"] => Self::All,
            [word] if is_word(word) => Self::Word(owned(word)),
            [family @ ("inet" | "ip" | "ip6"), table, .., "handle", number]
                if number.parse::<u64>().is_ok() =>
            {
                Self::Handle {
                    family: owned(family),
                    table: owned(table),
                    handle: number.parse().unwrap_or_default(),
                }
            }
            [family @ ("inet" | "ip" | "ip6"), table, chain] => {
                Self::Chain { family: owned(family), table: owned(table), chain: owned(chain) }
            }
            _ => Self::Comment(text.to_owned()),
        }
    }

    /// Whether that rule is meant.
    pub fn is(&self, rule: &Concern) -> bool {
        match self {
            Self::All => true,
            Self::Word(word) => rule.cause.word == word || rule.class.name() == word,
            Self::Chain { family, table, chain } => {
                rule.family == family && means(table, &rule.table) && means(chain, &rule.chain)
            }
            Self::Handle { family, table, handle } => {
                (rule.family, rule.handle) == (family.as_str(), *handle) && means(table, &rule.table)
            }
            Self::Comment(comment) => rule.comment.as_deref().is_some_and(|shown| means(comment, shown)),
        }
    }
}

fn is_word(word: &str) -> bool {
    EVERY_PACKET.iter().chain(&CHANGING).chain(&PASSIVE).chain(&Class::NAMES).any(|known| *known == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::{moments::When, traits::Cause};

    #[test]
    fn a_rule_is_meant_by_comment_chain_handle_or_class() {
        let rule = Concern {
            family: "inet",
            table: "edge".to_owned(),
            chain: "forward".to_owned(),
            handle: 7,
            comment: Some("shape guests".to_owned()),
            class: Class::EveryPacket,
            cause: Cause { word: "limit", detail: "".into() },
            when: When::default(),
            ways: Vec::new(),
            ignored: false,
        };
        for (text, expected) in [
            ("all", true),
            ("limit", true),
            ("every-packet", true),
            ("queue", false),
            ("changing", false),
            ("shape guests", true),
            ("shape", false),
            ("inet edge forward", true),
            ("ip edge forward", false),
            ("inet edge handle 7", true),
            ("inet edge forward handle 7", true),
            ("inet edge handle 8", false),
        ] {
            assert_eq!(Ignore::parse(text).is(&rule), expected, "{text}");
        }
    }
}
