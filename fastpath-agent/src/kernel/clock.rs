//! The clocks that the programs and the kernel's rules go by.

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_getres, clock_gettime},
};

/// Resolution of the times of flows, in ns: the kernel's tick.
pub fn tick_ns() -> u64 {
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, in_ns)
}

/// `CLOCK_MONOTONIC` in ns, the clock of the programs.
pub fn monotonic_ns() -> u64 {
    now_ns(ClockId::CLOCK_MONOTONIC)
}

/// A clock, in ns since its beginning.
pub(super) fn now_ns(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, in_ns)
}

fn in_ns(time: TimeSpec) -> u64 {
    time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
}
