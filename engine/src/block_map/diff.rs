//! Diff: what one map refers to and others do not, found by walking only the leaves that they do not share.

use super::leaf::LEAF_BLOCKS;
use super::place::Place;
use super::tree::{Map, leaves};
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
