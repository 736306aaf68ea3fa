//! All tests on real kernels, one binary.
