//! Versions: a partition's live map and the frozen maps that its snapshots see.
//!
//! How it works      A cut of epoch e changes nothing here. The first change of a later epoch freezes: it stores a
//!                   reference to the live map before the change, for every snapshot since the last freezing. A
//!                   snapshot reads the first frozen map whose `last_epoch` is not below its own epoch, or the live map
//!                   if there is none. A write that was started in epoch e and ends after a later freezing changes that
//!                   frozen map too, and the live one. A rollback makes the live map a reference to the map that the
//!                   snapshot sees. So versions are a tree: the parent of a version is the one from which it was made
//!                   ([`History`]). A version has [counters](super::counters), which are frozen and restored with its
//!                   map.
//! Invariants        V1 frozen maps are in order of `last_epoch`, each seen by at least one retained epoch of the
//!                   history;
//!                   V2 the versions that have a place are connected in the tree: if two have it, so has each on the
//!                      path between them. So its parent and its children tell whether another version sees a place of
//!                      a version, and the parent alone whether the live map shares one.
//!                   V3 a frozen map changes only by writes of its own epochs, which have ended before its snapshot can
//!                      be read, and by [relocation](super::relocation), which changes no contents.
//!                   V4 a version that is released has at most one child, so that V2 holds without it: the target of a
//!                      rollback stays (RB2).
//! Why V2 holds      places enter by changes of the live map, which never gets a place that any version sees: slots are
//!                   allocated only when free, and a block returns to its base place only when that is not
//!                   [taken](super::taken_bases). A rollback gives the live map the places of its parent. Relocation
//!                   changes a place in all versions that have it.

mod bases;

use std::sync::Arc;

use super::counters::{Counters, LiveCounters};
use super::diff::only_in;
use super::history::{History, Rollback};
use super::place::Place;
use super::taken_bases::TakenBases;
use super::tree::Map;
use crate::units::{BlockIndex, Epoch};

/// A map that no longer follows the live one.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The last epoch whose snapshot sees it.
    pub last_epoch: Epoch,
    /// The map.
    pub map: Map,
    /// Its counters: final when the writes of its epochs have ended.
    pub counters: Counters,
}

/// Flipped in `write_seq` when a map changes without a record, so that cached usage is invalidated.
const CONTENTS_DROPPED_BIT: u64 = 1 << 63;

impl Map {
    /// The number of the latest record that changed it.
    pub fn recorded_seq(&self) -> u64 {
        self.write_seq & !CONTENTS_DROPPED_BIT
    }
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Versions {
    /// The live map.
    pub live: Map,
    /// Its counters.
    counters: LiveCounters,
    /// Shared with clones until it changes: the cost of a clone for a checkpoint does not depend on the number of
    /// snapshots.
    frozen: Arc<Vec<Frozen>>,
    taken: TakenBases,
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

/// The newest snapshot older than an epoch; `snapshots` are in order.
fn newest_before(epoch: Epoch, snapshots: &[Epoch]) -> Option<Epoch> {
    match snapshots {
        [.., last] if *last < epoch => Some(*last),
        all => all[..all.partition_point(|snapshot| *snapshot < epoch)].last().copied(),
    }
}

impl Versions {
    /// A partition of `blocks` blocks, all at their base place, never frozen.
    pub fn new(blocks: u32) -> Versions {
        let counters = LiveCounters::default();
        let taken = TakenBases::default();
        Versions { live: Map::new(blocks), counters, frozen: Arc::default(), taken }
    }

    /// Builds versions from a checkpoint's contents; `None` if they are not in the order of V1.
    pub fn from_parts(live: Map, counters: Counters, frozen: Vec<Frozen>) -> Option<Versions> {
        let in_order = frozen.windows(2).all(|pair| pair[0].last_epoch < pair[1].last_epoch);
        let frozen = Arc::new(frozen);
        let (unknown, taken) = (LiveCounters::default(), TakenBases::default());
        let mut versions = Versions { live, counters: unknown, frozen, taken };
        versions.counters.set(counters);
        in_order.then_some(versions)
    }

    /// The frozen maps, oldest first.
    pub fn frozen(&self) -> &[Frozen] {
        &self.frozen
    }

    /// The map that the snapshot of `epoch` sees, and whether it is frozen.
    pub fn at(&self, epoch: Epoch) -> (&Map, bool) {
        let index = self.first_from(epoch);
        self.frozen.get(index).map_or((&self.live, false), |frozen| (&frozen.map, true))
    }

    /// The counters of the live map.
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// The counters of the map that the snapshot of `epoch` sees.
    pub fn counters_at(&self, epoch: Epoch) -> Counters {
        let frozen = self.frozen.get(self.first_from(epoch));
        frozen.map_or_else(|| self.counters.get(), |frozen| frozen.counters)
    }

    /// Counts a change that was started in `epoch`, which [`Versions::freeze_before`] has prepared for: for its epoch and
    /// later ones.
    pub fn count(&mut self, epoch: Epoch, counted: Counters) {
        let older = self.first_from(epoch);
        if older < self.frozen.len() {
            let late = Arc::make_mut(&mut self.frozen)[older..].iter_mut();
            late.for_each(|frozen| frozen.counters.add(counted));
        }
        let mut live = self.counters.get();
        live.add(counted);
        self.counters.set(live);
    }

    /// Counts a change of the current epoch, for which [`Versions::is_frozen_before`] holds, while other threads may
    /// count others.
    pub fn count_shared(&self, counted: Counters) {
        self.counters.add_shared(counted);
    }

    /// Restores the counters that the version of `epoch` had when that epoch's writes had ended. Later versions have
    /// at least these. If they have changed since the snapshot before, that one sees another version.
    pub fn restore_counters(&mut self, epoch: Epoch, counters: Counters, snapshots: &[Epoch]) {
        if counters.written_bytes > self.counters_at(epoch).written_bytes {
            self.freeze_before(epoch, snapshots);
        }
        let raised = |known: Counters| {
            if counters.written_bytes > known.written_bytes { counters } else { known }
        };
        let older = self.first_from(epoch);
        if older < self.frozen.len() {
            let later = Arc::make_mut(&mut self.frozen)[older..].iter_mut();
            later.for_each(|frozen| frozen.counters = raised(frozen.counters));
        }
        self.counters.set(raised(self.counters.get()));
    }

    /// Index of the first frozen map whose `last_epoch` is not below this epoch. Except for readers of snapshots it is
    /// one of the newest, or none, so these are searched first.
    pub fn first_from(&self, epoch: Epoch) -> usize {
        let below = |frozen: &Frozen| frozen.last_epoch < epoch;
        match &self.frozen[..] {
            [.., last] if below(last) => self.frozen.len(),
            [.., before, _] if below(before) => self.frozen.len() - 1,
            all => all.partition_point(below),
        }
    }

    /// The live map's parent: the only frozen map that may share places with it (V2).
    pub fn parent(&self, history: &History) -> Option<&Map> {
        self.parent_of(self.frozen.len(), history).map(|index| &self.frozen[index].map)
    }

    /// The parent of a version; the live one has the index after the frozen ones.
    pub fn parent_of(&self, index: usize, history: &History) -> Option<usize> {
        self.descent_of(index, history).map(|(parent, _)| parent)
    }

    /// The parent of a version, and the epoch of the parent's snapshot after which the version began.
    pub fn descent_of(&self, index: usize, history: &History) -> Option<(usize, Epoch)> {
        let before = index.checked_sub(1).map(|before| (before, self.frozen[before].last_epoch));
        if history.rollbacks().is_empty() {
            return before;
        }
        let after = before.map_or(0, |(_, last)| last);
        // The first epoch that it shows; a version that is about to be released may have none.
        let last = self.frozen.get(index).map_or(Epoch::MAX, |frozen| frozen.last_epoch);
        let mark = history.retained_epochs().partition_point(|mark| *mark <= after);
        let first = history.retained_epochs().get(mark).map_or(last, |mark| last.min(*mark));
        match history.rollback_before(first) {
            Some(rollback) if after <= rollback.at => {
                let parent = self.first_from(rollback.to);
                (rollback.to != 0).then_some((parent, rollback.to))
            }
            _ => before,
        }
    }

    /// A version's parent and children: the only versions that may share places with it (V2).
    pub fn neighbours(&self, index: usize, history: &History) -> Vec<usize> {
        let mut found: Vec<usize> = self.parent_of(index, history).into_iter().collect();
        let first_of = |at: Epoch| self.frozen.partition_point(|frozen| frozen.last_epoch <= at);
        let lines = history.rollbacks().iter().map(|rollback| first_of(rollback.at));
        let mut children: Vec<usize> = lines
            .chain(std::iter::once(index + 1))
            .filter(|child| *child > index && *child <= self.frozen.len())
            .filter(|child| self.parent_of(*child, history) == Some(index))
            .collect();
        children.sort_unstable();
        children.dedup();
        found.extend(children);
        found
    }

    /// A version's map; the live one has the index after the frozen ones.
    pub fn map(&self, index: usize) -> &Map {
        self.frozen.get(index).map_or(&self.live, |frozen| &frozen.map)
    }

    /// Rolls back, by record `seq`: the live map becomes the map that the snapshot sees. `history` is the one before.
    /// Calls `freed` for each run that only the live map saw.
    pub fn roll_back(
        &mut self,
        rollback: Rollback,
        history: &History,
        seq: u64,
        freed: impl FnMut(BlockIndex, u32, Place),
    ) {
        self.freeze_before(rollback.at + 1, history.retained_epochs());
        let index = self.first_from(rollback.to);
        let Some(target) = self.frozen.get(index) else { return }; // nothing has changed since the snapshot
        let mut live = target.map.clone();
        // Where nothing has changed since the snapshot, it is not a change.
        let mut changed = target.map.recorded_seq() != self.live.recorded_seq();
        if !changed {
            only_in(&self.live, &[&target.map], |_, _, _| changed = true);
        }
        if changed {
            live.write_seq = self.live.write_seq.max(seq);
        }
        self.counters.set(target.counters);
        let gone = std::mem::replace(&mut self.live, live);
        let parent = self.parent(history).into_iter().collect::<Vec<_>>();
        only_in(&gone, &parent, freed);
        self.taken.forget();
    }

    /// Freezes the live map if the newest snapshot before `epoch` does not have its map yet. Called before any change
    /// of `epoch`, including in-place writes. `snapshots` are the volume's, in order.
    ///
    /// During a replay, a record of a later epoch may have come first (its write ended earlier): then there is a frozen
    /// map, but the snapshot before `epoch` sees the same one as later ones, and it is split here.
    pub fn freeze_before(&mut self, epoch: Epoch, snapshots: &[Epoch]) {
        let Some(newest) = newest_before(epoch, snapshots) else { return };
        let index = self.first_from(newest);
        match self.frozen.get(index) {
            None => {
                let (map, counters) = (self.live.clone(), self.counters.get());
                let frozen = Frozen { last_epoch: newest, map, counters };
                Arc::make_mut(&mut self.frozen).push(frozen);
            }
            Some(next) if next.last_epoch >= epoch => {
                let frozen = Frozen { last_epoch: newest, ..next.clone() };
                Arc::make_mut(&mut self.frozen).insert(index, frozen);
            }
            Some(_) => {}
        }
    }

    /// Whether [`Versions::freeze_before`] would change nothing.
    pub fn is_frozen_before(&self, epoch: Epoch, snapshots: &[Epoch]) -> bool {
        let Some(newest) = newest_before(epoch, snapshots) else { return true };
        let index = self.first_from(newest);
        self.frozen.get(index).is_some_and(|next| next.last_epoch < epoch)
    }

    /// Grows the partition to `blocks` blocks: the new ones are at their base place in the live map, and zero in the
    /// maps of snapshots, which do not show them. So writing them redirects nothing.
    pub fn grow(&mut self, blocks: u32, snapshots: &[Epoch]) {
        // In the current epoch. A frozen map that the newest snapshot sees may be of a later epoch, which is gone:
        // splitting it would leave a map that no retained epoch sees (V1), and hide the descent of versions before a
        // rollback.
        self.freeze_before(Epoch::MAX, snapshots);
        if !self.frozen.is_empty() {
            let frozen = Arc::make_mut(&mut self.frozen).iter_mut();
            frozen.for_each(|frozen| frozen.map.grow(blocks, Place::ZERO));
        }
        self.live.grow(blocks, Place::BASE);
        self.taken.forget();
    }

    /// Hides the blocks from `from` on from snapshots up to `epoch`: they are zero there, as after [`Versions::grow`].
    /// For recovered versions and for new partitions.
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
        self.taken.forget();
    }

    /// Makes a change in the live map and in the frozen maps of its epoch and later ones (V3). Calls `freed` for
    /// each replaced run that no version sees any more.
    pub fn apply(
        &mut self,
        change: Change<'_>,
        history: &History,
        freed: impl FnMut(BlockIndex, u32, Place),
    ) {
        self.apply_with_hint(change, history, |_, _| false, freed);
    }

    /// Like [`Versions::apply`]; `known_unshared` returns whether it is known that no frozen map shares a run of the
    /// live map, so that none has to be searched.
    pub fn apply_with_hint(
        &mut self,
        change: Change<'_>,
        history: &History,
        known_unshared: impl Fn(Place, u32) -> bool,
        mut freed: impl FnMut(BlockIndex, u32, Place),
    ) {
        let older = self.first_from(change.epoch);
        let parent = self.parent_of(older, history).map(|index| &self.frozen[index].map);
        let end = change.first + change.count;
        let mut block = change.first;
        while block < end {
            let old = self.live.find(block, end - block);
            let mut count = old.count;
            let mut seen = false;
            if let Some(parent) = parent
                && !known_unshared(old.place, count)
            {
                let theirs = parent.find(block, count);
                count = count.min(theirs.count);
                seen = theirs.place == old.place;
            }
            let stays = old.place == change.place.step(block - change.first);
            if !seen && !stays {
                freed(block, count, old.place);
            }
            if seen && old.place == Place::BASE {
                self.taken.set(block, count, true);
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

    /// Releases the frozen maps that no retained epoch sees. Calls `freed` for each run that only they saw.
    pub fn prune(&mut self, history: &History, mut freed: impl FnMut(BlockIndex, u32, Place)) {
        let mut index = 0;
        let mut after: Epoch = 0;
        while index < self.frozen.len() {
            let last = self.frozen[index].last_epoch;
            if seen(history.retained_epochs(), after, last) {
                after = last;
                index += 1;
                continue;
            }
            self.drop_frozen(index, history, &mut freed);
        }
    }

    /// Releases the map of the snapshot of `epoch`, which the history no longer has, if no other snapshot sees it. If
    /// the epoch is still retained, only the places are released that neither its parent nor its children have.
    pub fn forget(
        &mut self,
        epoch: Epoch,
        history: &History,
        mut freed: impl FnMut(BlockIndex, u32, Place),
    ) {
        let index = self.first_from(epoch);
        let Some(frozen) = self.frozen.get(index) else { return };
        let after = index.checked_sub(1).map_or(0, |before| self.frozen[before].last_epoch);
        if seen(history.snapshots(), after, frozen.last_epoch) {
            return;
        }
        if !seen(history.retained_epochs(), after, frozen.last_epoch) {
            return self.drop_frozen(index, history, &mut freed);
        }
        let mut alone = Vec::new();
        let others = self.neighbours(index, history);
        let others: Vec<&Map> = others.into_iter().map(|other| self.map(other)).collect();
        only_in(&self.frozen[index].map, &others, |first, count, place| {
            alone.push((first, count, place));
        });
        let hidden = &mut Arc::make_mut(&mut self.frozen)[index].map;
        hidden.write_seq ^= CONTENTS_DROPPED_BIT;
        for (first, count, place) in alone {
            hidden.set(first, count, Place::ZERO, &[]); // it is not read any more
            if place == Place::BASE {
                self.taken.set(first, count, false);
            }
            freed(first, count, place);
        }
    }

    fn drop_frozen(
        &mut self,
        index: usize,
        history: &History,
        freed: &mut impl FnMut(BlockIndex, u32, Place),
    ) {
        let others = self.neighbours(index, history);
        let parents = usize::from(self.parent_of(index, history).is_some());
        debug_assert!(others.len() <= parents + 1, "V4");
        let others: Vec<&Map> = others.into_iter().map(|other| self.map(other)).collect();
        let mut left = Vec::new();
        only_in(&self.frozen[index].map, &others, |first, count, place| {
            freed(first, count, place);
            if place == Place::BASE {
                left.push((first, count));
            }
        });
        left.into_iter().for_each(|(first, count)| self.taken.set(first, count, false));
        Arc::make_mut(&mut self.frozen).remove(index);
        if self.frozen.is_empty() {
            self.taken.forget_all(); // TB1
        }
    }
}

/// Whether one of `snapshots` (in order) is of an epoch above `after` and not above `last`.
fn seen(snapshots: &[Epoch], after: Epoch, last: Epoch) -> bool {
    let first = snapshots.partition_point(|snapshot| *snapshot <= after);
    snapshots.get(first).is_some_and(|snapshot| *snapshot <= last)
}
