//! Stats: how much of a share's partitions is mapped, and how much hosts have changed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::processor::share::Share;

impl Share {
    /// Requests so far that have changed something.
    pub(super) fn changes(&self) -> u64 {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        of(&self.stats.writes) + of(&self.stats.zeroes) + of(&self.stats.trims)
    }

    /// Blocks of the live volume that are not at their base place.
    pub fn usage(&self) -> u64 {
        self.locals.iter().map(|local| u64::from(local.versions.live.mapped())).sum()
    }
}
