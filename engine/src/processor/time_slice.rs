//! Time slice: how long a processor runs before it looks at newer events.
//!
//! How it works      The cost of what is done is added up, in units of about a microsecond. The clock is read only after some
//!                   cost, so small batches never read it. The slice ends when [`TURN_NS`] have passed.

use crate::processor::queue::Part;
use crate::system::System;
use crate::volume::request::Verb;

/// How long a turn may take before it ends with what it does just then, nanoseconds.
pub const TURN_NS: u64 = 200_000;
/// Costs after which the clock is looked at.
const LOOK_EVERY: u32 = 16;
/// What costs as much as a small request, bytes.
const UNIT_SHIFT: u32 = 14;

/// What doing a part costs, roughly.
pub fn cost(part: &Part) -> u32 {
    match part.request.verb {
        Verb::Read | Verb::Write => 1 + (part.length >> UNIT_SHIFT),
        _ => LOOK_EVERY,
    }
}

/// See the module's head.
#[derive(Default)]
pub struct Turn {
    spent: u32,
    began: Option<u64>,
    over: bool,
}

impl Turn {
    /// Counts what was done.
    pub fn count(&mut self, cost: u32, system: &dyn System) {
        self.spent += cost;
        if self.spent < LOOK_EVERY {
            return;
        }
        self.spent = 0;
        let now = system.monotonic_ns();
        let began = *self.began.get_or_insert(now);
        self.over |= now - began >= TURN_NS;
    }

    /// Whether others are to have theirs.
    pub fn is_over(&self) -> bool {
        self.over
    }
}
