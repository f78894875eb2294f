//! Zero: a part of TRIM or WRITE_ZEROES.
//!
//! How it works      Complete blocks: a base place that only the live map sees is punched (or zeroed with its space
//!                   kept), if the device supports that; everything else becomes `zero` in the map, which costs one
//!                   record for a run of any length. A clone has nothing to punch. Partial blocks: TRIM leaves them,
//!                   WRITE_ZEROES writes them. A part is done in [pieces](super::pieces): a partial block at its
//!                   beginning, complete blocks of a limited number of runs, as far as a pool thread gets in a limited
//!                   time, and a partial block at its end.

use crate::block_map::place::Place;
use crate::io::device::Device;
use crate::processor::io_job::{Job, NewPlace, Step};
use crate::processor::part::Part;
use crate::processor::share::write::{NoSpace, is_aligned};
use crate::processor::share::{Context, Share};
use crate::request::Verb;
use crate::units::{BLOCK_SIZE, BlockIndex, LocalIndex};

/// How the complete blocks of a part are cleared.
#[derive(Clone, Copy)]
struct ClearMode {
    trim: bool,
    keep_allocated: bool,
}

/// Runs that one piece clears: as many changes of the map, and records.
const RUNS_MAX: u32 = 512;

/// The end of the piece that begins at `from`: it is within one block, or consists of complete ones.
fn piece_end(from: u32, to: u32) -> u32 {
    let block = BLOCK_SIZE as u32;
    let whole = to - to % block;
    match from % block {
        0 if from < whole => whole,
        0 => to,
        _ => to.min(from.next_multiple_of(block)),
    }
}

impl Share {
    pub(super) fn clear(&mut self, mut part: Part, context: &mut Context<'_>) {
        let mode = match part.request.verb {
            Verb::Zero { no_hole, .. } => ClearMode { trim: false, keep_allocated: no_hole },
            _ => ClearMode { trim: true, keep_allocated: false },
        };
        self.freeze(part.local);
        let mut job = self.new_job(&part, true);
        // The last block of a volume ends with the volume, so complete blocks are aligned ones.
        part.cut(piece_end(part.offset, part.offset + part.length));
        let block = BLOCK_SIZE as u32;
        let (from, to) = (part.offset, part.offset + part.length);
        if is_aligned(&part) {
            let end = self.plan_blocks(&mut job, part.local, from / block, to / block, mode);
            part.cut(end * block);
        } else if !mode.trim {
            let (from, to) = (u64::from(from), u64::from(to));
            self.learn_taken(&part);
            let wanted = self.slots_for(part.local, from, to);
            if let Err(NoSpace { wanted }) = self.claim(part.local, wanted) {
                return self.wait_for_space(part, wanted, context);
            }
            self.plan_range(&mut job, &part, from, to);
        }
        job.frees = self.may_free(&part, &job.changes);
        if job.steps.is_empty() {
            return self.finish(part, job, self.epoch, Ok(()), context);
        }
        self.hand_over(part, job, context);
    }

    /// Plans complete blocks from `first` on, up to `end` or to [`RUNS_MAX`] runs; returns where it stopped.
    fn plan_blocks(
        &self,
        job: &mut Job,
        local: LocalIndex,
        first: BlockIndex,
        end: BlockIndex,
        mode: ClearMode,
    ) -> BlockIndex {
        let versions = &self.locals[local.index()].versions;
        let clearing = self.clearing(local, mode);
        let (mut block, mut left) = (first, RUNS_MAX);
        while block < end && left > 0 {
            left -= 1;
            let live = versions.live.find(block, end - block);
            let mut count = live.count;
            let mut only_live = true;
            if live.place == Place::BASE
                && let Some(parent) = versions.parent(&self.history)
            {
                let theirs = parent.find(block, count);
                count = theirs.count;
                only_live = theirs.place != Place::BASE;
            }
            match (live.place, clearing) {
                (Place::ZERO, _) => {}
                (Place::BASE, Some(keep)) if only_live => push_clear(job, block, count, keep),
                // A device that releases no space gains nothing; a clone must not show its origin's data.
                (Place::BASE, None) if only_live && mode.trim && self.origin.is_none() => {}
                _ => push_zero(job, block, count),
            }
            block += count;
        }
        block
    }

    /// Whether all of a partition's devices support punching.
    pub(super) fn can_punch(&self, local: LocalIndex) -> bool {
        self.clearing(local, ClearMode { trim: true, keep_allocated: false }) == Some(false)
    }

    /// How base places of a partition can be cleared without writing them: with their space kept or not, or not at all.
    /// TRIM releases space, so a device that does not support that gains nothing.
    fn clearing(&self, local: LocalIndex, mode: ClearMode) -> Option<bool> {
        if self.origin.is_some() {
            return None; // OR3
        }
        let partition = self.locals[local.index()].partition;
        let extents = &self.geometry.partitions[partition as usize].extents;
        let all = |can: fn(&Device) -> bool| extents.iter().all(|extent| can(&extent.device));
        if !mode.keep_allocated && all(Device::can_punch) {
            return Some(false);
        }
        (!mode.trim && all(Device::can_zero)).then_some(true)
    }
}

fn push_clear(job: &mut Job, block: BlockIndex, count: u32, keep_allocated: bool) {
    let (start, bytes) = (u64::from(block) * BLOCK_SIZE, u64::from(count) * BLOCK_SIZE);
    if let Some(Step::Clear { offset, length, .. }) = job.steps.last_mut()
        && *offset + *length == start
    {
        *length += bytes;
        return;
    }
    job.steps.push(Step::Clear { offset: start, length: bytes, keep_allocated });
}

fn push_zero(job: &mut Job, block: BlockIndex, count: u32) {
    if let Some(last) = job.changes.last_mut()
        && last.place == Place::ZERO
        && last.first + last.count == block
    {
        last.count += count;
        return;
    }
    job.changes.push(NewPlace { first: block, count, place: Place::ZERO, sums: Vec::new() });
}
