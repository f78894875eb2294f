//! Give back: what a share does so that the space of freed slots goes back to the devices without a host's flush.
//!
//! How it works      Chunks that a release has emptied are punched at once. The other freed slots are punched by sweeps
//!                   ([`punching`](crate::change_log::punching)), which ticks begin while there may be any. If freed slots
//!                   or freed base places wait for a commit, and hosts have changed nothing for a while, or the wait has
//!                   been long, a sync is requested. A log area whose device is full is *lean* for some seconds: writes get slots that
//!                   are backed, if there are any, and nothing is punched. If any other write finds a disk full, all that is
//!                   backed elsewhere is punched at once.
//! Costs             They follow what was freed. No request waits for a punch. After the surveys of a start, there is no
//!                   tick and no sweep where nothing is freed.
//! Owner and locks   the share's processor; sweeps run on the pool's threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::block_map::place::Place;
use crate::change_log::space::{EmptyChunk, LogArea};
use crate::error::Errno;
use crate::io::fault::is_lack_of_space;
use crate::processor::io_job::NewPlace;
use crate::processor::messages::{Control, Event};
use crate::processor::share::{Context, Share};
use crate::processor::space_waiters::SpaceWaiters;
use crate::system::pool::Lane;
use crate::system::ticks::{Tick, Ticks};
use crate::units::DeviceId;

/// Sweeps that must find a chunk unchanged before its slots are punched: two to three seconds.
const QUIET_SWEEPS: u8 = 2;
/// How long a sweep works, nanoseconds.
const SWEEP_NS: u64 = 25_000_000;
/// Ticks without a change after which a sync is requested for what was freed: 2 seconds.
const QUIET_TICKS: Tick = 8;
/// Ticks after which it is requested in any case: 30 seconds.
const PENDING_TICKS_MAX: Tick = 120;
/// Ticks for which a log area is lean: 5 seconds.
const LEAN_TICKS: Tick = 20;
/// Upper bound of runs that are remembered because they could not be written.
const UNWRITTEN_RUNS_MAX: usize = 1024;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct GivingBack {
    /// Jobs of pool threads that punch.
    jobs: Arc<AtomicU64>,
    /// Requests that have changed something, when the last one was seen, and since when something waits for a commit.
    changes: u64,
    changed_at: Tick,
    pending_since: Option<Tick>,
    /// Log areas that are lean, and since when.
    lean: Vec<(Arc<LogArea>, Tick)>,
    /// Slots of these that could not be written: some may be backed.
    unwritten: Vec<(Place, u32)>,
}

impl GivingBack {
    /// Whether no thread punches.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.load(Ordering::Acquire) == 0
    }
}

impl Share {
    /// Has the log areas surveyed that were used before this start; one share of a volume does that.
    pub(super) fn expect_survey(&mut self, logs: &[Arc<LogArea>]) {
        let new = logs.iter().filter(|log| self.ordinal == 0 && !log.is_surveyed());
        self.slots.backed_in |= new.fold(0, |bits, log| bits | log.bit());
    }

    /// Whether a tick has something to do here.
    pub(super) fn has_to_give_back(&self) -> bool {
        self.slots.backed_in != 0 || !self.giving_back.lean.is_empty() || self.waits_for_commit()
    }

    /// The work of a tick.
    pub(super) fn give_back(&mut self, context: &mut Context<'_>) {
        self.end_lean(context.ticks);
        self.release_when_quiet(context);
        self.punch_backed(QUIET_SWEEPS, context);
    }

    /// Whether slots or base places were freed or left, and that is not durable yet.
    fn waits_for_commit(&self) -> bool {
        let committed = || self.journal.shared().committed();
        self.slots.pending_free() > 0
            || self.relocation.holds()
            || self.freed_bases.front().is_some_and(|freed| freed.seq > committed())
    }

    /// Requests a sync for what was freed: hosts may not flush for a long time.
    fn release_when_quiet(&mut self, context: &Context<'_>) {
        let now = context.ticks.now();
        let changes = self.changes();
        let state = &mut self.giving_back;
        if state.changes != changes {
            (state.changes, state.changed_at) = (changes, now);
        }
        let quiet = now.wrapping_sub(state.changed_at) >= QUIET_TICKS;
        if !self.waits_for_commit() || self.release_asked || self.leaving {
            self.giving_back.pending_since = None;
            return;
        }
        let since = *self.giving_back.pending_since.get_or_insert(now);
        let long = now.wrapping_sub(since) >= PENDING_TICKS_MAX;
        let may_fail = self.release_failed || !self.without_space.is_empty();
        if (quiet || long) && now != since && !may_fail {
            self.ask_release(context);
        }
    }

    /// Has the backed slots of chunks punched that `sweeps` sweeps have found unchanged.
    pub fn punch_backed(&mut self, sweeps: u8, context: &Context<'_>) {
        if self.leaving || self.slots.backed_in == 0 {
            return;
        }
        if self.space.holds() {
            return; // SP3: these are surveyed when they are free
        }
        let mut left = 0;
        for log in self.space.logs() {
            if self.slots.backed_in & log.bit() == 0 || !log.needs_sweep() {
                continue;
            }
            left |= log.bit();
            let tick = context.ticks.now();
            let silent = log.next_swept().silence.is_silent();
            if !silent && !log.is_lean() && log.begin_sweep(tick, sweeps == 0) {
                self.sweep(log, tick, sweeps, context);
            }
        }
        self.slots.backed_in = left;
    }

    /// Has all backed slots punched, if a write has failed because a disk is full: others may find space then. Not those
    /// of lean areas.
    pub(super) fn give_back_if_full(&mut self, result: Result<(), Errno>, context: &Context<'_>) {
        if result.is_err_and(is_lack_of_space) {
            self.punch_backed(0, context);
        }
    }

    fn sweep(&mut self, log: Arc<LogArea>, tick: Tick, sweeps: u8, context: &Context<'_>) {
        let device = Arc::clone(log.next_swept());
        self.punch_on(device.id, context, move |space_waiters| {
            let began = device.now_ns();
            let over = || device.now_ns().saturating_sub(began) > SWEEP_NS;
            let more = log.sweep(&device, over, |chunk| {
                space_waiters.wake(log.bit());
                space_waiters.take_backed(&log, chunk, sweeps)
            });
            log.end_sweep(device.now_ns().saturating_sub(began), more.then_some(tick));
            space_waiters.wake(log.bit());
        });
    }

    /// Has chunks punched that have become empty.
    pub(super) fn punch_empty(&mut self, empty: Vec<EmptyChunk>, context: &Context<'_>) {
        let waited = self.space_waiters.waited();
        let mut by_device: BTreeMap<DeviceId, Vec<EmptyChunk>> = BTreeMap::new();
        for chunk in empty {
            let device = chunk.device();
            if waited & chunk.log.bit() == 0 && device.can_punch() {
                by_device.entry(device.id).or_default().push(chunk);
            }
        }
        for (device, empty) in by_device {
            self.punch_on(device, context, move |space_waiters| {
                for EmptyChunk { log, chunk } in empty {
                    if let Some(punching) = space_waiters.take_backed(&log, chunk, 0) {
                        punching.punch();
                        drop(punching);
                        space_waiters.wake(log.bit());
                    }
                }
            });
        }
    }

    fn punch_on(
        &mut self,
        device: DeviceId,
        context: &Context<'_>,
        f: impl FnOnce(&SpaceWaiters) + Send + 'static,
    ) {
        let jobs = Arc::clone(&self.giving_back.jobs);
        jobs.fetch_add(1, Ordering::Relaxed);
        let (share, queue) = (self.number, Arc::clone(context.queue));
        let space_waiters = Arc::clone(&self.space_waiters);
        context.pool.run(Lane::Device(device), move || {
            f(&space_waiters);
            drop(space_waiters);
            jobs.fetch_sub(1, Ordering::Release);
            // The share may have waited for this to be idle.
            queue.push(Event::Control(Box::new(Control::TryAgain(share))));
        });
    }

    /// Notes that a write found the device of a slot full, and that these of its changes were not made.
    pub(super) fn note_full(&mut self, place: Place, unwritten: &[NewPlace], ticks: &Ticks) {
        for change in unwritten.iter().filter(|change| change.place.is_slot()) {
            self.slots.set_backed(change.place, change.count, false);
            if self.giving_back.unwritten.len() < UNWRITTEN_RUNS_MAX {
                self.giving_back.unwritten.push((change.place, change.count));
            }
        }
        let log = Arc::clone(self.area_of(place));
        log.set_lean(true);
        self.giving_back.lean.retain(|(other, _)| other.number != log.number);
        self.giving_back.lean.push((log, ticks.now()));
    }

    /// Ends what has been lean for long enough: there may be space again.
    fn end_lean(&mut self, ticks: &Ticks) {
        let over = |(_, since): &mut (_, Tick)| ticks.now().wrapping_sub(*since) >= LEAN_TICKS;
        let ended: Vec<_> = self.giving_back.lean.extract_if(.., over).collect();
        for (log, _) in ended {
            log.set_lean(false);
            let ours = |(place, _): &mut (Place, u32)| place.log() == log.number;
            let unwritten: Vec<_> = self.giving_back.unwritten.extract_if(.., ours).collect();
            for (place, count) in unwritten {
                self.slots.set_backed(place, count, true);
            }
            self.try_full_again(log.number);
        }
    }
}
