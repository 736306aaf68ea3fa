//! Wakes the agent when the wall clock reaches a moment, and when the clock is set.
#![expect(
    unsafe_code,
    reason = "the kernel's time zone has no safe wrapper, and tokio cannot know that a descriptor stays open"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::clock::now_ns;
use crate::core::policy::moments::WallClock;

/// As far ahead as a moment may be: a year.
const FAR_NS: u64 = 365 * 86_400 * 1_000_000_000;

/// A timer on the wall clock.
pub struct Alarm(AsyncFd<Timer>);

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(ClockId::CLOCK_REALTIME, flags)?);
        // SAFETY: the timer owns its descriptor and keeps it open until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?))
    }

    /// Sets it to the moment that `next` names, in ns since 1970. Without one it only tells of a clock that is set.
    pub fn set(&self, next: impl Fn(WallClock) -> Option<u64>) -> io::Result<()> {
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        loop {
            let now = wall_clock()?;
            let latest = now.now_ns.saturating_add(FAR_NS);
            let at = next(now).map_or(latest, |at| at.min(latest));
            let expiration = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(at)));
            match self.0.get_ref().0.set(expiration, flags) {
                // The clock was set meanwhile (`timerfd_setup`, fs/timerfd.c).
                Err(Errno::ECANCELED) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Waits for the moment, or until the clock is set. Safe to cancel.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            // That the clock was set isn't an error here.
            let rang = ready.try_io(|timer| Ok(timer.get_ref().0.wait()?));
            if let Ok(result) = rang {
                return result;
            }
        }
    }
}

/// What the kernel's clock shows.
fn wall_clock() -> io::Result<WallClock> {
    /// struct timezone, which libc has as an opaque type.
    #[repr(C)]
    #[derive(Default)]
    struct Zone {
        minutes_west: i32,
        daylight_saving: i32,
    }
    let mut zone = Zone::default();
    // SAFETY: the kernel writes a struct timezone, of which it is told the place, and no time. The C library's own function says
    // that the zone is 0.
    let result = unsafe {
        libc::syscall(libc::SYS_gettimeofday, std::ptr::null_mut::<libc::timeval>(), &raw mut zone)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(WallClock { now_ns: now_ns(nix::time::ClockId::CLOCK_REALTIME), minutes_west: zone.minutes_west })
}
