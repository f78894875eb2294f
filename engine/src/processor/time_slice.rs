//! Time slice: how long a processor is run before it looks at what came meanwhile.
//!
//! How it works      What is done is counted, in units of about a microsecond. A turn is over when it was counted that far and
//!                   [`TURN_NS`] have passed since it was first counted so far: small batches never ask for the time.

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
