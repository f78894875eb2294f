//! Relocation: blocks move from slots to their base places, in all versions of a partition that have them there.
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
use super::tree::{Map, Node, Root};
use crate::units::BlockIndex;

/// A node and what it becomes; `None`: it does not have the blocks. The old one is kept as long as it is looked up by its
/// address.
struct Replaced<Old, New> {
    _old: Arc<Old>,
    new: Option<New>,
}

/// Blocks that are relocated. See the module's head.
pub(super) struct Relocation {
    first: BlockIndex,
    count: u32,
    from: Place,
    seq: u64,
    leaves: FxHashMap<*const Leaf, Replaced<Leaf, Node>>,
    roots: FxHashMap<*const Root, Replaced<Root, Arc<Root>>>,
}

impl Relocation {
    /// Of `count` blocks from `first` on, in the slots from `from` on, by record `seq`.
    pub(super) fn new(first: BlockIndex, count: u32, from: Place, seq: u64) -> Relocation {
        let (leaves, roots) = (FxHashMap::default(), FxHashMap::default());
        Relocation { first, count, from, seq, leaves, roots }
    }

    /// Changes a map that has the blocks there.
    pub(super) fn apply(&mut self, map: &mut Map) {
        let key = Arc::as_ptr(&map.root);
        if !self.roots.contains_key(&key) {
            let replaced = Replaced { _old: Arc::clone(&map.root), new: self.replace_root(map) };
            self.roots.insert(key, replaced);
        }
        if let Some(root) = &self.roots[&key].new {
            map.root = Arc::clone(root);
            map.moved_seq = self.seq;
        }
    }

    fn replace_root(&mut self, map: &Map) -> Option<Arc<Root>> {
        let Root::Nodes(nodes) = &*map.root else { return None };
        let mut replaced: Option<Vec<Node>> = None;
        for index in self.first / LEAF_BLOCKS..=(self.first + self.count - 1) / LEAF_BLOCKS {
            // A map that a growth has not reached has fewer.
            let Some(Node::Leaf(leaf)) = nodes.get(index as usize) else { continue };
            if let Some(node) = self.replace_leaf(index, leaf) {
                replaced.get_or_insert_with(|| nodes.clone())[index as usize] = node;
            }
        }
        replaced.map(|nodes| Arc::new(Root::Nodes(nodes)))
    }

    fn replace_leaf(&mut self, index: u32, leaf: &Arc<Leaf>) -> Option<Node> {
        let key = Arc::as_ptr(leaf);
        if !self.leaves.contains_key(&key) {
            let replaced = Replaced { _old: Arc::clone(leaf), new: self.moved(index, leaf) };
            self.leaves.insert(key, replaced);
        }
        self.leaves[&key].new.clone()
    }

    /// A leaf with those of the blocks at their base places that it has in the slots.
    fn moved(&self, index: u32, leaf: &Arc<Leaf>) -> Option<Node> {
        let start = index * LEAF_BLOCKS;
        let end = (start + LEAF_BLOCKS).min(self.first + self.count);
        let mut block = start.max(self.first);
        let mut new: Option<Leaf> = None;
        while block < end {
            let found = leaf.find(block - start, end - block);
            let here = found.count;
            if found.place == self.from.step(block - self.first) {
                let new = new.get_or_insert_with(|| Leaf::clone(leaf));
                new.set(block - start, here, Place::BASE, &[]);
            }
            block += here;
        }
        new.map(|leaf| match leaf.uniform_place() {
            Some(place) => Node::Uniform(place), // TR2
            None => Node::Leaf(Arc::new(leaf)),
        })
    }
}
