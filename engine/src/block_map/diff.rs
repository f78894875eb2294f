//! Diff: what one map refers to and others do not, found by walking only the leaves that they do not share.

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

/// Calls `f(count, place)` for every run of slots that `map` refers to, and `previous` does not at the same blocks.
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
