//! What goes wrong around the agent, and the agent itself killed: offloaded flows go on, and what it holds doesn't grow.

mod log_reader;
mod metrics_clients;
