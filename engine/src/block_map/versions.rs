//! Versions: a partition's live map and the frozen maps that its snapshots see.
//!
//! How it works      A cut of epoch e changes nothing here. The first change of a later epoch freezes: it
//!                   keeps a reference to the live map as it was, for every snapshot since the last freezing. A
//!                   snapshot reads the first frozen map whose `last_epoch` is not below its own epoch, or
//!                   the live map if there is none. A write that was started in epoch e and lands after a
//!                   later freezing is put into that frozen map too, and into the live one.
//! Invariants        V1 frozen maps are in order of `last_epoch`, each seen by at least one snapshot;
//!                   V2 a place is seen by an unbroken run of versions: if two versions have it, so has each
//!                      between them. So whether anything but one version sees a place is answered by its
//!                      two neighbours, and whether the live map shares one, by the last frozen map.
//!                   V3 a frozen map changes only by writes of its own epochs, which have landed before its
//!                      snapshot can be read.
//! Why V2 holds      places enter by changes of the live map, which never takes a place that any version
//!                   sees: slots are handed out only when free, and a block returns to its base place only
//!                   when there is no frozen map at all.

use std::sync::Arc;

use super::diff::only_in;
use super::place::Place;
use super::tree::Map;
use crate::units::{BlockIndex, Epoch};

/// A map that no longer follows the live one.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The last epoch whose snapshot sees it.
    pub last_epoch: Epoch,
    /// The map.
    pub map: Map,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Versions {
    /// What hosts write to.
    pub live: Map,
    /// Shared with clones until it changes: a checkpoint's costs the same however many snapshots there are.
    frozen: Arc<Vec<Frozen>>,
}

/// A change of a partition's map.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The epoch in which the write was started.
    pub epoch: Epoch,
    /// First block.
    pub first: BlockIndex,
    /// Blocks.
    pub count: u32,
    /// The first block's new place.
    pub place: Place,
    /// Checksums, for slots.
    pub checksums: &'a [u32],
    /// The record's sequence number.
    pub seq: u64,
}

impl Versions {
    /// A partition of `blocks` blocks, all at their base place, never frozen.
    pub fn new(blocks: u32) -> Versions {
        Versions { live: Map::new(blocks), frozen: Arc::default() }
    }

    /// From what a checkpoint holds; `None` if the order is not V1's.
    pub fn from_parts(live: Map, frozen: Vec<Frozen>) -> Option<Versions> {
        let in_order = frozen.windows(2).all(|pair| pair[0].last_epoch < pair[1].last_epoch);
        in_order.then(|| Versions { live, frozen: Arc::new(frozen) })
    }

    /// The frozen maps, oldest first.
    pub fn frozen(&self) -> &[Frozen] {
        &self.frozen
    }

    /// The map that the snapshot of `epoch` sees, and whether it is frozen.
    pub fn at(&self, epoch: Epoch) -> (&Map, bool) {
        let index = self.frozen.partition_point(|frozen| frozen.last_epoch < epoch);
        self.frozen.get(index).map_or((&self.live, false), |frozen| (&frozen.map, true))
    }

    /// The version before the live one: what shares places with it, if anything does (V2).
    pub fn parent(&self) -> Option<&Map> {
        self.frozen.last().map(|frozen| &frozen.map)
    }

    /// Freezes the live map if the newest snapshot before `epoch` does not have its map yet. Before any change
    /// of `epoch`, in-place writes included. `snapshots` are the volume's, in order.
    ///
    /// When records are replayed, one of a later epoch may have come first (its write landed earlier): then there is a
    /// frozen map, but `epoch`'s snapshot and older ones see the same, and they part here.
    pub fn freeze_before(&mut self, epoch: Epoch, snapshots: &[Epoch]) {
        let before = snapshots.partition_point(|snapshot| *snapshot < epoch);
        let Some(newest) = before.checked_sub(1).map(|index| snapshots[index]) else { return };
        let index = self.frozen.partition_point(|frozen| frozen.last_epoch < newest);
        match self.frozen.get(index) {
            None => {
                let map = self.live.clone();
                Arc::make_mut(&mut self.frozen).push(Frozen { last_epoch: newest, map });
            }
            Some(next) if next.last_epoch >= epoch => {
                let map = next.map.clone();
                Arc::make_mut(&mut self.frozen).insert(index, Frozen { last_epoch: newest, map });
            }
            Some(_) => {}
        }
    }

    /// The partition has `blocks` blocks from now on: the new ones are at their base place in the live map, and the
    /// snapshots, which do not show them, have zeroes there. So writing them redirects nothing.
    pub fn grow(&mut self, blocks: u32, snapshots: &[Epoch]) {
        if let Some(newest) = snapshots.last() {
            self.freeze_before(newest + 1, snapshots);
        }
        if !self.frozen.is_empty() {
            let frozen = Arc::make_mut(&mut self.frozen).iter_mut();
            frozen.for_each(|frozen| frozen.map.grow(blocks, Place::ZERO));
        }
        self.live.grow(blocks, Place::BASE);
    }

    /// Snapshots up to `epoch` do not show the blocks from `from` on: they have zeroes there, as [`Versions::grow`]
    /// left it. For what was read back, and for partitions that are new.
    pub fn hide(&mut self, epoch: Epoch, snapshots: &[Epoch], from: BlockIndex) {
        if snapshots.first().is_none_or(|oldest| *oldest > epoch) {
            return;
        }
        self.freeze_before(epoch + 1, snapshots);
        let hidden = |frozen: &&mut Frozen| frozen.last_epoch <= epoch;
        for frozen in Arc::make_mut(&mut self.frozen).iter_mut().take_while(hidden) {
            let blocks = frozen.map.blocks();
            frozen.map.set(from, blocks - from, Place::ZERO, &[]);
        }
    }

    /// Makes a change in the live map and in the frozen maps of its epoch and later ones (V3). Calls `freed` for
    /// each run that it replaces and that no version sees any more.
    pub fn apply(&mut self, change: Change<'_>, mut freed: impl FnMut(BlockIndex, u32, Place)) {
        let older = self.frozen.partition_point(|frozen| frozen.last_epoch < change.epoch);
        let parent = older.checked_sub(1).map(|index| &self.frozen[index].map);
        let end = change.first + change.count;
        let mut block = change.first;
        while block < end {
            let old = self.live.find(block, end - block);
            let mut count = old.count;
            let mut seen = false;
            if let Some(parent) = parent {
                let theirs = parent.find(block, count);
                count = count.min(theirs.count);
                seen = theirs.place == old.place;
            }
            let stays = old.place == change.place.step(block - change.first);
            if !seen && !stays {
                freed(block, count, old.place);
            }
            block += count;
        }
        let late = match older < self.frozen.len() {
            true => &mut Arc::make_mut(&mut self.frozen)[older..],
            false => &mut [],
        };
        let maps = late.iter_mut().map(|frozen| &mut frozen.map);
        for map in maps.chain(std::iter::once(&mut self.live)) {
            map.set(change.first, change.count, change.place, change.checksums);
            map.write_seq = change.seq;
        }
    }

    /// Lets go of the frozen maps that none of `snapshots` (the volume's remaining ones, in order) sees. Calls
    /// `freed` for each run that only they saw.
    pub fn prune(&mut self, snapshots: &[Epoch], mut freed: impl FnMut(BlockIndex, u32, Place)) {
        let mut index = 0;
        let mut after: Epoch = 0;
        while index < self.frozen.len() {
            let last = self.frozen[index].last_epoch;
            if seen(snapshots, after, last) {
                after = last;
                index += 1;
                continue;
            }
            self.let_go(index, &mut freed);
        }
    }

    /// Lets go of the frozen map that the snapshot of `epoch` has seen, which is none of `snapshots` any more (the
    /// volume's remaining ones, in order), if no other sees it. As [`Versions::prune`] does, without looking at others.
    pub fn forget(
        &mut self,
        epoch: Epoch,
        snapshots: &[Epoch],
        mut freed: impl FnMut(BlockIndex, u32, Place),
    ) {
        let index = self.frozen.partition_point(|frozen| frozen.last_epoch < epoch);
        let Some(frozen) = self.frozen.get(index) else { return };
        let after = index.checked_sub(1).map_or(0, |before| self.frozen[before].last_epoch);
        if !seen(snapshots, after, frozen.last_epoch) {
            self.let_go(index, &mut freed);
        }
    }

    fn let_go(&mut self, index: usize, freed: &mut impl FnMut(BlockIndex, u32, Place)) {
        let gone = Arc::make_mut(&mut self.frozen).remove(index);
        let next = self.frozen.get(index).map_or(&self.live, |frozen| &frozen.map);
        let previous = index.checked_sub(1).map(|before| &self.frozen[before].map);
        match previous {
            Some(previous) => only_in(&gone.map, &[previous, next], freed),
            None => only_in(&gone.map, &[next], freed),
        }
    }

    /// Whether any version sees the block at its base place.
    pub fn sees_base(&self, block: BlockIndex) -> bool {
        self.live.place(block) == Place::BASE
            || self.frozen.iter().any(|frozen| frozen.map.place(block) == Place::BASE)
    }
}

/// Whether one of `snapshots` (in order) is of an epoch above `after` and not above `last`.
fn seen(snapshots: &[Epoch], after: Epoch, last: Epoch) -> bool {
    let first = snapshots.partition_point(|snapshot| *snapshot <= after);
    snapshots.get(first).is_some_and(|snapshot| *snapshot <= last)
}
