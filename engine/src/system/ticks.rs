//! Ticks: a coarse clock for time-outs. Reading it costs two loads, not a call.
//!
//! How it works      The engine's [watch](crate::engine::watch) advances it every [`TICK`]. Missed ticks are not made
//!                   up for, so no time passes while the machine is suspended or the process is stopped. An operation
//!                   that began in one tick and is examined in another has lasted at least the ticks between the two,
//!                   so it has timed out when more than the time-out's ticks lie between them.
//! Invariants        TI1 it advances while somebody reads it: who reads it after it was stopped starts it again. It is
//!                   stopped only when nothing is in flight and nobody has read it for [`IDLE_TICKS`], so that an idle
//!                   engine never wakes. One atomic says who is next, so either the reader sees `STOPPED` and starts
//!                   it, or the watch sees `READ` and does not stop.
//! Owner and locks   `ended`, held for a look; no thread waits while it has another lock.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// How long a tick is.
pub const TICK: Duration = Duration::from_millis(250);
/// After this time without an end of a call a device does not answer, unless the time-out is shorter than twice this.
const SILENT: Duration = Duration::from_secs(5);
/// The default time-out.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// It is stopped after so many ticks in which nobody has read it.
const IDLE_TICKS: u32 = 4;

/// Nobody has read it since the last tick.
const UNREAD: u8 = 0;
/// Somebody has.
const READ: u8 = 1;
/// It does not advance.
const STOPPED: u8 = 2;

/// A tick's number.
pub type Tick = u32;

/// See the module's head.
#[derive(Debug)]
pub struct Ticks {
    now: AtomicU32,
    /// Ticks after which a request is given up; 0: never.
    timeout: AtomicU32,
    /// `UNREAD`, `READ` or `STOPPED`.
    reads: AtomicU8,
    /// Ticks since it was read last.
    unread: AtomicU32,
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Default for Ticks {
    fn default() -> Ticks {
        let ticks = Ticks {
            now: AtomicU32::new(1),
            timeout: AtomicU32::new(0),
            reads: AtomicU8::new(READ),
            unread: AtomicU32::new(0),
            ended: Mutex::default(),
            changed: Condvar::default(),
        };
        ticks.set_timeout(TIMEOUT_DEFAULT);
        ticks
    }
}

fn ticks_in(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX / 2)
}

impl Ticks {
    /// The current one. If the clock is stopped, it starts (TI1).
    pub fn now(&self) -> Tick {
        if self.reads.load(Ordering::Relaxed) != READ {
            self.note_read();
        }
        self.now.load(Ordering::Relaxed)
    }

    #[cold]
    fn note_read(&self) {
        if self.reads.swap(READ, Ordering::AcqRel) == STOPPED {
            drop(self.ended.lock().expect("no holder panics")); // the watch waits, or has not looked yet
            self.changed.notify_all();
        }
    }

    /// The current one, for the watch: the clock is not kept going by it.
    pub fn look(&self) -> Tick {
        self.now.load(Ordering::Relaxed)
    }

    /// Advances it by one.
    pub fn advance(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for the next tick; returns `false` at the end. `busy`: something is in flight. The watch alone calls it.
    pub fn wait(&self, busy: bool) -> bool {
        let read = self.reads.compare_exchange(READ, UNREAD, Ordering::AcqRel, Ordering::Relaxed);
        if busy || read.is_ok() {
            self.unread.store(0, Ordering::Relaxed);
        } else if self.unread.fetch_add(1, Ordering::Relaxed) >= IDLE_TICKS {
            self.stop();
        }
        let ended = self.ended.lock().expect("no holder panics");
        let waited = self.changed.wait_timeout_while(ended, TICK, |ended| !*ended);
        !*waited.expect("no holder panics").0
    }

    /// Waits until somebody reads the clock, or the end.
    fn stop(&self) {
        let stops =
            self.reads.compare_exchange(UNREAD, STOPPED, Ordering::AcqRel, Ordering::Relaxed);
        if stops.is_ok() {
            let stopped =
                |ended: &mut bool| !*ended && self.reads.load(Ordering::Acquire) == STOPPED;
            let ended = self.ended.lock().expect("no holder panics");
            drop(self.changed.wait_while(ended, stopped));
        }
    }

    /// Ends the watch's wait.
    pub fn end(&self) {
        *self.ended.lock().expect("no holder panics") = true;
        self.changed.notify_all();
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

    /// Whether the clock advances within three ticks.
    fn advances(ticks: &Ticks) -> bool {
        let before = ticks.look();
        let deadline = std::time::Instant::now() + TICK * 3;
        while ticks.look() == before && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        ticks.look() != before
    }

    #[test]
    fn it_stops_when_nobody_reads_it_and_starts_when_somebody_does() {
        let ticks = std::sync::Arc::new(Ticks::default());
        let busy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (theirs, is_busy) = (std::sync::Arc::clone(&ticks), std::sync::Arc::clone(&busy));
        let watch = std::thread::spawn(move || {
            while theirs.wait(is_busy.load(Ordering::Relaxed)) {
                theirs.advance();
            }
        });
        std::thread::sleep(TICK * (IDLE_TICKS + 4));
        assert!(advances(&ticks), "something is in flight");
        busy.store(false, Ordering::Relaxed);
        for _ in 0..2 {
            std::thread::sleep(TICK * (IDLE_TICKS + 4));
            assert!(!advances(&ticks), "it is idle");
            assert_eq!(ticks.now(), ticks.look());
            assert!(advances(&ticks), "it was read");
        }
        ticks.end();
        watch.join().expect("it ends");
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
