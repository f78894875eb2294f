//! Relocation: blocks move to other places, in all versions of a partition that have them at the old ones.
//!
//! How it works      Versions share leaves and roots. Each shared node that has one of the blocks is copied once, and the
//!                   copy is put into every map that had the node, and they share it as before. So after a relocation,
//!                   as before it, two versions have a block at the same place exactly if it is the same change of it
//!                   (V2): a diff, a dirty bitmap and a backup report nothing that has only moved, and miss nothing.
//! Cost              for each version a look at its nodes for these blocks; for each different node one copy.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::leaf::{LEAF_BLOCKS, Leaf};
use super::place::Place;
use super::tree::{Map, Node, Root, nodes_mut};
use crate::units::BlockIndex;

/// Consecutive blocks that move.
#[derive(Clone, Debug)]
pub struct Move {
    /// First block.
    pub first: BlockIndex,
    /// Blocks.
    pub count: u32,
    /// The place of the first one.
    pub from: Place,
    /// Its new place.
    pub to: Place,
    /// The blocks' checksums, if the new places are slots.
    pub sums: Vec<u32>,
}

/// A node and what it becomes; `None`: it does not have the blocks. The old one is kept as long as it is looked up by its
/// address.
struct Replaced<Old, New> {
    _old: Arc<Old>,
    new: Option<New>,
}

/// Blocks that are relocated. See the module's head.
pub(super) struct Relocation<'a> {
    moves: &'a [Move],
    seq: u64,
    leaves: FxHashMap<*const Leaf, Replaced<Leaf, Node>>,
    roots: FxHashMap<*const Root, Replaced<Root, Arc<Root>>>,
}

impl Relocation<'_> {
    /// Of these moves, in order of their blocks, the last of which is record `seq`.
    pub(super) fn new(moves: &[Move], seq: u64) -> Relocation<'_> {
        debug_assert!(moves.windows(2).all(|pair| pair[0].first + pair[0].count <= pair[1].first));
        Relocation { moves, seq, leaves: FxHashMap::default(), roots: FxHashMap::default() }
    }

    /// Changes a map that has blocks at the old places.
    pub(super) fn apply(&mut self, map: &mut Map) {
        let blocks = map.blocks();
        if let Some(root) = Arc::get_mut(&mut map.root) {
            if self.change_root(root, blocks) {
                map.moved_seq = self.seq;
            }
        } else if let Some(root) = self.replaced_root(&map.root, blocks) {
            map.root = root;
            map.moved_seq = self.seq;
        }
    }

    /// What a root becomes that several maps have; `None`: it does not have the blocks.
    fn replaced_root(&mut self, root: &Arc<Root>, blocks: u32) -> Option<Arc<Root>> {
        let key = Arc::as_ptr(root);
        if !self.roots.contains_key(&key) {
            let mut copy = Root::clone(root);
            let new = self.change_root(&mut copy, blocks).then(|| Arc::new(copy));
            self.roots.insert(key, Replaced { _old: Arc::clone(root), new });
        }
        self.roots[&key].new.clone()
    }

    /// Changes a root of so many blocks; whether it had any of the blocks.
    fn change_root(&mut self, root: &mut Root, blocks: u32) -> bool {
        if let Root::Uniform(place) = root
            && self.moves.iter().all(|one| one.from != *place)
        {
            return false;
        }
        let nodes = nodes_mut(root, blocks);
        let (mut next, mut moved) = (0, false);
        for one in self.moves {
            let last = (one.first + one.count - 1) / LEAF_BLOCKS;
            for index in next.max(one.first / LEAF_BLOCKS)..=last {
                next = index + 1;
                // A map that a growth has not reached has fewer.
                let Some(node) = nodes.get_mut(index as usize) else { continue };
                if let Some(new) = self.replaced_node(index, node) {
                    *node = new;
                    moved = true;
                }
            }
        }
        moved
    }

    fn replaced_node(&mut self, index: u32, node: &Node) -> Option<Node> {
        match node {
            Node::Uniform(place) => self.moved(index, &Leaf::uniform(*place)),
            Node::Leaf(leaf) => {
                let key = Arc::as_ptr(leaf);
                if !self.leaves.contains_key(&key) {
                    let replaced =
                        Replaced { _old: Arc::clone(leaf), new: self.moved(index, leaf) };
                    self.leaves.insert(key, replaced);
                }
                self.leaves[&key].new.clone()
            }
        }
    }

    /// A leaf with those of the blocks at their new places that it has at the old ones.
    fn moved(&self, index: u32, leaf: &Leaf) -> Option<Node> {
        let (start, end) = (index * LEAF_BLOCKS, (index + 1) * LEAF_BLOCKS);
        let mut new: Option<Leaf> = None;
        for one in self.moves {
            let end = end.min(one.first + one.count);
            let mut block = start.max(one.first);
            while block < end {
                let found = leaf.find(block - start, end - block);
                let (here, done) = (found.count, block - one.first);
                if found.place == one.from.step(done) {
                    let sums = match one.to.is_slot() {
                        true => &one.sums[done as usize..(done + here) as usize],
                        false => &[],
                    };
                    let new = new.get_or_insert_with(|| Leaf::clone(leaf));
                    new.set(block - start, here, one.to.step(done), sums);
                }
                block += here;
            }
        }
        new.map(|leaf| match leaf.uniform_place() {
            Some(place) => Node::Uniform(place), // TR2
            None => Node::Leaf(Arc::new(leaf)),
        })
    }
}
