//! Space waiters: the shares of one volume that have parts which wait for slots, and what becomes of these.
//!
//! How it works      A share that finds too few slots for a part keeps it, and enters here; whoever makes room feeds
//!                   everybody, who then try again. If no room is on its way, Python is asked once (a
//!                   [`LogFull`](Event::LogFull) event): it makes room and says so, or says that it will not be
//!                   asked any more. Who is refused ends its part with ENOSPC.
//! Invariants        SW1 a share that was told to wait is told when there is room, when some is on its way, and when a
//!                      write has landed. It enters before it looks at the space; the others change the space before they look
//!                      whether anybody is in;
//!                   SW2 nobody waits for itself: a part that starves has nothing reserved, so cuts and deletes go on;
//!                   SW3 whoever is refused has the others try again: what they wait for may have been its own claim, which is
//!                      counted for the moment in which it fails. As that ends a part each time, it comes to an end.
//! Owner and locks   one lock, held for a look at counters; queues are pushed to after it was let go. Checked by the models
//!                   in `models/space_waiters.rs`.

use std::sync::Arc;

use crate::change_log::space::{EmptyChunk, Space};
use crate::engine::events::{self, Events};
use crate::processor::queue::{Control, Event, Queue};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, fence};
use crate::units::VolumeId;

/// Whom to ask when a volume's change logs are full, and to tell when a journal has no room.
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
    /// Somebody was asked, and has not answered.
    asked: bool,
}

impl State {
    /// Asks, unless that was done; whether somebody was asked.
    fn ask(&mut self) -> bool {
        let Some(Ask { events, volume }) = &self.ask else { return false };
        self.asked = self.asked || events.push(events::Event::LogFull(*volume));
        self.asked
    }
}

/// What a share does with a part that found too few slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it: it will be told when to try again.
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

    /// For a share whose part found fewer slots than it wants.
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
        // In this order: room is counted where it comes from until it is counted where it goes to (SP2).
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

    /// There may be room, or somebody has to be asked now: whoever waits tries again.
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

    /// Whoever was asked has done what it could: whoever waits tries again, and asks again if that is not enough.
    pub fn policy_done(&self) {
        self.lock().asked = false;
        self.wake_all();
    }

    /// Whom to ask from now on; `None`: parts that find no room are refused, those that wait among them.
    pub fn set_ask(&self, ask: Option<Ask>) {
        let mut state = self.lock();
        state.ask = ask;
        state.asked = false;
        drop(state);
        self.wake_all();
    }

    /// Whether somebody waits.
    pub fn has_waiters(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Retires those of these chunks that are worth punching: none if somebody waits for slots.
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
