//! Stats: how much hosts have changed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::processor::share::Share;

impl Share {
    /// Requests so far that have changed something.
    pub(super) fn changes(&self) -> u64 {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        of(&self.stats.writes) + of(&self.stats.zeroes) + of(&self.stats.trims)
    }
}
