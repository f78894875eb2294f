//! Homeward: how many blocks of a partition relocation could bring back to their base places now.
//!
//! How it works      Of the live map's blocks in slots, those whose base places no frozen map sees can go there, unless a
//!                   clone has a copy of a map that has them in the same slots. Base places that are held count as free:
//!                   they soon are. The result is cached under the identities of all maps; it is counted again after any
//!                   change.
//! Owner and locks   as in [`usage`](super::usage): the cache belongs to the caller, the versions are clones.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use super::leaf::LEAF_BLOCKS;
use super::tree::{NodeRef, leaves};
use super::versions::Versions;
use crate::units::{BlockIndex, Epoch};

/// Live blocks in slots, whose base places no version sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Homeward {
    /// They can go home now.
    pub home: u64,
    /// They stay, because a clone has copies of the maps that have them there.
    pub pinned: u64,
}

impl Homeward {
    /// Adds those of another partition.
    pub fn add(&mut self, other: Homeward) {
        self.home += other.home;
        self.pinned += other.pinned;
    }
}

/// The cached result for one partition, and what it was counted from.
#[derive(Clone, Debug, Default)]
pub(super) struct CachedHomeward(Option<(u64, Homeward)>);

impl CachedHomeward {
    /// Counts, unless nothing has changed. `pinned`: the epochs of the snapshots that clones were made from.
    pub(super) fn count(&mut self, versions: &Versions, pinned: &[Epoch]) -> Homeward {
        let from = identity(versions, pinned);
        if let Some((_, found)) = self.0.filter(|(of, _)| *of == from) {
            return found;
        }
        let found = count(versions, pinned);
        self.0 = Some((from, found));
        found
    }
}

/// Identifies the contents of all maps of a partition.
fn identity(versions: &Versions, pinned: &[Epoch]) -> u64 {
    let mut hasher = FxHasher::default();
    for one in versions.frozen() {
        (one.last_epoch, one.map.write_seq, one.map.moved_seq).hash(&mut hasher);
    }
    (versions.live.write_seq, versions.live.moved_seq, versions.live.blocks(), pinned)
        .hash(&mut hasher);
    hasher.finish()
}

fn count(versions: &Versions, pinned: &[Epoch]) -> Homeward {
    let mut found = Homeward::default();
    if versions.live.is_uniform() {
        return found;
    }
    let mut own = versions.clone(); // what it learns is forgotten with it
    for index in 0..leaves(versions.live.blocks()) as u32 {
        let NodeRef::Leaf(leaf) = versions.live.node(index) else { continue };
        let start = index * LEAF_BLOCKS;
        own.learn_taken(start, 1); // of the whole leaf
        leaf.for_each_run(|first, run| {
            if run.place.is_slot() {
                count_run(&own, start + first, run.count, pinned, &mut found);
            }
        });
    }
    found
}

/// Counts blocks that the live map has in consecutive slots.
fn count_run(
    versions: &Versions,
    first: BlockIndex,
    count: u32,
    pinned: &[Epoch],
    found: &mut Homeward,
) {
    let mut done = 0;
    while done < count {
        let block = first + done;
        let (mut here, taken) = versions.base_is_taken(block, count - done);
        if !taken {
            let live = versions.live.place(block);
            let (alike, is_pinned) = versions.any_has(pinned, block, here, |place| place == live);
            here = alike;
            match is_pinned {
                true => found.pinned += u64::from(here),
                false => found.home += u64::from(here),
            }
        }
        done += here;
    }
}
