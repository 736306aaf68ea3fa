//! The node's links: which there are, which are managed, and which are watched.

pub mod kind;
pub mod select;
pub mod table;
pub mod watch;
