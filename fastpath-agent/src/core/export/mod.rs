//! Flow records for collectors: which are due ([`accounts`]), what survives an agent's restart ([`journal`]), and how they are written
//! ([`ipfix`]), and where to ([`target`]). Reads nothing, sends nothing and knows no clock.

pub mod accounts;
pub mod ipfix;
pub mod journal;
pub mod target;
