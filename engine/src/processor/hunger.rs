//! Hunger: the shares of one volume that have parts which wait for slots, and what becomes of these.
//!
//! How it works      A share that finds too few slots for a part keeps it, and enters here; whoever makes room feeds
//!                   everybody, who then try again. If no room is on its way, Python is asked once (a
//!                   [`LogFull`](Event::LogFull) event): it makes room and says so, or says that it will not be
//!                   asked any more. Who is refused ends its part with ENOSPC.
//! Invariants        G1 a share that was told to wait is told when there is room, or somebody was asked, or room is on
//!                      its way: it looks at the space under the lock that whoever makes room takes afterwards;
//!                   G2 nobody waits for itself: a part that starves has nothing reserved, so cuts and deletes go on.
//! Owner and locks   one lock, held for a look at counters; queues are pushed to after it was let go.

use std::sync::{Arc, Mutex};

use crate::change_log::space::{EmptyChunk, Space};
use crate::engine::events::{self, Events};
use crate::processor::queue::{Control, Event, Queue};
use crate::units::VolumeId;

/// Whom to ask when a volume's change logs are full.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where Python hears of it.
    pub events: Arc<Events>,
    /// The volume.
    pub volume: VolumeId,
}

#[derive(Debug, Default)]
struct State {
    hungry: Vec<(Arc<Queue>, u32)>,
    ask: Option<Ask>,
    /// Somebody was asked, and has not answered.
    asked: bool,
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
pub struct Hunger {
    state: Mutex<State>,
}

impl Hunger {
    /// For a share whose part found fewer slots than it wants.
    pub fn enter(&self, space: &Space, wanted: u64, queue: &Arc<Queue>, share: u32) -> Verdict {
        let mut state = self.state.lock().expect("no holder panics");
        // In this order: room is counted where it comes from until it is counted where it goes to (P2).
        let held = space.is_held();
        let coming = held || space.waiting() > 0 || space.returning() > 0;
        if !held && space.free() >= wanted {
            drop(state);
            try_again([(Arc::clone(queue), share)]);
            return Verdict::Wait;
        }
        if !coming {
            let State { ask, asked, .. } = &mut *state;
            let Some(Ask { events, volume }) = ask else { return Verdict::Refuse };
            *asked = *asked || events.push(events::Event::LogFull(*volume));
            if !*asked {
                return Verdict::Refuse;
            }
        }
        let same =
            |(other, number): &(Arc<Queue>, u32)| Arc::ptr_eq(other, queue) && *number == share;
        if !state.hungry.iter().any(same) {
            state.hungry.push((Arc::clone(queue), share));
        }
        Verdict::Wait
    }

    /// There may be room: whoever waits tries again.
    pub fn feed(&self) {
        let hungry = std::mem::take(&mut self.state.lock().expect("no holder panics").hungry);
        try_again(hungry);
    }

    /// Whoever was asked has done what it could: whoever waits tries again, and asks again if that is not enough.
    pub fn answer(&self) {
        self.state.lock().expect("no holder panics").asked = false;
        self.feed();
    }

    /// Whom to ask from now on; `None`: parts that find no room are refused, those that wait among them.
    pub fn set_ask(&self, ask: Option<Ask>) {
        let mut state = self.state.lock().expect("no holder panics");
        state.ask = ask;
        state.asked = false;
        drop(state);
        self.feed();
    }

    /// Whether somebody waits.
    pub fn is_hungry(&self) -> bool {
        !self.state.lock().expect("no holder panics").hungry.is_empty()
    }

    /// Retires those of these chunks that are worth punching: none if somebody waits for slots.
    pub fn retire(&self, space: &Space, mut chunks: Vec<EmptyChunk>) -> Vec<EmptyChunk> {
        let state = self.state.lock().expect("no holder panics");
        if !state.hungry.is_empty() {
            return Vec::new();
        }
        chunks.retain(|chunk| chunk.can_punch() && space.retire(chunk));
        chunks
    }
}

fn try_again(shares: impl IntoIterator<Item = (Arc<Queue>, u32)>) {
    for (queue, share) in shares {
        queue.push(Event::Control(Box::new(Control::TryAgain(share))));
    }
}
