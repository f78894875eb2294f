//! Leaf: the places and checksums of [`LEAF_BLOCKS`] neighbouring blocks.
//!
//! How it works      Two forms. Runs: sorted, without overlap; what no run covers is at its base place. Dense:
//!                   an entry for each block. A leaf turns dense when it has more than [`RUNS_MAX`] runs.
//! Invariants        L1 runs are in order, not empty, inside the leaf, and never base;
//!                   L2 a slot run has one checksum for each of its blocks, in `checksums`, in order of runs.

use super::place::Place;

/// Blocks in a leaf.
pub const LEAF_BLOCKS: u32 = 512;
/// More runs than this are kept as a dense leaf.
pub const RUNS_MAX: usize = 128;

/// Blocks with consecutive places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block within the leaf.
    pub start: u16,
    /// How many blocks.
    pub count: u16,
    /// Where its checksums start in the leaf's list.
    pub checksums_at: u16,
    /// The first block's place; the others' follow by [`Place::step`].
    pub place: Place,
}

#[derive(Clone, Debug)]
struct Dense {
    places: [Place; LEAF_BLOCKS as usize],
    checksums: [u32; LEAF_BLOCKS as usize],
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Leaf(Form);

#[derive(Clone, Debug)]
enum Form {
    Runs { runs: Vec<Run>, checksums: Vec<u32> },
    Dense(Box<Dense>),
}

/// A run as a look-up finds it.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// How many blocks from the one asked for.
    pub count: u32,
    /// The place of the one asked for.
    pub place: Place,
    /// CRC-32C of each block's contents, for slots; else empty.
    pub checksums: &'a [u32],
}

impl Leaf {
    /// A leaf whose blocks all have this place, base or zero.
    pub fn uniform(place: Place) -> Leaf {
        assert!(!place.is_slot(), "L2: a slot has a checksum");
        let mut runs = Vec::new();
        if place != Place::BASE {
            runs.push(Run { start: 0, count: LEAF_BLOCKS as u16, checksums_at: 0, place });
        }
        Leaf(Form::Runs { runs, checksums: Vec::new() })
    }

    /// The run that `block` is in, from `block` on, at most `limit` blocks.
    pub fn find(&self, block: u32, limit: u32) -> Found<'_> {
        debug_assert!(block < LEAF_BLOCKS && limit > 0);
        let limit = limit.min(LEAF_BLOCKS - block);
        match &self.0 {
            Form::Runs { runs, checksums } => find_run(runs, checksums, block, limit),
            Form::Dense(dense) => find_dense(dense, block, limit),
        }
    }

    /// Puts `count` blocks from `start` at `place` and the places that follow it.
    pub fn set(&mut self, start: u32, count: u32, place: Place, sums: &[u32]) {
        debug_assert!(count > 0 && start + count <= LEAF_BLOCKS);
        assert_eq!(sums.len(), if place.is_slot() { count as usize } else { 0 }, "L2");
        match &mut self.0 {
            Form::Dense(dense) => {
                for i in 0..count {
                    let at = (start + i) as usize;
                    dense.places[at] = place.step(i);
                    dense.checksums[at] = sums.get(i as usize).copied().unwrap_or(0);
                }
            }
            Form::Runs { runs, checksums } => {
                if set_run(runs, checksums, start, count, place, sums) {
                    self.make_dense();
                }
            }
        }
    }

    /// Every run in order, base runs left out, with its checksums.
    pub fn runs(&self) -> Vec<(Run, &[u32])> {
        let mut all = Vec::new();
        let mut block = 0;
        while block < LEAF_BLOCKS {
            let found = self.find(block, LEAF_BLOCKS);
            if found.place != Place::BASE {
                let run = Run {
                    start: block as u16,
                    count: found.count as u16,
                    checksums_at: 0,
                    place: found.place,
                };
                all.push((run, found.checksums));
            }
            block += found.count;
        }
        all
    }

    /// The one place of all blocks, if that is base or zero.
    pub fn uniform_place(&self) -> Option<Place> {
        let first = self.find(0, LEAF_BLOCKS);
        (first.count == LEAF_BLOCKS && !first.place.is_slot()).then_some(first.place)
    }

    fn make_dense(&mut self) {
        let mut dense = Box::new(Dense {
            places: [Place::BASE; LEAF_BLOCKS as usize],
            checksums: [0; LEAF_BLOCKS as usize],
        });
        if let Form::Runs { runs, checksums } = &self.0 {
            for run in runs {
                for i in 0..usize::from(run.count) {
                    dense.places[usize::from(run.start) + i] = run.place.step(i as u32);
                    if run.place.is_slot() {
                        dense.checksums[usize::from(run.start) + i] =
                            checksums[usize::from(run.checksums_at) + i];
                    }
                }
            }
        }
        self.0 = Form::Dense(dense);
    }
}

fn find_run<'a>(runs: &[Run], checksums: &'a [u32], block: u32, limit: u32) -> Found<'a> {
    let after = runs.partition_point(|run| u32::from(run.start) <= block);
    if let Some(run) = after.checked_sub(1).map(|i| &runs[i]) {
        let into = block - u32::from(run.start);
        if into < u32::from(run.count) {
            let count = limit.min(u32::from(run.count) - into);
            let sums = if run.place.is_slot() {
                let at = usize::from(run.checksums_at) + into as usize;
                &checksums[at..at + count as usize]
            } else {
                &[]
            };
            return Found { count, place: run.place.step(into), checksums: sums };
        }
    }
    let gap = runs.get(after).map_or(LEAF_BLOCKS, |run| u32::from(run.start)) - block;
    Found { count: limit.min(gap), place: Place::BASE, checksums: &[] }
}

fn find_dense(dense: &Dense, block: u32, limit: u32) -> Found<'_> {
    let first = dense.places[block as usize];
    let mut count = 1;
    while count < limit && dense.places[(block + count) as usize] == first.step(count) {
        count += 1;
    }
    let at = block as usize;
    let checksums =
        if first.is_slot() { &dense.checksums[at..at + count as usize] } else { &[][..] };
    Found { count, place: first, checksums }
}

/// Rebuilds the list of runs around the new one; says whether it has become too long.
fn set_run(
    runs: &mut Vec<Run>,
    checksums: &mut Vec<u32>,
    start: u32,
    count: u32,
    place: Place,
    sums: &[u32],
) -> bool {
    let end = start + count;
    let mut builder = Builder {
        runs: Vec::with_capacity(runs.len() + 2),
        checksums: Vec::with_capacity(checksums.len() + sums.len()),
    };
    let mut placed = false;
    for run in runs.iter() {
        let (from, to) = (u32::from(run.start), u32::from(run.start) + u32::from(run.count));
        let old = |block: u32| -> &[u32] {
            let at = usize::from(run.checksums_at) + (block - from) as usize;
            if run.place.is_slot() { &checksums[at..] } else { &[] }
        };
        if from < start {
            builder.push(from, to.min(start) - from, run.place, old(from));
        }
        if to > start && !placed {
            builder.push(start, count, place, sums);
            placed = true;
        }
        if to > end {
            let from_here = from.max(end);
            builder.push(
                from_here,
                to - from_here,
                run.place.step(from_here - from),
                old(from_here),
            );
        }
    }
    if !placed {
        builder.push(start, count, place, sums);
    }
    *runs = builder.runs;
    *checksums = builder.checksums;
    runs.len() > RUNS_MAX
}

struct Builder {
    runs: Vec<Run>,
    checksums: Vec<u32>,
}

impl Builder {
    /// Adds a run behind the others, joined with the last where their places follow each other (L1).
    fn push(&mut self, start: u32, count: u32, place: Place, sums: &[u32]) {
        if place == Place::BASE {
            return;
        }
        let checksums_at = self.checksums.len() as u16;
        if place.is_slot() {
            self.checksums.extend_from_slice(&sums[..count as usize]);
        }
        if let Some(last) = self.runs.last_mut() {
            let joins = u32::from(last.start) + u32::from(last.count) == start
                && last.place.step(u32::from(last.count)) == place;
            if joins {
                last.count += count as u16;
                return;
            }
        }
        self.runs.push(Run { start: start as u16, count: count as u16, checksums_at, place });
    }
}
