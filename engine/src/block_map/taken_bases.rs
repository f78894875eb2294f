//! Taken bases: which base places of a partition some frozen map sees, and the live map does not.
//!
//! How it works      A block that the live map has elsewhere can be written at its base place again when no version sees
//!                   that place. V2 of the [versions](super::versions) does not tell: the versions that see it need not
//!                   be neighbours of the live one. So there is a bitmap for each leaf in which such a block was
//!                   written. It is made from all frozen maps when it is needed first, and then follows the changes: a
//!                   base place becomes taken when the live map leaves it to a frozen one, and free when the last
//!                   version that sees it is released.
//! Memory            about 100 bytes for each leaf in which a block was redirected and written again.
//! Owner and locks   the partition's versions. A clone of these has none: it is made for reading.

use rustc_hash::FxHashMap;

use super::leaf::LEAF_BLOCKS;
use super::place::Place;
use super::tree::{Map, NodeRef};
use crate::units::BlockIndex;

const WORDS: usize = LEAF_BLOCKS as usize / 64;

/// A bit for each block of a leaf.
type Bits = [u64; WORDS];

/// By leaf.
type Leaves = FxHashMap<u32, Box<Bits>>;

/// See the module's head. Most partitions have none, which costs a pointer.
#[derive(Debug, Default)]
pub(super) struct TakenBases(Option<Box<Leaves>>);

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
            known.entry(leaf).or_insert_with(|| {
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
        let bits = self.0.as_ref().and_then(|known| known.get(&leaf));
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
            let Some(bits) = known.get_mut(&leaf) else { continue };
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

    /// Forgets all: the maps have changed in another way.
    pub(super) fn forget(&mut self) {
        self.0 = None;
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
