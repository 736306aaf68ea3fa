//! Fastpath's agent: moves established flows to the kernel's flowtable and shows which are there.
//!
//! Layers (dependencies point downwards only; `cargo xtask lint` checks it):
//! `main` → [`commands`] → [`daemon`] → [`kernel`] → [`core`]; [`cli`], [`config`] and [`invocation`] know only [`core`].
//! [`logging`] says where `main`'s log goes.

pub mod cli;
pub mod commands;
pub mod config;
pub mod core;
pub mod daemon;
pub mod invocation;
pub mod kernel;
pub mod logging;
pub mod pages;
