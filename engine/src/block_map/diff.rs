//! Diff: the places to which one map refers and others do not, found by walking only the leaves that they do not share.

use std::ops::Range;
use std::sync::Arc;

use super::leaf::LEAF_BLOCKS;
use super::place::Place;
use super::tree::{Map, NodeRef, leaves};
use crate::units::BlockIndex;

/// Calls `f(first, count, place)` for every run of `map` whose blocks have another place in each of `others`.
/// Runs end at leaf borders.
pub fn only_in(map: &Map, others: &[&Map], mut f: impl FnMut(BlockIndex, u32, Place)) {
    if others.iter().any(|other| map.same(other)) {
        return;
    }
    for leaf in 0..leaves(map.blocks()) as u32 {
        if others.iter().any(|other| map.shares_leaf(other, leaf)) {
            continue;
        }
        let end = ((leaf + 1) * LEAF_BLOCKS).min(map.blocks());
        let mut block = leaf * LEAF_BLOCKS;
        while block < end {
            let mine = map.find(block, end - block);
            let mut count = mine.count;
            let mut seen = false;
            for other in others {
                let theirs = other.find(block, count);
                count = count.min(theirs.count);
                seen |= theirs.place == mine.place;
            }
            if !seen {
                f(block, count, mine.place);
            }
            block += count;
        }
    }
}

/// Calls `f(first, count)`, in order, for every run of blocks of `range` that have another place in one map than in the
/// other. Blocks that only one of them has, because the partition grew between them, differ. Blocks with the same place
/// have the same contents, because both maps read that place. Blocks with different places may still have equal
/// contents.
pub fn differing(a: &Map, b: &Map, range: Range<BlockIndex>, mut f: impl FnMut(BlockIndex, u32)) {
    let common = a.blocks().min(b.blocks());
    let end = if a.same(b) { range.start } else { range.end.min(common) };
    let mut block = range.start;
    while block < end {
        let leaf = block / LEAF_BLOCKS;
        let leaf_end = ((leaf + 1) * LEAF_BLOCKS).min(end);
        if a.shares_leaf(b, leaf) {
            block = leaf_end;
            continue;
        }
        while block < leaf_end {
            let mine = a.find(block, leaf_end - block);
            let theirs = b.find(block, mine.count);
            // Of two runs, either all blocks are at the same place in both or none is.
            if mine.place != theirs.place {
                f(block, theirs.count);
            }
            block += theirs.count;
        }
    }
    let alone = range.start.max(common);
    if alone < range.end {
        f(alone, range.end - alone);
    }
}

/// Calls `f(count, place)` for every run of slots to which `map` refers, and `previous` does not at the same blocks.
pub fn slots_not_in(map: &Map, previous: Option<&Map>, mut f: impl FnMut(u32, Place)) {
    if previous.is_some_and(|previous| map.same(previous)) {
        return;
    }
    for leaf in 0..leaves(map.blocks()) as u32 {
        let NodeRef::Leaf(mine) = map.node(leaf) else { continue };
        let theirs = match previous.map(|previous| previous.node(leaf)) {
            Some(NodeRef::Leaf(theirs)) if Arc::ptr_eq(mine, theirs) => continue,
            Some(NodeRef::Leaf(theirs)) => Some(theirs),
            _ => None,
        };
        mine.for_each_run(|start, run| {
            if !run.place.is_slot() {
                return;
            }
            let Some(theirs) = theirs else { return f(run.count, run.place) };
            let mut done = 0;
            while done < run.count {
                let (place, other) =
                    (run.place.step(done), theirs.find(start + done, run.count - done));
                if other.place != place {
                    f(other.count, place);
                }
                done += other.count;
            }
        });
    }
}
