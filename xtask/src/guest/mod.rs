//! The test guest: kernels, its initramfs, QEMU, and what comes back from it.

pub(crate) mod initramfs;
pub(crate) mod kernels;
pub(crate) mod qemu;
pub(crate) mod verdict;
