//! Silence: what is known of a device that does not answer: since when, and what the kernel still has of it that was given up.
//!
//! How it works      Shares report at each tick what they wait for for too long; the engine's watch looks at syncs, and
//!                   notices when nobody reports any more: then the device answers again. While it is silent nothing that might
//!                   wait for it is tried on a processor: not even a look into the page cache, which would begin a
//!                   read where the disk's queue is full.
//! Invariants        SI1 `stuck` counts calls that change the device, that the kernel has, and whose request was given up. While
//!                      there is one, no sync succeeds, and nothing new is placed on the device.
//! Owner and locks   one lock over what was reported, for a look or a change.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::system::ticks::{Tick, Ticks};

/// After so many ticks without a report the device answers.
const QUIET_TICKS: u32 = 3;

#[derive(Debug, Default)]
struct Reported {
    /// When the oldest of what did not end began, and when that was reported last.
    silent: Option<(Tick, Tick)>,
    /// The sync in flight, and when it was seen first.
    sync: Option<(u64, Tick)>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Silence {
    reported: Mutex<Reported>,
    silent: AtomicBool,
    stuck: AtomicU64,
    /// Reads that rings have.
    in_rings: AtomicU32,
    /// When somebody began to look how the device is; 0: nobody does.
    looking: AtomicU32,
}

/// What has changed at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// It does not answer.
    Silent,
    /// It answers again.
    Answering,
}

impl Silence {
    /// Whether it does not answer.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Whether what waits for it may never end: it does not answer, or the kernel has a call that was given up.
    pub fn hangs(&self) -> bool {
        self.is_silent() || self.stuck() > 0
    }

    /// When the oldest of what did not end began, if it does not answer.
    pub fn since(&self) -> Option<Tick> {
        let reported = self.reported.lock().expect("no holder panics");
        reported.silent.filter(|_| self.is_silent()).map(|(since, _)| since)
    }

    /// Something has not ended that began at `since`, and that is long ago.
    pub fn report(&self, since: Tick, now: Tick) {
        let mut reported = self.reported.lock().expect("no holder panics");
        let first = reported.silent.map_or(since, |(first, _)| {
            if now.wrapping_sub(first) > now.wrapping_sub(since) { first } else { since }
        });
        reported.silent = Some((first, now));
    }

    /// Looks at it, once each tick: `sync` is the number of the sync in flight, if one is.
    pub fn look(&self, ticks: &Ticks, sync: Option<u64>) -> Option<Turned> {
        let now = ticks.now();
        let mut reported = self.reported.lock().expect("no holder panics");
        let same = reported.sync.filter(|(number, _)| sync == Some(*number));
        reported.sync = same.or(sync.map(|number| (number, now)));
        let overdue = reported.sync.filter(|(_, since)| ticks.is_silent_sync(*since));
        drop(reported);
        let looking = self.looking.load(Ordering::Relaxed);
        let look = (looking != 0 && ticks.is_silent(looking)).then_some(looking);
        for since in overdue.map(|(_, since)| since).into_iter().chain(look) {
            self.report(since, now);
        }
        let mut reported = self.reported.lock().expect("no holder panics");
        let quiet = |(_, seen): &(Tick, Tick)| now.wrapping_sub(*seen) > QUIET_TICKS;
        reported.silent = reported.silent.filter(|silent| !quiet(silent));
        let silent = reported.silent.is_some();
        let before = self.silent.swap(silent, Ordering::Relaxed);
        (before != silent).then_some(if silent { Turned::Silent } else { Turned::Answering })
    }

    /// Somebody is about to look how the device is, unless somebody does.
    pub fn begin_look(&self, now: Tick) -> bool {
        let free = || self.looking.compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
        !self.is_silent() && free().is_ok()
    }

    /// It was looked at.
    pub fn end_look(&self) {
        self.looking.store(0, Ordering::Release);
    }

    /// A call that changes the device was given up, and the kernel has it (SI1).
    pub fn begin_stuck(&self) {
        self.stuck.fetch_add(1, Ordering::AcqRel);
    }

    /// It has ended.
    pub fn end_stuck(&self) {
        self.stuck.fetch_sub(1, Ordering::AcqRel);
    }

    /// Calls that were given up, and that the kernel has (SI1).
    pub fn stuck(&self) -> u64 {
        self.stuck.load(Ordering::Acquire)
    }

    /// Whether a ring may have one more read, which is counted then: at most `most` at a time.
    pub fn enter_ring(&self, most: u32) -> bool {
        if self.is_silent() {
            return false;
        }
        let entered = self.in_rings.fetch_add(1, Ordering::Relaxed) < most;
        if !entered {
            self.leave_ring();
        }
        entered
    }

    /// A ring has one read less.
    pub fn leave_ring(&self) {
        self.in_rings.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_silent_while_somebody_reports_and_answers_when_nobody_does() {
        let (ticks, silence) = (Ticks::default(), Silence::default());
        let began = ticks.now();
        (0..40).for_each(|_| ticks.advance());
        silence.report(began, ticks.now());
        assert_eq!(silence.look(&ticks, None), Some(Turned::Silent));
        assert_eq!(silence.since(), Some(began));
        ticks.advance();
        assert_eq!(silence.look(&ticks, None), None);
        assert!(!silence.enter_ring(9));
        (0..QUIET_TICKS).for_each(|_| ticks.advance());
        assert_eq!(silence.look(&ticks, None), Some(Turned::Answering));
        assert!(silence.since().is_none() && silence.enter_ring(9));
    }

    #[test]
    fn a_sync_that_does_not_end_is_silence_and_many_short_ones_are_not() {
        let (ticks, silence) = (Ticks::default(), Silence::default());
        for number in 0..100 {
            assert_eq!(silence.look(&ticks, Some(number)), None);
            ticks.advance();
        }
        let turned = (0..200).map(|_| {
            ticks.advance();
            silence.look(&ticks, Some(100))
        });
        assert_eq!(turned.flatten().collect::<Vec<_>>(), [Turned::Silent]);
    }
}
