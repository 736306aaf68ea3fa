//! Harness of the tests that need a real kernel: network namespaces, topologies, traffic.
