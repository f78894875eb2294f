//! Space waiters: the wait queue of a volume's shares that have parts blocked on free slots.
//!
//! How it works      A share that finds too few free slots for a part keeps the part and enters the queue. Each release of
//!                   slots wakes all waiters, which try again. If no slots are about to be released, Python is asked
//!                   once (a [`LogFull`](Event::LogFull) event): it frees space and says so, or says that it will not be
//!                   asked again. A share that is refused ends its part with ENOSPC.
//! Invariants        SW1 a waiter is woken when slots are free, when some are about to be released, and when a
//!                      write has ended. It enters the queue before it reads the counters; the others change the counters
//!                      before they check for waiters;
//!                   SW2 no waiter waits for itself: a part without space has nothing reserved, so cuts and deletes proceed;
//!                   SW3 a share that is refused wakes the others: they may have waited for its own claim, which is counted
//!                      while it fails. Each refusal ends a part, so this ends.
//! Owner and locks   one lock, held to read counters; queues are pushed to after it was released. Checked by the models
//!                   in `models/space_waiters.rs`.

use std::sync::Arc;

use crate::change_log::space::{EmptyChunk, Space};
use crate::events::{self, Events};
use crate::processor::messages::{Control, Event};
use crate::processor::queue::Queue;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, fence};
use crate::units::VolumeId;

/// Where to report that a volume's change logs are full, or that a journal has no space.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where Python hears of it.
    pub events: Arc<Events>,
    /// The volume.
    pub volume: VolumeId,
}

#[derive(Debug, Default)]
struct State {
    waiters: Vec<(Arc<Queue>, u32)>,
    ask: Option<Ask>,
    /// Python was asked, and has not answered.
    asked: bool,
}

impl State {
    /// Asks Python unless it was asked already; `false` if there is nobody to ask.
    fn ask(&mut self) -> bool {
        let Some(Ask { events, volume }) = &self.ask else { return false };
        self.asked = self.asked || events.push(events::Event::LogFull(*volume));
        self.asked
    }
}

/// What a share does with a part that found too few slots.
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
    /// How many are waiters, to be looked at without the lock.
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
        // In this order: slots are counted at their old place until they are counted at their new one (SP2).
        let returning = space.waiting() > 0 || space.returning() > 0;
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

    /// Slots may be free, or Python has to be asked now: all waiters try again.
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

    /// Python has done what it could: all waiters try again, and ask again if that is not enough.
    pub fn policy_done(&self) {
        self.lock().asked = false;
        self.wake_all();
    }

    /// Sets where to ask; `None`: parts without space are refused, also those that wait.
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

    /// Retires those of these chunks that are worth punching: none while a share waits for slots.
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
