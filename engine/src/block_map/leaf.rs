//! Leaf: the places and checksums of [`LEAF_BLOCKS`] consecutive blocks.
//!
//! How it works      Two forms: [`runs`] for consecutive places, [`packed`] for scattered ones. A leaf changes to the
//!                   other form when that is smaller: to packed as soon as it is smaller, to runs when it is half as
//!                   large, and then only after enough blocks were set at once that the check is cheap. A block in
//!                   neither is at its base place, and costs only its bit.
//! Memory            runs: 16 bytes for each, and 4 for each block in a slot. Packed: 8 bytes for each block, 2 more if
//!                   they are in several log areas; and about 140 bytes for the leaf.

mod packed;
mod pages;
mod runs;

pub use packed::{PRESENT_WORDS, Packed, PackedParts};
use runs::Runs;

use super::place::Place;

/// Blocks in a leaf.
pub const LEAF_BLOCKS: u32 = 512;
/// Size of a packed leaf without its blocks, beyond that of a leaf of runs, bytes.
const PACKED_BYTES: usize = 64;
/// Size of each block in a packed leaf, bytes.
const PACKED_BLOCK_BYTES: usize = 8;
/// If at least so many blocks were set at once, a packed leaf is checked for runs.
const RUNS_CHECK_BLOCKS: u32 = 16;

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Leaf(Form);

#[derive(Clone, Debug)]
enum Form {
    Runs(Runs),
    Packed(Packed),
}

/// A run found by a look-up.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Length of the run from the requested block on.
    pub count: u32,
    /// The place of the requested block.
    pub place: Place,
    /// CRC-32C of each block's contents, for slots; else empty.
    pub checksums: &'a [u32],
}

impl Leaf {
    /// A leaf whose blocks all have this place, base or zero.
    pub fn uniform(place: Place) -> Leaf {
        let mut runs = Runs::default();
        if place != Place::BASE {
            assert!(!place.is_slot(), "LF2: a slot has a checksum");
            runs.set(0, LEAF_BLOCKS, place, &[]);
        }
        Leaf(Form::Runs(runs))
    }

    /// A leaf in packed form.
    pub fn packed(packed: Packed) -> Leaf {
        Leaf(Form::Packed(packed))
    }

    /// The packed form, if it has that form.
    pub fn as_packed(&self) -> Option<&Packed> {
        match &self.0 {
            Form::Packed(packed) => Some(packed),
            Form::Runs(_) => None,
        }
    }

    /// The run that contains `block`, from `block` on, at most `limit` blocks.
    pub fn find(&self, block: u32, limit: u32) -> Found<'_> {
        debug_assert!(block < LEAF_BLOCKS && limit > 0);
        let limit = limit.min(LEAF_BLOCKS - block);
        match &self.0 {
            Form::Runs(runs) => runs.find(block, limit),
            Form::Packed(packed) => packed.find(block, limit),
        }
    }

    /// Sets `count` blocks from `start` on to `place` and the places that follow it.
    pub fn set(&mut self, start: u32, count: u32, place: Place, sums: &[u32]) {
        debug_assert!(count > 0 && start + count <= LEAF_BLOCKS);
        assert_eq!(sums.len(), if place.is_slot() { count as usize } else { 0 }, "LF2");
        if count == LEAF_BLOCKS {
            self.0 = Form::Runs(Runs::default());
        }
        match &mut self.0 {
            Form::Runs(runs) => {
                runs.set(start, count, place, sums);
                let mapped = runs.mapped(LEAF_BLOCKS) as usize;
                if runs_bytes(runs.count(), runs.checksums()) > packed_bytes(mapped) {
                    self.pack();
                }
            }
            Form::Packed(packed) => {
                packed.set(start, count, place, sums);
                let mapped = packed.count();
                if (count >= RUNS_CHECK_BLOCKS || mapped < RUNS_CHECK_BLOCKS as usize)
                    && runs_bytes(packed.runs(), mapped) < packed_bytes(mapped) / 2
                {
                    self.unpack();
                }
            }
        }
    }

    /// Calls `f(first, run)` for every run that is not base, in order.
    pub fn for_each_run(&self, f: impl FnMut(u32, Found<'_>)) {
        match &self.0 {
            Form::Runs(runs) => runs.for_each_run(f),
            Form::Packed(packed) => packed.for_each_run(f),
        }
    }

    /// How many of the blocks before `end` are not at their base place.
    pub fn mapped(&self, end: u32) -> u32 {
        match &self.0 {
            Form::Runs(runs) => runs.mapped(end),
            Form::Packed(packed) => packed.rank(end) as u32,
        }
    }

    /// The common place of all blocks, if that is base or zero.
    pub fn uniform_place(&self) -> Option<Place> {
        match &self.0 {
            Form::Runs(runs) => {
                let first = runs.find(0, LEAF_BLOCKS);
                (first.count == LEAF_BLOCKS && !first.place.is_slot()).then_some(first.place)
            }
            Form::Packed(packed) => packed.uniform_place(),
        }
    }

    fn pack(&mut self) {
        let mut packed = Packed::default();
        self.for_each_run(|start, run| packed.set(start, run.count, run.place, run.checksums));
        self.0 = Form::Packed(packed);
    }

    fn unpack(&mut self) {
        let mut runs = Runs::default();
        self.for_each_run(|start, run| runs.set(start, run.count, run.place, run.checksums));
        self.0 = Form::Runs(runs);
    }
}

fn runs_bytes(runs: usize, checksums: usize) -> usize {
    runs * Runs::RUN_BYTES + checksums * 4
}

fn packed_bytes(blocks: usize) -> usize {
    PACKED_BYTES + blocks * PACKED_BLOCK_BYTES
}
