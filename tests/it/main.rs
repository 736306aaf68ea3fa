//! All tests on real kernels, one binary, a file for each behaviour.
//!
//! Tests below `host::` need no flowtable and also run on the developer's kernel; all others run in the test guest.
//! Every test is run by itself, as root: `it --exact NAME --nocapture --test-threads=1`.

mod assist;
mod container;
mod crossings;
mod docs;
mod doctor;
mod dscp;
mod ebpf;
mod errors;
mod exclude;
mod export;
mod fate;
mod faults;
mod flow_path;
mod flows;
mod foreign;
mod here;
mod host;
mod interfaces;
mod metrics;
mod mode;
mod mtu;
mod names;
mod offload_chain;
mod overrun;
mod page;
mod peer;
mod policy;
mod policy_empty;
mod policy_paths;
mod policy_revoke;
mod reference;
mod repair;
mod report;
mod restart;
mod ruleset;
mod scale;
mod service_manager;
mod soak;
mod stalled;
mod streams;
mod surroundings;
mod threshold;
mod top;
mod topologies;
mod traffic;
mod twin;
mod why;
mod why_evidence;
mod why_path;
mod why_truth;
