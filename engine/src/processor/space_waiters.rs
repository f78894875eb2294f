//! Space waiters: the wait queue of a volume's shares that have parts blocked on free slots.
//!
//! How it works      A share that finds too few free slots for a part keeps the part and enters the queue. Each release
//!                   of slots wakes all waiters, which try again. If no slots are about to be released, Python gets one
//!                   [`LogFull`](Event::LogFull) event: it frees space and reports that, or turns off these events. A
//!                   share that is refused ends its part with ENOSPC.
//! Invariants        SW1 a waiter is woken when slots are free, when some are about to be released, and when a
//!                      write has ended. It enters the queue before it reads the counters; the others change the
//!                      counters before they check for waiters;
//!                   SW2 no waiter waits for itself: a part without space has nothing reserved, so cuts and deletes
//!                       proceed;
//!                   SW3 a share that is refused wakes the others: they may have waited for its own claim, which is
//!                       counted while it fails. Each refusal ends a part, so this ends.
//! Owner and locks   one lock, held to read counters; it is released before events are pushed to queues. Checked by the
//!                   models in `models/space_waiters.rs`.

use std::sync::Arc;

use crate::change_log::space::{EmptyChunk, Space};
use crate::events::{self, Events};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, fence};
use crate::units::VolumeId;

/// Destination of the events of full change logs and full journals.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The engine's events.
    pub events: Arc<Events>,
    /// The volume.
    pub volume: VolumeId,
}

#[derive(Debug, Default)]
struct State {
    waiters: Vec<(Arc<Queue>, u32)>,
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
    /// Number of waiters, for reading without the lock.
    count: AtomicUsize,
}

impl SpaceWaiters {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Called by a share whose part found fewer slots than it needs.
    pub fn wait_or_refuse(
        &self,
        space: &Space,
        wanted: u64,
        queue: &Arc<Queue>,
        share: u32,
    ) -> Verdict {
        let mut state = self.lock();
        let same =
            |(other, number): &(Arc<Queue>, u32)| Arc::ptr_eq(other, queue) && *number == share;
        let at = state.waiters.iter().position(same);
        if at.is_none() {
            state.waiters.push((Arc::clone(queue), share));
        }
        let now = at.unwrap_or(state.waiters.len() - 1);
        self.count.store(state.waiters.len(), Ordering::SeqCst);
        fence(Ordering::SeqCst); // SW1
        // In this order: slots stay in their old counter until their new one includes them (SP2).
        let returning = space.pending_free() > 0 || space.returning() > 0;
        let room = space.free() >= wanted;
        let coming = returning || space.in_flight() > 0;
        let verdict = if room || coming || state.ask() { Verdict::Wait } else { Verdict::Refuse };
        let refused = verdict == Verdict::Refuse;
        if room || (refused && at.is_none()) {
            state.waiters.swap_remove(now);
        }
        let mut again = Vec::new();
        if refused {
            again = std::mem::take(&mut state.waiters); // SW3
        } else if room {
            again.push((Arc::clone(queue), share));
        }
        self.count.store(state.waiters.len(), Ordering::SeqCst);
        drop(state);
        try_again(again);
        verdict
    }

    /// Wakes all waiters, because slots may be free, or an event may be needed now.
    pub fn wake_all(&self) {
        fence(Ordering::SeqCst); // SW1
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut state = self.lock();
        let waiters = std::mem::take(&mut state.waiters);
        self.count.store(0, Ordering::SeqCst);
        drop(state);
        try_again(waiters);
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
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Retires these chunks for punching, but none while a share waits for slots.
    pub fn retire(&self, space: &Space, mut chunks: Vec<EmptyChunk>) -> Vec<EmptyChunk> {
        let state = self.lock();
        if !state.waiters.is_empty() {
            return Vec::new();
        }
        chunks.retain(|chunk| chunk.can_punch() && space.retire(chunk));
        chunks
    }
}

fn try_again(shares: Vec<(Arc<Queue>, u32)>) {
    for (queue, share) in shares {
        queue.push(Event::Control(Box::new(Control::TryAgain(share))));
    }
}
