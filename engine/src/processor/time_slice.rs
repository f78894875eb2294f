//! Time slice: how long a processor runs before it checks for new events.
//!
//! How it works      The cost of the work done is added up, in units of about a microsecond. The clock is read only
//!                   after some cost, so small batches never read it. The slice ends when [`SLICE_NS`] have passed.

use crate::processor::part::Part;
use crate::request::Verb;
use crate::system::System;

/// How long a slice may take before it ends after the current piece of work, nanoseconds.
pub const SLICE_NS: u64 = 200_000;
/// Cost after which the clock is read.
const CLOCK_EVERY: u32 = 16;
/// log2 of the bytes that cost as much as a small request.
const UNIT_SHIFT: u32 = 14;

/// The approximate cost of a part.
pub fn cost(part: &Part) -> u32 {
    match part.request.verb {
        Verb::Read | Verb::Write => 1 + (part.length >> UNIT_SHIFT),
        _ => CLOCK_EVERY,
    }
}

/// See the module's head.
#[derive(Default)]
pub struct TimeSlice {
    spent: u32,
    began: Option<u64>,
    over: bool,
}

impl TimeSlice {
    /// Adds the cost of work that was done.
    pub fn count(&mut self, cost: u32, system: &dyn System) {
        self.spent += cost;
        if self.spent < CLOCK_EVERY {
            return;
        }
        self.spent = 0;
        let now = system.monotonic_ns();
        let began = *self.began.get_or_insert(now);
        self.over |= now - began >= SLICE_NS;
    }

    /// Whether the slice is over, and other connections have their turn.
    pub fn is_over(&self) -> bool {
        self.over
    }
}
