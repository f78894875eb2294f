//! Scrub: lists the slots of a share, so that a scrub can read them all.
//!
//! How it works      [`Share::slots_from`] walks a partition leaf by leaf, and in each leaf its versions from the
//!                   oldest to the live one, and returns the slots that a version sees and the one before it does not:
//!                   so each slot occurs once (V2 of the versions). It stops when it has found enough, or examined
//!                   enough leaves, and returns where to continue. Between two calls versions may be added and removed:
//!                   a slot may then occur twice, and none that is seen all the time is left out, because a new version
//!                   is after the point where the walk continues. [`Share::seen_by`] tells whether a slot still has the
//!                   same use: a slot that was freed and reused in the meantime is not a bad one.

use std::sync::mpsc::Sender;

use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::tree::{Map, leaves};
use crate::block_map::versions::Versions;
use crate::processor::share::Share;
use crate::units::{BlockIndex, Epoch, LocalIndex};

const LEAF_BLOCKS: u32 = crate::block_map::leaf::LEAF_BLOCKS;
/// Leaves of versions that one call examines.
const LOOKS_MAX: u32 = 128;

/// Position of a walk through a partition's slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The leaf.
    pub leaf: u32,
    /// The remaining versions of it: those whose last epoch is not below this.
    pub epoch: Epoch,
}

/// Consecutive slots of consecutive blocks.
#[derive(Clone, Debug)]
pub struct SlotRun {
    /// The first block.
    pub block: BlockIndex,
    /// The first slot.
    pub place: Place,
    /// The checksum of each.
    pub sums: Vec<u32>,
}

/// The versions that see a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenBy {
    /// The live volume.
    pub live: bool,
    /// Snapshots.
    pub epochs: Vec<Epoch>,
}

/// A scrub's query of one of a share's partitions, with the sender of the answer.
pub enum Question {
    /// [`Share::slots_from`].
    SlotsFrom {
        /// The partition's number on the share.
        local: LocalIndex,
        /// From here on.
        cursor: Cursor,
        /// The number of slots that is enough.
        blocks_min: u32,
        /// Receives the slots, and where to continue.
        answer: Sender<(Vec<SlotRun>, Option<Cursor>)>,
    },
    /// [`Share::seen_by`].
    SeenBy {
        /// The partition's number on the share.
        local: LocalIndex,
        /// The block.
        block: BlockIndex,
        /// The slot.
        place: Place,
        /// The checksum of its contents.
        sum: u32,
        /// Receives the versions that see it, if any.
        answer: Sender<Option<SeenBy>>,
    },
}

impl Share {
    /// Answers a query; the caller may wait no longer.
    pub fn answer(&self, question: Question) {
        match question {
            Question::SlotsFrom { local, cursor, blocks_min, answer } => {
                let _ = answer.send(self.slots_from(local, cursor, blocks_min));
            }
            Question::SeenBy { local, block, place, sum, answer } => {
                let _ = answer.send(self.seen_by(local, block, place, sum));
            }
        }
    }

    /// Slots of a partition from `cursor` on, at least `blocks_min` if there are that many, and where to continue;
    /// `None` at the end.
    pub fn slots_from(
        &self,
        local: LocalIndex,
        cursor: Cursor,
        blocks_min: u32,
    ) -> (Vec<SlotRun>, Option<Cursor>) {
        let versions = &self.locals[local.index()].versions;
        let (mut runs, mut blocks, mut looks) = (Vec::new(), 0, 0);
        let frozen = versions.frozen();
        for leaf in cursor.leaf..leaves(versions.live.blocks()) as u32 {
            let from = if leaf == cursor.leaf { cursor.epoch } else { 0 };
            let first = frozen.partition_point(|version| version.last_epoch < from);
            for index in first..=frozen.len() {
                if blocks >= blocks_min || looks >= LOOKS_MAX {
                    // A version that is frozen before the next call is no longer the live one.
                    let behind = index.checked_sub(1).map_or(0, |i| frozen[i].last_epoch + 1);
                    return (runs, Some(Cursor { leaf, epoch: behind }));
                }
                looks += 1;
                let map = versions.map(index);
                let before =
                    versions.parent_of(index, &self.history).map(|index| versions.map(index));
                only_here(map, before, leaf, |run| {
                    blocks += run.sums.len() as u32;
                    runs.push(run);
                });
            }
        }
        (runs, None)
    }

    /// The versions that see this block in this slot with this checksum; `None` if none does.
    pub fn seen_by(
        &self,
        local: LocalIndex,
        block: BlockIndex,
        place: Place,
        sum: u32,
    ) -> Option<SeenBy> {
        let versions = &self.locals[local.index()].versions;
        let sees = |map: &Map| {
            let found = map.find(block, 1);
            found.place == place && found.checksums.first() == Some(&sum)
        };
        let epochs =
            self.history.snapshots().iter().copied().filter(|epoch| sees(versions.at(*epoch).0));
        let seen = SeenBy { live: sees(&versions.live), epochs: epochs.collect() };
        (seen.live || !seen.epochs.is_empty()).then_some(seen)
    }
}

/// Calls `f` with all slots that any version sees, each once.
pub fn for_each_slot_run(versions: &Versions, history: &History, mut f: impl FnMut(SlotRun)) {
    let parent = |index| versions.parent_of(index, history).map(|parent| versions.map(parent));
    let maps = (0..=versions.frozen().len()).map(|index| (versions.map(index), parent(index)));
    let maps: Vec<(&Map, Option<&Map>)> = maps.collect();
    for leaf in 0..leaves(versions.live.blocks()) as u32 {
        for (map, parent) in &maps {
            only_here(map, *parent, leaf, &mut f);
        }
    }
}

/// Calls `f` with the slots of a leaf that `map` sees and `before` does not.
fn only_here(map: &Map, before: Option<&Map>, leaf: u32, mut f: impl FnMut(SlotRun)) {
    if before.is_some_and(|before| map.same(before) || map.shares_leaf(before, leaf)) {
        return;
    }
    let end = ((leaf + 1) * LEAF_BLOCKS).min(map.blocks());
    let mut block = leaf * LEAF_BLOCKS;
    while block < end {
        let found = map.find(block, end - block);
        let mut count = found.count;
        let mut seen = false;
        if let Some(before) = before {
            let theirs = before.find(block, count);
            count = theirs.count;
            seen = theirs.place == found.place;
        }
        if found.place.is_slot() && !seen {
            let sums = found.checksums[..count as usize].to_vec();
            f(SlotRun { block, place: found.place, sums });
        }
        block += count;
    }
}
