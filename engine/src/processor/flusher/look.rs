//! Look: what waits for a volume's sync, and since when.

use super::{Flusher, Waiting};
use crate::processor::inspect::Group;
use crate::system::ticks::Tick;

/// What a flusher has.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlusherLook {
    /// Those that wait for the next sync.
    pub waiting: Group,
    /// Those that the sync in flight is for.
    pub served: Group,
    /// When that began; 0: there is none.
    pub began: Tick,
    /// It has lasted for longer than a request may.
    pub overdue: bool,
}

impl Flusher {
    /// What it has.
    pub fn look(&self) -> FlusherLook {
        let state = self.shared.state.lock().expect("no holder panics");
        let of = |list: &[Waiting]| {
            let mut group = Group::default();
            list.iter().for_each(|(_, since)| group.add(*since));
            group
        };
        FlusherLook {
            waiting: of(&state.waiting),
            served: of(&state.served),
            began: state.began,
            overdue: state.overdue,
        }
    }
}
