//! Space waiters: the wait queue of a volume's shares that have parts blocked on free slots.
//!
//! How it works      A share that finds too few free slots for a part, in the log areas that the part's partition may
//!                   use, keeps the part and enters the queue. Each release of slots wakes the waiters for their area,
//!                   which try again. If no slots of these areas are about to be released, Python gets one
//!                   [`LogFull`](Event::LogFull) event: it frees space and reports that, or turns off these events. A
//!                   share that is refused ends its part with ENOSPC.
//! Invariants        SW1 a waiter is woken when slots of its areas are free, when some are about to be released, and
//!                      when a write that may free some has ended. It enters the queue before it reads the counters;
//!                      the others change the counters before they check for waiters. What happens in other areas
//!                      neither wakes it nor makes it wait;
//!                   SW2 no waiter waits for itself: a part without space has nothing reserved, so cuts and deletes
//!                       proceed;
//!                   SW3 a share that is refused wakes the others of its areas: they may have waited for its own
//!                       claim, which is counted while it fails. Each refusal ends a part, so this ends. A claim that
//!                       took slots and gave them back wakes them too.
//! Owner and locks   one lock, held to read counters; it is released before events are pushed to queues. Checked by the
//!                   models in `models/space_waiters.rs`.

use std::sync::Arc;

use crate::change_log::punching::Punching;
use crate::change_log::space::{AreaBits, LogArea};
use crate::events::{self, Events};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, fence};
use crate::units::VolumeId;

/// Destination of the events of full log areas and full journals.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The engine's events.
    pub events: Arc<Events>,
    /// The volume.
    pub volume: VolumeId,
}

/// A share in the queue.
#[derive(Debug)]
struct Waiter {
    queue: Arc<Queue>,
    share: u32,
    /// The areas in which its parts may have slots.
    areas: AreaBits,
}

/// The slots that a part needs, and the areas in which it may have them.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The areas.
    pub areas: &'a [Arc<LogArea>],
    /// Their bits.
    pub bits: AreaBits,
    /// How many slots.
    pub slots: u64,
}

impl Wanted<'_> {
    fn have_room(&self) -> bool {
        self.areas.iter().map(|area| area.free()).sum::<u64>() >= self.slots
    }

    /// Whether there is room, and whether slots are about to become free. The order is that in which slots go from
    /// counter to counter, so that none is missed (SP2).
    fn outlook(&self) -> (bool, bool) {
        let any = |of: fn(&LogArea) -> u64| self.areas.iter().any(|area| of(area) > 0);
        let coming =
            any(LogArea::in_flight) || any(LogArea::pending_free) || any(LogArea::returning);
        let room = self.have_room();
        (room, coming || any(LogArea::in_flight)) // others may have claimed what was free
    }
}

#[derive(Debug, Default)]
struct State {
    waiters: Vec<Waiter>,
    ask: Option<Ask>,
    /// An event was sent, and Python has not answered.
    asked: bool,
}

impl State {
    /// Sends an event to Python unless one was already sent; `false` if events are turned off.
    fn ask(&mut self) -> bool {
        let Some(Ask { events, volume }) = &self.ask else { return false };
        self.asked = self.asked || events.push(events::Event::LogFull(*volume));
        self.asked
    }

    /// Takes the waiters for any of these areas out of the queue.
    fn take(&mut self, areas: AreaBits) -> Vec<Waiter> {
        let (taken, stay) =
            std::mem::take(&mut self.waiters).into_iter().partition(|one| one.areas & areas != 0);
        self.waiters = stay;
        taken
    }
}

/// The decision on a part that found too few slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it: the share is woken to try again.
    Wait,
    /// End it with ENOSPC.
    Refuse,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct SpaceWaiters {
    state: Mutex<State>,
    /// The areas that are waited for, for reading without the lock.
    waited: AtomicU64,
}

impl SpaceWaiters {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Called by a share whose part found fewer slots than it needs.
    pub fn wait_or_refuse(&self, wanted: &Wanted<'_>, queue: &Arc<Queue>, share: u32) -> Verdict {
        let mut state = self.lock();
        let same = |other: &Waiter| Arc::ptr_eq(&other.queue, queue) && other.share == share;
        let at = state.waiters.iter().position(same);
        match at {
            Some(at) => state.waiters[at].areas |= wanted.bits,
            None => {
                let waiter = Waiter { queue: Arc::clone(queue), share, areas: wanted.bits };
                state.waiters.push(waiter);
            }
        }
        let now = at.unwrap_or(state.waiters.len() - 1);
        self.publish(&state);
        fence(Ordering::SeqCst); // SW1
        let (room, coming) = wanted.outlook();
        let verdict = if room || coming || state.ask() { Verdict::Wait } else { Verdict::Refuse };
        let refused = verdict == Verdict::Refuse;
        let mut again = Vec::new();
        if room {
            again.push(state.waiters.swap_remove(now));
        } else if refused {
            if at.is_none() {
                state.waiters.swap_remove(now);
            }
            again = state.take(wanted.bits); // SW3
        }
        self.publish(&state);
        drop(state);
        try_again(again);
        verdict
    }

    fn publish(&self, state: &State) {
        let waited = state.waiters.iter().fold(0, |areas, waiter| areas | waiter.areas);
        self.waited.store(waited, Ordering::SeqCst);
    }

    /// Wakes the waiters for these areas, because slots there may be free, or an event may be needed now.
    pub fn wake(&self, areas: AreaBits) {
        fence(Ordering::SeqCst); // SW1
        if self.waited.load(Ordering::SeqCst) & areas == 0 {
            return;
        }
        let mut state = self.lock();
        let waiters = state.take(areas);
        self.publish(&state);
        drop(state);
        try_again(waiters);
    }

    /// Wakes all waiters.
    pub fn wake_all(&self) {
        self.wake(AreaBits::MAX);
    }

    /// Notes that Python has done what it could: all waiters try again, and send an event again if that is not enough.
    pub fn policy_done(&self) {
        self.lock().asked = false;
        self.wake_all();
    }

    /// Sets the destination of events; `None`: parts without space are refused, also waiting ones.
    pub fn set_ask(&self, ask: Option<Ask>) {
        let mut state = self.lock();
        state.ask = ask;
        state.asked = false;
        drop(state);
        self.wake_all();
    }

    /// Whether any share waits.
    pub fn has_waiters(&self) -> bool {
        self.waited.load(Ordering::SeqCst) > 0
    }

    /// The areas that are waited for.
    pub fn waited(&self) -> AreaBits {
        self.waited.load(Ordering::SeqCst)
    }

    /// Takes the backed slots of a chunk for punching, but none while a share waits for slots of its area, nor while
    /// its device is full: then writes need them.
    pub fn take_backed(&self, log: &Arc<LogArea>, chunk: u64, sweeps: u8) -> Option<Punching> {
        let state = self.lock();
        let waited = state.waiters.iter().any(|waiter| waiter.areas & log.bit() != 0);
        if waited || log.is_lean() { None } else { Punching::take(log, chunk, sweeps) }
    }
}

fn try_again(waiters: Vec<Waiter>) {
    for Waiter { queue, share, .. } in waiters {
        queue.push(Event::Control(Box::new(Control::TryAgain(share))));
    }
}
