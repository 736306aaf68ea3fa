//! The pure half: configuration and observed state in, plan out. No I/O, no clock, no async.

pub mod best;
pub mod connection;
pub mod crossing;
pub mod desired;
pub mod diff;
pub mod doctor;
pub mod empty;
pub mod expr;
pub mod flow;
pub mod flow_filter;
pub mod flow_path;
pub mod flow_record;
pub mod flow_search;
pub mod known_bugs;
pub mod link_table;
pub mod model;
pub mod observed;
pub mod pace;
pub mod plan;
pub mod rates;
pub mod revalidate;
pub mod rule;
pub mod select;
pub mod sets;
pub mod watch;
pub mod why;
