//! Windows: the run of slots that is reserved for each partition's next changes, so that these lie together.
//!
//! How it works      A partition takes its slots from its window. When that is used up, it gets another one, with about
//!                   as many slots as it has taken since its change log began, at most [`WINDOW_MAX`]: 1, 2, 4 and so on.
//!                   So a partition with one changed block costs one slot. With each change log it begins at 1 again. A
//!                   window is a hint: what its chunk says counts.
//! Owner and locks   the processor's [`Slots`](super::slots::Slots).

use rustc_hash::FxHashMap;

use crate::units::LocalIndex;

/// Slots in the longest window: 1 MiB.
pub const WINDOW_MAX: u32 = 256;

/// A partition's window: slots from `next` to `end` of a chunk. No partition that was not written has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    chunk: u32,
    log: u16,
    next: u16,
    end: u16,
    /// Slots taken since the change log began, at most [`WINDOW_MAX`].
    taken: u16,
}

impl Window {
    /// Its log area, chunk, first slot, and how many slots; `None`: it is used up.
    pub(super) fn left(&self) -> Option<(u16, u64, u32, u32)> {
        let count = u32::from(self.end - self.next);
        (count > 0).then_some((self.log, u64::from(self.chunk), u32::from(self.next), count))
    }

    /// The number of slots of the next window.
    pub(super) fn next_size(&self) -> u32 {
        (1 << (u32::from(self.taken) + 1).ilog2()).min(WINDOW_MAX)
    }

    /// Notes that `count` slots were taken, from this window or not.
    pub(super) fn took(&mut self, count: u32) {
        self.taken = (u32::from(self.taken) + count.min(WINDOW_MAX)).min(WINDOW_MAX) as u16;
    }

    /// Takes `count` slots of it.
    pub(super) fn take(&mut self, count: u32) {
        assert!(count <= u32::from(self.end - self.next), "it has them");
        self.next += count as u16;
        self.took(count);
    }

    /// Moves it to these slots of a chunk.
    pub(super) fn set(&mut self, log: u16, chunk: u64, next: u32, end: u32) {
        // A log area of 2^32 chunks would be 16 PiB.
        (self.log, self.chunk) = (log, u32::try_from(chunk).unwrap_or(u32::MAX));
        (self.next, self.end) = (next as u16, end as u16);
    }

    /// Whether it is this one still, although slots of it may have been taken.
    pub(super) fn is(&self, other: &Window) -> bool {
        (self.log, self.chunk, self.end) == (other.log, other.chunk, other.end)
    }
}

/// The windows of one processor's partitions.
#[derive(Debug, Default)]
pub(super) struct Windows(FxHashMap<u32, Window>);

impl Windows {
    /// A partition's window.
    pub(super) fn of(&mut self, local: LocalIndex) -> &mut Window {
        self.0.entry(local.0).or_default()
    }

    /// Begins new change logs: every partition begins at 1 again.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_double_up_to_the_longest_one_and_a_long_run_counts() {
        let mut window = Window::default();
        let mut sizes = Vec::new();
        for _ in 0..11 {
            let size = window.next_size();
            window.set(1, 0, 0, size);
            window.take(size);
            sizes.push(size);
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
        let mut window = Window::default();
        window.took(1_000_000);
        assert_eq!(window.next_size(), WINDOW_MAX);
        let mut window = Window::default();
        window.took(3);
        assert_eq!((window.next_size(), window.left()), (4, None));
    }

    #[test]
    fn a_window_of_a_partition_is_small() {
        assert!(size_of::<(u32, Window)>() <= 16);
    }
}
