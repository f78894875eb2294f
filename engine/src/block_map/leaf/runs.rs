//! Runs: the form of a leaf whose blocks have consecutive places: a few bytes for each run, and 4 for each checksum.
//!
//! Invariants        LF1 runs are in order, not empty, inside the leaf, never base, and joined where they can be;
//!                   LF2 a slot run has one checksum for each of its blocks, in `checksums`, in order of runs.

use super::super::place::Place;
use super::{Found, LEAF_BLOCKS};

/// Capacity for checksums that is reserved when one is added to the last run.
const CHECKSUMS_MORE: usize = 64;

/// Blocks with consecutive places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u16,
    count: u16,
    /// Index of its first checksum.
    checksums_at: u16,
    /// The first block's place; the others' follow by [`Place::step`].
    place: Place,
}

impl Run {
    fn end(&self) -> u32 {
        u32::from(self.start) + u32::from(self.count)
    }
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    runs: Vec<Run>,
    checksums: Vec<u32>,
}

impl Runs {
    /// Number of runs.
    pub fn count(&self) -> usize {
        self.runs.len()
    }

    /// How many blocks have a checksum.
    pub fn checksums(&self) -> usize {
        self.checksums.len()
    }

    /// How many of the blocks before `end` are not base.
    pub fn mapped(&self, end: u32) -> u32 {
        let before = |run: &Run| run.end().min(end).saturating_sub(u32::from(run.start));
        self.runs.iter().map(before).sum()
    }

    /// Bytes of a run.
    pub const RUN_BYTES: usize = size_of::<Run>();

    /// See [`super::Leaf::find`].
    pub fn find(&self, block: u32, limit: u32) -> Found<'_> {
        let after = self.runs.partition_point(|run| u32::from(run.start) <= block);
        if let Some(run) = after.checked_sub(1).map(|i| &self.runs[i])
            && block < run.end()
        {
            let into = block - u32::from(run.start);
            let count = limit.min(run.end() - block);
            let checksums = self.checksums_of(run, into, count);
            return Found { count, place: run.place.step(into), checksums };
        }
        let gap = self.runs.get(after).map_or(LEAF_BLOCKS, |run| u32::from(run.start)) - block;
        Found { count: limit.min(gap), place: Place::BASE, checksums: &[] }
    }

    fn checksums_of(&self, run: &Run, into: u32, count: u32) -> &[u32] {
        if !run.place.is_slot() {
            return &[];
        }
        let at = usize::from(run.checksums_at) + into as usize;
        &self.checksums[at..at + count as usize]
    }

    /// Calls `f(first, run)` for every run, in order.
    pub fn for_each_run(&self, mut f: impl FnMut(u32, Found<'_>)) {
        for run in &self.runs {
            let count = u32::from(run.count);
            let checksums = self.checksums_of(run, 0, count);
            f(u32::from(run.start), Found { count, place: run.place, checksums });
        }
    }

    /// See [`super::Leaf::set`].
    pub fn set(&mut self, start: u32, count: u32, place: Place, sums: &[u32]) {
        if self.runs.last().is_none_or(|last| last.end() <= start) {
            // The case of sequential writes.
            if self.checksums.capacity() - self.checksums.len() < sums.len() {
                self.checksums.reserve_exact(sums.len() + CHECKSUMS_MORE);
            }
            return self.push(start, count, place, sums);
        }
        let (old, end) = (std::mem::take(self), start + count);
        self.runs.reserve_exact(old.runs.len() + 2);
        self.checksums.reserve_exact(old.checksums.len() + sums.len());
        let mut placed = false;
        for run in &old.runs {
            let (from, to) = (u32::from(run.start), run.end());
            if from < start {
                let here = to.min(start) - from;
                self.push(from, here, run.place, old.checksums_of(run, 0, here));
            }
            if to > start && !placed {
                self.push(start, count, place, sums);
                placed = true;
            }
            if to > end {
                let into = from.max(end) - from;
                let here = to - from - into;
                let sums = old.checksums_of(run, into, here);
                self.push(from + into, here, run.place.step(into), sums);
            }
        }
        debug_assert!(placed, "the last run ends after it");
    }

    /// Adds a run after the others (LF1).
    fn push(&mut self, start: u32, count: u32, place: Place, sums: &[u32]) {
        if place == Place::BASE {
            return;
        }
        let checksums_at = self.checksums.len() as u16;
        self.checksums.extend_from_slice(sums);
        if let Some(last) = self.runs.last_mut()
            && last.end() == start
            && place.follows(last.place, u32::from(last.count))
        {
            last.count += count as u16;
            return;
        }
        if self.runs.capacity() == self.runs.len() {
            self.runs.reserve_exact(2);
        }
        self.runs.push(Run { start: start as u16, count: count as u16, checksums_at, place });
    }
}
