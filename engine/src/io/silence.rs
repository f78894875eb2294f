//! Silence: whether a device does not answer, since when, and how many given-up calls the kernel still has.
//!
//! How it works      Shares report at each tick the calls that they have waited for too long; the engine's watch checks
//!                   syncs, and notices when no reports arrive any more: then the device answers again. While a device
//!                   is silent, no processor makes a call that might wait for it: not even a read from the page cache,
//!                   which would start a read of the disk and wait if the disk's queue is full.
//! Invariants        SI1 `stuck` counts calls that change the device, that the kernel still has, and whose request was
//!                   given up. While there is one, no sync succeeds, and nothing new is placed on the device.
//! Owner and locks   one lock over what was reported, held for a read or a change.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::system::ticks::{Tick, Ticks};

/// After so many ticks without a report the device answers.
const QUIET_TICKS: u32 = 3;

#[derive(Debug, Default)]
struct Reported {
    /// When the oldest unfinished call began, and when it was last reported.
    silent: Option<(Tick, Tick)>,
    /// The sync in flight, and when it was first seen.
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
    /// When the probe in flight began; 0: none.
    probing: AtomicU32,
}

/// A change at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilenceChange {
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

    /// Whether calls on it may never end: it does not answer, or the kernel has a call that was given up.
    pub fn hangs(&self) -> bool {
        self.is_silent() || self.stuck() > 0
    }

    /// When the oldest unfinished call began, if it does not answer.
    pub fn since(&self) -> Option<Tick> {
        let reported = self.reported.lock().expect("no holder panics");
        reported.silent.filter(|_| self.is_silent()).map(|(since, _)| since)
    }

    /// Reports that a call that began at `since` has not ended for too long.
    pub fn report(&self, since: Tick, now: Tick) {
        let mut reported = self.reported.lock().expect("no holder panics");
        let first = reported.silent.map_or(since, |(first, _)| {
            if now.wrapping_sub(first) > now.wrapping_sub(since) { first } else { since }
        });
        reported.silent = Some((first, now));
    }

    /// Checks it, once each tick: `sync` is the number of the sync in flight, if there is one.
    pub fn check(&self, ticks: &Ticks, sync: Option<u64>) -> Option<SilenceChange> {
        let now = ticks.look();
        let mut reported = self.reported.lock().expect("no holder panics");
        let same = reported.sync.filter(|(number, _)| sync == Some(*number));
        reported.sync = same.or(sync.map(|number| (number, now)));
        let overdue = reported.sync.filter(|(_, since)| ticks.is_silent_sync(*since));
        drop(reported);
        let probing = self.probing.load(Ordering::Relaxed);
        let probe = (probing != 0 && ticks.is_silent(probing)).then_some(probing);
        for since in overdue.map(|(_, since)| since).into_iter().chain(probe) {
            self.report(since, now);
        }
        let mut reported = self.reported.lock().expect("no holder panics");
        let quiet = |(_, seen): &(Tick, Tick)| now.wrapping_sub(*seen) > QUIET_TICKS;
        reported.silent = reported.silent.filter(|silent| !quiet(silent));
        let silent = reported.silent.is_some();
        let before = self.silent.swap(silent, Ordering::Relaxed);
        (before != silent).then_some(if silent {
            SilenceChange::Silent
        } else {
            SilenceChange::Answering
        })
    }

    /// Whether a tick has something to check.
    pub fn is_watched(&self) -> bool {
        self.hangs()
            || self.probing.load(Ordering::Relaxed) != 0
            || self.reported.lock().expect("no holder panics").silent.is_some()
    }

    /// Notes that a probe of the device begins; `false` if one is in flight.
    pub fn begin_probe(&self, now: Tick) -> bool {
        let free = || self.probing.compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
        !self.is_silent() && free().is_ok()
    }

    /// Notes that the probe has ended.
    pub fn end_probe(&self) {
        self.probing.store(0, Ordering::Release);
    }

    /// Counts a call that changes the device, was given up, and is still in the kernel (SI1).
    pub fn begin_stuck(&self) {
        self.stuck.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that such a call has ended.
    pub fn end_stuck(&self) {
        self.stuck.fetch_sub(1, Ordering::AcqRel);
    }

    /// Calls that were given up and that the kernel still has (SI1).
    pub fn stuck(&self) -> u64 {
        self.stuck.load(Ordering::Acquire)
    }

    /// Counts one more read in a ring, if there are fewer than `most`; returns whether it did.
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

    /// Counts one read less in a ring.
    pub fn leave_ring(&self) {
        self.in_rings.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_silent_while_there_are_reports_and_answers_when_there_are_none() {
        let (ticks, silence) = (Ticks::default(), Silence::default());
        let began = ticks.now();
        (0..40).for_each(|_| ticks.advance());
        silence.report(began, ticks.now());
        assert_eq!(silence.check(&ticks, None), Some(SilenceChange::Silent));
        assert_eq!(silence.since(), Some(began));
        ticks.advance();
        assert_eq!(silence.check(&ticks, None), None);
        assert!(!silence.enter_ring(9));
        (0..QUIET_TICKS).for_each(|_| ticks.advance());
        assert_eq!(silence.check(&ticks, None), Some(SilenceChange::Answering));
        assert!(silence.since().is_none() && silence.enter_ring(9));
    }

    #[test]
    fn a_sync_that_does_not_end_is_silence_and_many_short_ones_are_not() {
        let (ticks, silence) = (Ticks::default(), Silence::default());
        for number in 0..100 {
            assert_eq!(silence.check(&ticks, Some(number)), None);
            ticks.advance();
        }
        let turned = (0..200).map(|_| {
            ticks.advance();
            silence.check(&ticks, Some(100))
        });
        assert_eq!(turned.flatten().collect::<Vec<_>>(), [SilenceChange::Silent]);
    }
}
