//! Change logs, as they follow from a partition's versions: nothing is stored of them.
//!
//! How it works      A block that a version has in a slot, and its parent has not there, was redirected after the
//!                   version began (V2: all versions that have it descend from this one). So it belongs to the change
//!                   log that begins with the newest snapshot from which the version descends. If that snapshot is
//!                   deleted, the block is in the log of the snapshot before it. A log without blocks does not exist.
//! Without a slot    a block that became zero is a change too, and one that went back to its base place: a version that
//!                   has it there, and descends from one that has not, did not share that place when it began (V2). The
//!                   blocks that a snapshot does not have, because the volume has grown since, are no changes; and a
//!                   version that no snapshot sees, which only a rollback has kept, may show zeroes that were never
//!                   written, so it is passed over.
//! Owner and locks   the caller's clones.

use std::sync::Arc;

use super::diff::only_in;
use super::history::History;
use super::leaf::LEAF_BLOCKS;
use super::place::Place;
use super::tree::{Map, NodeRef, leaves};
use super::versions::Versions;
use crate::units::{BlockIndex, Epoch};

/// How many blocks of a map are at a place of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaceCounts {
    /// In slots.
    pub slots: u32,
    /// Zero.
    pub zeroes: u32,
    /// At their base place.
    pub bases: u32,
}

/// Counts the first `blocks` blocks of a map by their kind of place.
pub fn count_places(map: &Map, blocks: u32) -> PlaceCounts {
    let mut found = PlaceCounts::default();
    map.for_each_run(|first, count, place| {
        let here = count.min(blocks.saturating_sub(first));
        match place {
            place if place.is_slot() => found.slots += here,
            _ => found.zeroes += here,
        }
    });
    found.bases = blocks - found.slots - found.zeroes;
    found
}

/// Blocks in consecutive slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first block.
    pub block: BlockIndex,
    /// Blocks.
    pub count: u32,
    /// The first block's raw place.
    place: u64,
}

impl Run {
    /// The first block's place.
    pub fn place(&self) -> Place {
        Place::from_raw(self.place).expect("it was a place")
    }
}

/// A partition's change log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeLog {
    /// The epoch of the snapshot with which it begins; 0: it begins with the volume.
    pub begin: Epoch,
    /// Its blocks in slots, in order; a block may occur several times, on several lines.
    pub runs: Vec<Run>,
    /// Blocks that became zero.
    pub zeroes: u64,
    /// Blocks that went back to their base places.
    pub bases: u64,
}

impl ChangeLog {
    /// Blocks in slots.
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Whether it does not exist.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.zeroes == 0 && self.bases == 0
    }
}

/// A partition's versions, with what is needed to attribute their blocks.
pub struct Attribution<'a, F> {
    /// The versions.
    pub versions: &'a Versions,
    /// The volume's history.
    pub history: &'a History,
    /// The blocks that the snapshot of an epoch has of the partition; of `Epoch::MAX`: that it has now.
    pub blocks_at: F,
}

impl<F: Fn(Epoch) -> u32> Attribution<'_, F> {
    /// The change log to which the blocks belong that a version has, and its parent has not.
    pub fn begin_of(&self, index: usize) -> Epoch {
        let descent = self.versions.descent_of(index, self.history);
        descent.map_or(0, |(_, epoch)| self.history.snapshot_until(epoch))
    }

    /// The beginning of the change log that has the block of a version, which is in a slot there.
    pub fn begin_of_block(&self, mut index: usize, block: BlockIndex) -> Epoch {
        let place = self.versions.map(index).place(block);
        while let Some(parent) = self.versions.parent_of(index, self.history)
            && self.versions.map(parent).place(block) == place
        {
            index = parent;
        }
        self.begin_of(index)
    }

    /// The change logs that exist, in order of their beginnings; only that which begins with `begin`, if one is given.
    pub fn change_logs(&self, begin: Option<Epoch>) -> Vec<ChangeLog> {
        let mut found: Vec<ChangeLog> = Vec::new();
        for index in self.candidates(begin) {
            let begins = self.begin_of(index);
            if begin.is_some_and(|begin| begin != begins) {
                continue;
            }
            let at = found.partition_point(|log| log.begin < begins);
            if found.get(at).is_none_or(|log| log.begin != begins) {
                found.insert(at, ChangeLog { begin: begins, ..ChangeLog::default() });
            }
            self.add_version(index, &mut found[at]);
        }
        found.retain(|log| !log.is_empty());
        found
    }

    /// The beginnings of the change logs that exist. Of each only the first block is looked for.
    pub fn beginnings(&self) -> Vec<Epoch> {
        let mut found = Vec::new();
        for index in self.candidates(None) {
            let begins = self.begin_of(index);
            if !found.contains(&begins) && self.adds_any(index) {
                found.push(begins);
            }
        }
        found.sort_unstable();
        found
    }

    /// Whether a version has anything that its parent has not.
    fn adds_any(&self, index: usize) -> bool {
        let parent = self.versions.parent_of(index, self.history);
        let parent = parent.map(|parent| self.versions.map(parent));
        let mut runs = Vec::new();
        added_slots(self.versions.map(index), parent, Wanted::Any, &mut runs);
        let added = |place| self.added(index, place) > 0;
        !runs.is_empty() || (self.is_seen(index) && (added(Place::ZERO) || added(Place::BASE)))
    }

    /// The versions whose blocks may be in the change log that begins with `begin`.
    fn candidates(&self, begin: Option<Epoch>) -> std::ops::Range<usize> {
        let end = self.versions.frozen().len() + 1;
        match begin {
            // Without rollbacks only the version after the snapshot's begins with it.
            Some(begin) if self.history.rollbacks().is_empty() => {
                let first = if begin == 0 { 0 } else { self.versions.first_from(begin) + 1 };
                first..(first + 1).min(end)
            }
            _ => 0..end,
        }
    }

    /// Adds what a version has and its parent has not.
    fn add_version(&self, index: usize, log: &mut ChangeLog) {
        let parent = self.versions.parent_of(index, self.history);
        let map = self.versions.map(index);
        let sorted = log.runs.is_empty();
        let older = parent.map(|parent| self.versions.map(parent));
        added_slots(map, older, Wanted::All, &mut log.runs);
        if !sorted {
            log.runs.sort_unstable();
        }
        if self.is_seen(index) {
            log.zeroes += self.added(index, Place::ZERO);
            log.bases += self.added(index, Place::BASE);
        }
    }

    /// Whether a snapshot, or the live volume, sees a version.
    fn is_seen(&self, index: usize) -> bool {
        let Some(frozen) = self.versions.frozen().get(index) else { return true };
        let after =
            index.checked_sub(1).map_or(0, |before| self.versions.frozen()[before].last_epoch);
        let snapshots = self.history.snapshots();
        let next = snapshots.partition_point(|snapshot| *snapshot <= after);
        snapshots.get(next).is_some_and(|snapshot| *snapshot <= frozen.last_epoch)
    }

    /// The blocks that the snapshots have that see a version.
    fn blocks_of(&self, index: usize) -> u32 {
        let last = self.versions.frozen().get(index).map_or(Epoch::MAX, |one| one.last_epoch);
        (self.blocks_at)(last).min(self.versions.map(index).blocks())
    }

    /// How many blocks are zero in a version, or at their base places, and are not in the version from which it
    /// descends. At its base place is where a block begins, in a new partition or after growth.
    fn added(&self, index: usize, wanted: Place) -> u64 {
        let mut parent = self.versions.parent_of(index, self.history);
        while let Some(hidden) = parent.filter(|parent| !self.is_seen(*parent)) {
            parent = self.versions.parent_of(hidden, self.history);
        }
        let (map, blocks) = (self.versions.map(index), self.blocks_of(index));
        let mut added = 0;
        let mut add = |first: u32, count: u32, from: u32| {
            let (first, end) = (first.max(from), (first + count).min(blocks));
            added += u64::from(end.saturating_sub(first));
        };
        let Some(parent) = parent else {
            map.for_each_run(|first, count, place| {
                if place == wanted {
                    add(first, count, 0);
                }
            });
            return added;
        };
        let (older, known) = (self.versions.map(parent), self.blocks_of(parent).min(blocks));
        only_in(map, &[older], |first, count, place| {
            if place == wanted {
                add(first, count.min(known.saturating_sub(first)), 0);
            }
        });
        // The blocks after these are not the older one's, whatever its map has there.
        if known < blocks {
            map.for_each_run(|first, count, place| {
                if place == wanted {
                    add(first, count, known);
                }
            });
        }
        added
    }
}

/// How much of what was added is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// Whether there is anything.
    Any,
}

/// Appends the runs of slots that `map` has and `parent` has not, in order of their blocks.
fn added_slots(map: &Map, parent: Option<&Map>, wanted: Wanted, runs: &mut Vec<Run>) {
    if parent.is_some_and(|parent| map.same(parent)) {
        return;
    }
    for leaf in 0..leaves(map.blocks()) as u32 {
        if wanted == Wanted::Any && !runs.is_empty() {
            return;
        }
        let NodeRef::Leaf(mine) = map.node(leaf) else { continue };
        let theirs = match parent.map(|parent| parent.node(leaf)) {
            Some(NodeRef::Leaf(theirs)) if Arc::ptr_eq(mine, theirs) => continue,
            Some(NodeRef::Leaf(theirs)) => Some(theirs),
            _ => None,
        };
        let first = leaf * LEAF_BLOCKS;
        mine.for_each_run(|start, run| {
            if !run.place.is_slot() {
                return;
            }
            let Some(theirs) = theirs else {
                return push(runs, first + start, run.count, run.place);
            };
            let mut done = 0;
            while done < run.count {
                let (place, other) =
                    (run.place.step(done), theirs.find(start + done, run.count - done));
                if other.place != place {
                    push(runs, first + start + done, other.count, place);
                }
                done += other.count;
            }
        });
    }
}

/// Appends a run, or makes the last one longer.
fn push(runs: &mut Vec<Run>, block: BlockIndex, count: u32, place: Place) {
    match runs.last_mut() {
        Some(last)
            if last.block + last.count == block && place.follows(last.place(), last.count) =>
        {
            last.count += count;
        }
        _ => runs.push(Run { block, count, place: place.raw() }),
    }
}

/// Joins runs that follow each other, and cuts them where `breaks` says that a slot does not follow the one before it
/// on a device. Only the first slot of a chunk may be such.
pub fn on_devices(runs: &[Run], chunk_slots: u64, breaks: impl Fn(Place) -> bool) -> Vec<Run> {
    let mut cut: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        let mut done = 0;
        while done < run.count {
            let place = run.place().step(done);
            let in_chunk = place.slot_number().0 % chunk_slots;
            let here = (chunk_slots - in_chunk).min(u64::from(run.count - done)) as u32;
            if in_chunk == 0 && breaks(place) {
                cut.push(Run { block: run.block + done, count: here, place: place.raw() });
            } else {
                push(&mut cut, run.block + done, here, place);
            }
            done += here;
        }
    }
    cut
}
