//! Tree: one partition's map from block to place; old versions cost only what has changed.
//!
//! How it works      A [`Map`] is a root that refers to leaves of 512 blocks. Cloning a map takes one reference and
//!                   freezes its nodes: a change copies a shared root, then the shared leaf that it changes, and
//!                   nothing else. A part that is all base or all zero has no leaf.
//! Invariants        TR1 a node with more than one reference is never changed (`Arc::make_mut`);
//!                   TR2 a leaf that is all base or all zero does not exist; its node is uniform instead.
//! Owner and locks   the partition's processor owns its maps; any thread may read a clone (checkpoint).

use std::sync::Arc;

use super::leaf::{Found, LEAF_BLOCKS, Leaf};
use super::place::Place;
use crate::units::BlockIndex;

/// One child of the root.
#[derive(Clone, Debug)]
pub enum Node {
    /// All its blocks have this place: base or zero.
    Uniform(Place),
    /// A leaf, perhaps shared with other maps.
    Leaf(Arc<Leaf>),
}

/// A reference to a [`Node`].
#[derive(Clone, Copy, Debug)]
pub enum NodeRef<'a> {
    /// All its blocks have this place.
    Uniform(Place),
    /// A leaf.
    Leaf(&'a Arc<Leaf>),
}

/// The root of a map.
#[derive(Clone, Debug)]
pub(super) enum Root {
    Uniform(Place),
    Nodes(Vec<Node>),
}

/// A partition's map. See the module's head.
#[derive(Clone, Debug)]
pub struct Map {
    pub(super) root: Arc<Root>,
    blocks: u32,
    /// Sequence number of the record of its latest change; 0 if there was none.
    pub write_seq: u64,
    /// The same of the latest relocation of this run, which is no change.
    pub moved_seq: u64,
}

impl Map {
    /// The map of a partition of `blocks` blocks, all at their base place.
    pub fn new(blocks: u32) -> Map {
        let root = Arc::new(Root::Uniform(Place::BASE));
        Map { root, blocks, write_seq: 0, moved_seq: 0 }
    }

    /// A map of these nodes, one for each 512 blocks.
    pub fn from_nodes(blocks: u32, nodes: Vec<Node>, write_seq: u64) -> Map {
        assert_eq!(nodes.len(), leaves(blocks), "one node for each 512 blocks");
        let root = Arc::new(Root::Nodes(nodes));
        Map { root, blocks, write_seq, moved_seq: 0 }.normalized()
    }

    /// Blocks in the partition.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether one of these blocks has this place; of slots, whether a run of them begins there.
    pub fn sees(&self, place: Place, first: BlockIndex, count: u32) -> bool {
        let (mut block, end) = (first, first + count);
        while block < end {
            let found = self.find(block, end - block);
            if found.place == place {
                return true;
            }
            block += found.count;
        }
        false
    }

    /// Whether all of these blocks are at their base places.
    pub fn is_base(&self, first: BlockIndex, count: u32) -> bool {
        let (mut block, end) = (first, first + count);
        while block < end {
            let found = self.find(block, end - block);
            if found.place != Place::BASE {
                return false;
            }
            block += found.count;
        }
        true
    }

    /// The run that contains `block`, from `block` on, at most `limit` blocks. Runs end at leaf borders, except if the
    /// whole map is uniform.
    pub fn find(&self, block: BlockIndex, limit: u32) -> Found<'_> {
        assert!(block < self.blocks && limit > 0, "a look-up is inside the partition");
        let limit = limit.min(self.blocks - block);
        let (leaf, inner) = (block / LEAF_BLOCKS, block % LEAF_BLOCKS);
        match &*self.root {
            Root::Uniform(place) => Found { count: limit, place: *place, checksums: &[] },
            Root::Nodes(nodes) => match &nodes[leaf as usize] {
                Node::Leaf(leaf) => leaf.find(inner, limit),
                Node::Uniform(place) => {
                    Found { count: limit.min(LEAF_BLOCKS - inner), place: *place, checksums: &[] }
                }
            },
        }
    }

    /// The place of one block.
    pub fn place(&self, block: BlockIndex) -> Place {
        self.find(block, 1).place
    }

    /// Sets `count` blocks from `first` on to `place` and the places that follow it; `checksums` has one for each
    /// block of a slot run and is empty otherwise.
    pub fn set(&mut self, first: BlockIndex, count: u32, place: Place, checksums: &[u32]) {
        assert!(count > 0 && count <= self.blocks && first <= self.blocks - count, "in range");
        if count == self.blocks && !place.is_slot() {
            self.root = Arc::new(Root::Uniform(place));
            return;
        }
        let blocks = self.blocks;
        let nodes = nodes_mut(Arc::make_mut(&mut self.root), blocks);
        let mut done = 0;
        while done < count {
            let block = first + done;
            let inner = block % LEAF_BLOCKS;
            let here = (count - done).min(LEAF_BLOCKS - inner);
            let node = &mut nodes[(block / LEAF_BLOCKS) as usize];
            let sums = match place.is_slot() {
                true => &checksums[done as usize..(done + here) as usize],
                false => &[],
            };
            set_node(node, inner, here, place.step(done), sums);
            done += here;
        }
    }

    /// Grows to `blocks` blocks; the new ones are all base or all zero.
    pub fn grow(&mut self, blocks: u32, tail: Place) {
        let old = self.blocks;
        assert!(blocks >= old && !tail.is_slot(), "a partition only grows");
        if blocks == old {
            return;
        }
        self.blocks = blocks;
        if matches!(&*self.root, Root::Uniform(place) if *place == tail) {
            return;
        }
        let nodes = nodes_mut(Arc::make_mut(&mut self.root), old);
        nodes.resize(leaves(blocks), Node::Uniform(tail));
        // The last leaf's entries after the partition's end had no meaning.
        let rest = (old.next_multiple_of(LEAF_BLOCKS).min(blocks)) - old;
        if rest > 0 {
            self.set(old, rest, tail, &[]);
        }
    }

    /// How many blocks are not at their base place.
    pub fn mapped(&self) -> u32 {
        let count = |(first, count, node): (BlockIndex, u32, &Node)| match node {
            Node::Uniform(Place::BASE) => 0,
            Node::Uniform(_) => count,
            // After the partition's end a leaf may have zero.
            Node::Leaf(leaf) => leaf.mapped(count.min(self.blocks - first)),
        };
        match &*self.root {
            Root::Uniform(Place::BASE) => 0,
            Root::Uniform(_) => self.blocks,
            Root::Nodes(nodes) => self.each(nodes).map(count).sum(),
        }
    }

    /// First block, blocks within the partition, and node.
    fn each<'a>(&self, nodes: &'a [Node]) -> impl Iterator<Item = (BlockIndex, u32, &'a Node)> {
        let blocks = self.blocks;
        nodes.iter().enumerate().map(move |(index, node)| {
            let first = index as u32 * LEAF_BLOCKS;
            (first, LEAF_BLOCKS.min(blocks - first), node)
        })
    }

    /// Calls `f(first, count, place)` for every run that is not base, in order.
    pub fn for_each_run(&self, mut f: impl FnMut(BlockIndex, u32, Place)) {
        match &*self.root {
            Root::Uniform(Place::BASE) => {}
            Root::Uniform(place) => f(0, self.blocks, *place),
            Root::Nodes(nodes) => {
                for (first, count, node) in self.each(nodes) {
                    match node {
                        Node::Uniform(Place::BASE) => {}
                        Node::Uniform(place) => f(first, count, *place),
                        // After the partition's end a leaf may have zero.
                        Node::Leaf(leaf) => leaf.for_each_run(|start, run| {
                            if start < count {
                                f(first + start, run.count.min(count - start), run.place);
                            }
                        }),
                    }
                }
            }
        }
    }

    /// The node of the 512 blocks from `leaf * 512`.
    pub fn node(&self, leaf: u32) -> NodeRef<'_> {
        match &*self.root {
            Root::Uniform(place) => NodeRef::Uniform(*place),
            Root::Nodes(nodes) => match &nodes[leaf as usize] {
                Node::Uniform(place) => NodeRef::Uniform(*place),
                Node::Leaf(leaf) => NodeRef::Leaf(leaf),
            },
        }
    }

    /// Whether the whole map has one place, base or zero.
    pub fn is_uniform(&self) -> bool {
        matches!(&*self.root, Root::Uniform(_))
    }

    /// Whether two maps are the same object.
    pub fn same(&self, other: &Map) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    /// Whether the 512 blocks from `leaf * 512` are the same node in both.
    pub fn shares_leaf(&self, other: &Map, leaf: u32) -> bool {
        match (self.node(leaf), other.node(leaf)) {
            (NodeRef::Leaf(a), NodeRef::Leaf(b)) => Arc::ptr_eq(a, b),
            (NodeRef::Uniform(a), NodeRef::Uniform(b)) => a == b,
            _ => false,
        }
    }

    fn normalized(self) -> Map {
        let uniform = match &*self.root {
            Root::Nodes(nodes) => match nodes.first() {
                Some(Node::Uniform(first)) => nodes
                    .iter()
                    .all(|node| matches!(node, Node::Uniform(place) if place == first))
                    .then_some(*first),
                _ => None,
            },
            Root::Uniform(_) => None,
        };
        match uniform {
            Some(place) => Map { root: Arc::new(Root::Uniform(place)), ..self },
            None => self,
        }
    }
}

/// Leaves in a map of `blocks` blocks.
pub fn leaves(blocks: u32) -> usize {
    blocks.div_ceil(LEAF_BLOCKS) as usize
}

/// The nodes of a root of a map of `blocks` blocks, to change.
pub(super) fn nodes_mut(root: &mut Root, blocks: u32) -> &mut Vec<Node> {
    if let Root::Uniform(place) = root {
        *root = Root::Nodes(vec![Node::Uniform(*place); leaves(blocks)]);
    }
    match root {
        Root::Nodes(nodes) => nodes,
        Root::Uniform(_) => unreachable!("it was just replaced"),
    }
}

fn set_node(node: &mut Node, inner: u32, count: u32, place: Place, sums: &[u32]) {
    if count == LEAF_BLOCKS && !place.is_slot() {
        *node = Node::Uniform(place);
        return;
    }
    if let Node::Uniform(old) = node {
        if *old == place {
            return;
        }
        *node = Node::Leaf(Arc::new(Leaf::uniform(*old)));
    }
    let Node::Leaf(leaf) = node else { unreachable!("it was just replaced") };
    Arc::make_mut(leaf).set(inner, count, place, sums); // TR1
    if !place.is_slot()
        && let Some(uniform) = leaf.uniform_place()
    {
        *node = Node::Uniform(uniform); // TR2
    }
}
