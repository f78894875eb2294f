//! Taken bases: which base places of a partition some frozen map sees, and the live map does not.
//!
//! How it works      A block that the live map has elsewhere can be written at its base place again when no version sees
//!                   that place. V2 of the [versions](super::versions) does not tell: the versions that see it need not
//!                   be neighbours of the live one. So there is a bitmap for each leaf in which such a block was
//!                   written. It is made from all frozen maps when it is needed first, and then follows the changes: a
//!                   base place becomes taken when the live map leaves it to a frozen one, and free when the last
//!                   version that sees it is released.
//! Held              what snapshots saw at a base place may have moved to a slot. Until the record of that is durable, a
//!                   power loss restores versions that see the base place, so it is held: nothing may use it (TB1).
//! Memory            about 100 bytes for each leaf in which a block was redirected and written again, or was looked at
//!                   by relocation; 16 bytes for each run of base places that is held.
//! Owner and locks   the partition's versions. A clone of these has none: it is made for reading.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::leaf::LEAF_BLOCKS;
use super::place::Place;
use super::tree::{Map, NodeRef};
use crate::units::BlockIndex;

const WORDS: usize = LEAF_BLOCKS as usize / 64;

/// A bit for each block of a leaf.
type Bits = [u64; WORDS];

/// Base places that are held until record `seq` is durable.
#[derive(Debug)]
struct Held {
    seq: u64,
    count: u32,
}

#[derive(Debug, Default)]
struct Known {
    /// By leaf.
    leaves: FxHashMap<u32, Box<Bits>>,
    /// By first block; no two overlap.
    held: BTreeMap<BlockIndex, Held>,
}

/// See the module's head. Most partitions have none, which costs a pointer.
#[derive(Debug, Default)]
pub(super) struct TakenBases(Option<Box<Known>>);

impl Clone for TakenBases {
    fn clone(&self) -> TakenBases {
        TakenBases::default()
    }
}

impl TakenBases {
    /// Makes what is not known yet of the leaves with these blocks.
    pub(super) fn learn<'a>(
        &mut self,
        first: BlockIndex,
        count: u32,
        live: &Map,
        frozen: impl Iterator<Item = &'a Map> + Clone,
    ) {
        let known = self.0.get_or_insert_default();
        for leaf in first / LEAF_BLOCKS..=(first + count - 1) / LEAF_BLOCKS {
            known.leaves.entry(leaf).or_insert_with(|| {
                let theirs = bases_of_all(leaf, frozen.clone());
                let mine = bases(live.node(leaf));
                Box::new(std::array::from_fn(|word| theirs[word] & !mine[word]))
            });
        }
    }

    /// The length of the run from `block`, at most `limit`, for which the answer is the same, and the answer: is the
    /// base place taken? Runs end at leaf borders. What was not learned is taken.
    pub(super) fn run(&self, block: BlockIndex, limit: u32) -> (u32, bool) {
        let (leaf, inner) = (block / LEAF_BLOCKS, block % LEAF_BLOCKS);
        let limit = limit.min(LEAF_BLOCKS - inner);
        let bits = self.0.as_ref().and_then(|known| known.leaves.get(&leaf));
        let Some(bits) = bits else { return (limit, true) };
        let taken = |at: u32| bits[at as usize / 64] >> (at % 64) & 1 == 1;
        let answer = taken(inner);
        let end = (inner + 1..inner + limit).find(|at| taken(*at) != answer);
        (end.map_or(limit, |end| end - inner), answer)
    }

    /// Notes that the live map has left these base places to a frozen map, or that no version sees them any more.
    pub(super) fn set(&mut self, first: BlockIndex, count: u32, taken: bool) {
        let (Some(known), end) = (&mut self.0, first + count) else { return };
        for leaf in first / LEAF_BLOCKS..=(end - 1) / LEAF_BLOCKS {
            let Some(bits) = known.leaves.get_mut(&leaf) else { continue };
            let start = leaf * LEAF_BLOCKS;
            for block in first.max(start)..end.min(start + LEAF_BLOCKS) {
                let (word, bit) = (block % LEAF_BLOCKS / 64, 1 << (block % 64));
                match taken {
                    true => bits[word as usize] |= bit,
                    false => bits[word as usize] &= !bit,
                }
            }
        }
    }

    /// Forgets what was made from the maps: they have changed in another way.
    pub(super) fn forget(&mut self) {
        match &mut self.0 {
            Some(known) if !known.held.is_empty() => known.leaves.clear(),
            _ => self.0 = None,
        }
    }

    /// Forgets everything: there is no frozen map.
    pub(super) fn forget_all(&mut self) {
        self.0 = None;
    }

    /// Holds base places until record `seq` is durable. That is the last record for which one of them is held.
    pub(super) fn hold(&mut self, first: BlockIndex, count: u32, seq: u64) {
        let held = &mut self.0.get_or_insert_default().held;
        let end = first + count;
        // In a replay they may be held for a snapshot that is gone.
        while let Some((start, older)) = held.range(..end).next_back()
            && start + older.count > first
        {
            let (start, older_end, seq) = (*start, start + older.count, older.seq);
            held.remove(&start);
            if older_end > end {
                held.insert(end, Held { seq, count: older_end - end });
            }
            if start < first {
                held.insert(start, Held { seq, count: first - start });
            }
        }
        held.insert(first, Held { seq, count });
    }

    /// Ends the holding of those whose records are durable, up to `committed`.
    pub(super) fn release_held(&mut self, committed: u64) {
        if let Some(known) = &mut self.0 {
            known.held.retain(|_, held| held.seq > committed);
        }
    }

    /// The last record for which one of these base places is held; 0: none is.
    pub(super) fn held_until(&self, first: BlockIndex, count: u32) -> u64 {
        let Some(known) = &self.0 else { return 0 };
        let before = known.held.range(..first).next_back();
        let before = before.filter(|(start, held)| **start + held.count > first);
        let inside = known.held.range(first..first + count);
        before.into_iter().chain(inside).map(|(_, held)| held.seq).max().unwrap_or(0)
    }

    /// The length of the run from `block`, at most `limit`, for which the answer is the same, and the answer: is the
    /// base place held?
    pub(super) fn held_run(&self, block: BlockIndex, limit: u32) -> (u32, bool) {
        let Some(known) = &self.0 else { return (limit, false) };
        if let Some((start, held)) = known.held.range(..=block).next_back()
            && start + held.count > block
        {
            return (limit.min(start + held.count - block), true);
        }
        let next = known.held.range(block..block + limit).next();
        (next.map_or(limit, |(start, _)| start - block), false)
    }
}

/// The blocks of a leaf that any of these maps has at their base places.
fn bases_of_all<'a>(leaf: u32, maps: impl Iterator<Item = &'a Map>) -> Bits {
    let mut found = Bits::default();
    let mut before: Option<&Map> = None;
    for map in maps {
        if before.is_none_or(|before| !map.shares_leaf(before, leaf)) {
            let here = bases(map.node(leaf));
            found = std::array::from_fn(|word| found[word] | here[word]);
        }
        before = Some(map);
    }
    found
}

/// The blocks of a leaf that are at their base places.
fn bases(node: NodeRef<'_>) -> Bits {
    let leaf = match node {
        NodeRef::Uniform(Place::BASE) => return [u64::MAX; WORDS],
        NodeRef::Uniform(_) => return Bits::default(),
        NodeRef::Leaf(leaf) => leaf,
    };
    let mut found = [u64::MAX; WORDS];
    leaf.for_each_run(|first, run| {
        for block in first..first + run.count {
            found[block as usize / 64] &= !(1 << (block % 64));
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::TakenBases;

    proptest! {
        #[test]
        fn held_places_are_found_as_in_a_list_of_single_blocks(
            holds in prop::collection::vec((0..60u32, 1..20u32), 1..12), committed in 0..12u64,
        ) {
            let (mut taken, mut single) = (TakenBases::default(), BTreeMap::new());
            for (seq, (first, count)) in (1..).zip(holds) {
                taken.hold(first, count, seq);
                single.extend((first..first + count).map(|block| (block, seq)));
            }
            taken.release_held(committed);
            single.retain(|_, seq| *seq > committed);
            for block in 0..90 {
                let until = single.get(&block).copied().unwrap_or(0);
                prop_assert_eq!(taken.held_until(block, 1), until);
                let (count, held) = taken.held_run(block, 90 - block);
                prop_assert!(count > 0 && held == (until > 0));
                let alike = |other| single.contains_key(&other) == held;
                prop_assert!((block..block + count).all(alike), "block {}", block);
            }
            let last = single.values().max().copied().unwrap_or(0);
            prop_assert_eq!(taken.held_until(0, 90), last);
        }
    }
}
