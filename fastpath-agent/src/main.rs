//! Entry point of the agent.

fn main() {}
