//! Findings for facts.
