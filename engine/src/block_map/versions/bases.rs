//! Bases: which base places of a partition are free, and the moves of blocks from and to them.
//!
//! How it works      With the first change of a block after a snapshot, the live map leaves the base place to the snapshot.
//!                   It comes back when no version sees the base place. [`Relocation`] moves blocks in all versions at
//!                   once.
//! Invariants        TB1 a base place from which blocks have moved to slots is held until the record of that is durable:
//!                   until then a power loss restores versions that see it. If no snapshot is left, no recovery finds
//!                   such a version, and it is free.

use std::sync::Arc;

use super::Versions;
use crate::block_map::place::Place;
use crate::block_map::relocation::{Move, Relocation};
use crate::mutants::{Bug, bug};
use crate::units::{BlockIndex, Epoch};

impl Versions {
    /// Moves blocks, by records of which the last is `seq`: every version that has them at the old places has them at the
    /// new ones now. No version saw these. Base places that they have left are held until `seq` is durable (TB1).
    pub fn relocate(&mut self, moves: &[Move], seq: u64) {
        let mut moved = Relocation::new(moves, seq);
        if !self.frozen.is_empty() {
            let frozen = Arc::make_mut(&mut self.frozen).iter_mut();
            frozen.for_each(|frozen| moved.apply(&mut frozen.map));
        }
        moved.apply(&mut self.live);
        for left in moves.iter().filter(|one| one.from == Place::BASE) {
            self.taken.set(left.first, left.count, false);
            self.taken.hold(left.first, left.count, seq);
        }
    }

    /// Ends the holding of base places whose blocks have moved to slots, by records up to `committed`.
    pub fn release_held(&mut self, committed: u64) {
        self.taken.release_held(committed);
    }

    /// The last record for which one of these base places is held; 0: none is.
    pub fn held_until(&self, first: BlockIndex, count: u32) -> u64 {
        self.taken.held_until(first, count)
    }

    /// Prepares [`Versions::base_is_taken`] for these blocks.
    pub fn learn_taken(&mut self, first: BlockIndex, count: u32) {
        if !self.frozen.is_empty() {
            let frozen = self.frozen.iter().map(|frozen| &frozen.map);
            self.taken.learn(first, count, &self.live, frozen);
        }
    }

    /// The length of the run from `block`, at most `limit`, for which the answer is the same, and the answer: are these
    /// base places taken, because a frozen map sees them, or they are held? The live map does not see them.
    /// [`Versions::learn_taken`] has prepared it; else the answer is yes.
    pub fn base_is_taken(&self, block: BlockIndex, limit: u32) -> (u32, bool) {
        if self.frozen.is_empty() {
            return (limit, false); // TB1: no recovery finds a version that sees it
        }
        let (count, taken) = self.taken.run(block, limit);
        match taken || bug(Bug::UseHeldBase) {
            true => (count, taken),
            false => self.taken.held_run(block, count),
        }
    }

    /// The same for the question whether a frozen map sees these base places.
    pub fn snapshot_sees_base(&self, block: BlockIndex, limit: u32) -> (u32, bool) {
        match self.frozen.is_empty() {
            true => (limit, false),
            false => self.taken.run(block, limit),
        }
    }

    /// The length of the run from `block`, at most `limit`, for which the answer is the same, and the answer: does the
    /// snapshot of one of these epochs have these blocks at a place that `is` names?
    pub fn any_has(
        &self,
        epochs: &[Epoch],
        block: BlockIndex,
        limit: u32,
        is: impl Fn(Place) -> bool,
    ) -> (u32, bool) {
        let mut count = limit;
        for epoch in epochs {
            let theirs = self.at(*epoch).0.find(block, count);
            count = theirs.count;
            if is(theirs.place) {
                return (count, true);
            }
        }
        (count, false)
    }

    /// Whether any version sees one of these blocks at its base place.
    pub fn sees_base(&self, first: BlockIndex, count: u32) -> bool {
        let maps = self.frozen.iter().map(|frozen| &frozen.map).chain([&self.live]);
        maps.into_iter().any(|map| map.sees(Place::BASE, first, count))
    }
}
