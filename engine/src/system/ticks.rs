//! Ticks: a coarse clock for time-outs. Reading it costs a load, not a call.
//!
//! How it works      The engine's [watch](crate::engine::watch) advances it every [`TICK`]. Missed ticks are not made
//!                   up for, so no time passes while the machine is suspended or the process is stopped. An operation
//!                   that began in one tick and is examined in another has lasted at least the ticks between the two,
//!                   so it has timed out when more than the time-out's ticks lie between them.
//! Owner and locks   none.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a tick is.
pub const TICK: Duration = Duration::from_millis(250);
/// After this time without an end of a call a device does not answer, unless the time-out is shorter than twice this.
const SILENT: Duration = Duration::from_secs(5);
/// The default time-out.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// A tick's number.
pub type Tick = u32;

/// See the module's head.
#[derive(Debug)]
pub struct Ticks {
    now: AtomicU32,
    /// Ticks after which a request is given up; 0: never.
    timeout: AtomicU32,
}

impl Default for Ticks {
    fn default() -> Ticks {
        let ticks = Ticks { now: AtomicU32::new(1), timeout: AtomicU32::new(0) };
        ticks.set_timeout(TIMEOUT_DEFAULT);
        ticks
    }
}

fn ticks_in(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX / 2)
}

impl Ticks {
    /// The current one.
    pub fn now(&self) -> Tick {
        self.now.load(Ordering::Relaxed)
    }

    /// Advances it by one.
    pub fn advance(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets how long a request may last from now on; zero: without limit.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout.store(ticks_in(timeout), Ordering::Relaxed);
    }

    /// How long a request may last; `None`: without limit.
    pub fn timeout(&self) -> Option<Duration> {
        let timeout = self.timeout.load(Ordering::Relaxed);
        (timeout > 0).then(|| TICK * timeout)
    }

    /// How long an operation that began in this tick has lasted, at least.
    pub fn lasted(&self, since: Tick) -> Duration {
        TICK * self.now().wrapping_sub(since).saturating_sub(1)
    }

    /// Whether an operation that began in this tick has lasted longer than a request may.
    pub fn is_over(&self, since: Tick) -> bool {
        let timeout = self.timeout.load(Ordering::Relaxed);
        timeout > 0 && self.now().wrapping_sub(since) > timeout
    }

    /// Whether a device does not answer whose sync began in this tick: true after half of what a request may wait,
    /// because a sync writes back all that the page cache holds, which takes a slow disk long.
    pub fn is_silent_sync(&self, since: Tick) -> bool {
        self.now().wrapping_sub(since) > self.half_timeout()
    }

    /// Whether a device does not answer whose other call began in this tick.
    pub fn is_silent(&self, since: Tick) -> bool {
        self.now().wrapping_sub(since) > self.half_timeout().min(ticks_in(SILENT))
    }

    /// Half of what a request may last, or of the default where there is no limit; ticks.
    fn half_timeout(&self) -> u32 {
        let timeout = self.timeout.load(Ordering::Relaxed);
        let timeout = if timeout == 0 { ticks_in(TIMEOUT_DEFAULT) } else { timeout };
        (timeout / 2).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_may_take_longer_than_a_write() {
        let ticks = Ticks::default();
        let since = ticks.now();
        (0..=ticks_in(SILENT)).for_each(|_| ticks.advance());
        assert!(ticks.is_silent(since) && !ticks.is_silent_sync(since));
        (0..ticks_in(TIMEOUT_DEFAULT / 2)).for_each(|_| ticks.advance());
        assert!(ticks.is_silent_sync(since) && !ticks.is_over(since));
    }

    #[test]
    fn an_operation_times_out_after_the_time_out_and_not_at_it() {
        let ticks = Ticks::default();
        ticks.set_timeout(Duration::from_secs(2));
        let since = ticks.now();
        (0..8).for_each(|_| ticks.advance());
        assert!(!ticks.is_over(since) && ticks.is_silent(since));
        ticks.advance();
        assert!(ticks.is_over(since));
        assert_eq!(ticks.lasted(since), Duration::from_secs(2));
        ticks.set_timeout(Duration::ZERO);
        assert!(!ticks.is_over(since) && !ticks.is_silent(since));
        (0..20).for_each(|_| ticks.advance());
        assert!(!ticks.is_over(since) && ticks.is_silent(since));
    }
}
