//! Zero: a part of TRIM or WRITE_ZEROES; and the small verbs CACHE and BLOCK_STATUS.
//!
//! How it works      Whole blocks: what only the live map sees at its base place is punched there (or zeroed with
//!                   its space kept), if the device can; everything else becomes `zero` in the map, which costs a
//!                   record however long the run is. A clone has nothing to be punched. Partial blocks: TRIM leaves them, WRITE_ZEROES writes them.

use std::sync::Arc;

use crate::block_map::leaf::Found;
use crate::block_map::place::Place;
use crate::error::Errno;
use crate::io::device::Device;
use crate::processor::io_job::{Job, NewPlace, Step};
use crate::processor::queue::Part;
use crate::processor::share::{Context, Share};
use crate::processor::write::Starved;
use crate::units::{BLOCK_SIZE, BlockIndex};
use crate::volume::request::{StatusExtent, Verb};
use crate::volume::source::Source;

/// How the whole blocks of a part are cleared.
#[derive(Clone, Copy)]
struct Manner {
    trim: bool,
    keep_allocated: bool,
}

impl Share {
    pub(super) fn clear(&mut self, part: Part, context: &mut Context<'_>) {
        let manner = match part.request.verb {
            Verb::Zero { no_hole, .. } => Manner { trim: false, keep_allocated: no_hole },
            _ => Manner { trim: true, keep_allocated: false },
        };
        self.locals[part.local as usize].versions.freeze_before(self.epoch, self.history.marks());
        let (from, to) = (u64::from(part.offset), u64::from(part.offset) + u64::from(part.length));
        // The last block of a volume ends with it, so whole blocks are aligned ones.
        let (first, end) = (from.next_multiple_of(BLOCK_SIZE), to - to % BLOCK_SIZE);
        let mut job = match self.plan_edges(&part, manner, from, to, first, end) {
            Ok(job) => job,
            Err(Starved { wanted }) => return self.starve(part, wanted, context),
        };
        if first < end {
            let (first, end) = ((first / BLOCK_SIZE) as u32, (end / BLOCK_SIZE) as u32);
            self.plan_blocks(&mut job, part.local, first, end, manner);
        }
        if job.steps.is_empty() {
            return self.finish(part, job, self.epoch, Ok(()), context);
        }
        self.hand_over(part, job, context);
    }

    /// Plans the partial blocks at both ends, if there are enough slots.
    fn plan_edges(
        &mut self,
        part: &Part,
        manner: Manner,
        from: u64,
        to: u64,
        first: u64,
        end: u64,
    ) -> Result<Job, Starved> {
        let mut job = self.new_job(part, true);
        if manner.trim {
            return Ok(job);
        }
        let edges = if first < end { [(from, first), (end, to)] } else { [(from, to), (to, to)] };
        let wanted = edges.iter().map(|(from, to)| self.slots_for(part.local, *from, *to)).sum();
        self.claim(wanted)?;
        for (from, to) in edges {
            // A range inside two blocks without a whole one is planned block by block all the same.
            self.plan_range(&mut job, part, from, to);
        }
        Ok(job)
    }

    /// Plans whole blocks `first..end`.
    fn plan_blocks(
        &self,
        job: &mut Job,
        local: u32,
        first: BlockIndex,
        end: BlockIndex,
        manner: Manner,
    ) {
        let versions = &self.locals[local as usize].versions;
        let clearing = self.clearing(local, manner);
        let mut block = first;
        while block < end {
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
                // A device that gives no space back gains nothing; a clone must not show its source's.
                (Place::BASE, None) if only_live && manner.trim && self.source.is_none() => {}
                _ => push_zero(job, block, count),
            }
            block += count;
        }
    }

    /// Whether all of a partition's devices give freed space back.
    pub(super) fn can_punch(&self, local: u32) -> bool {
        self.clearing(local, Manner { trim: true, keep_allocated: false }) == Some(false)
    }

    /// How base places of a partition can be cleared without writing them: with their space kept or not, or not
    /// at all. TRIM is for giving space back, so a device that cannot gains nothing.
    fn clearing(&self, local: u32, manner: Manner) -> Option<bool> {
        if self.source.is_some() {
            return None; // C3
        }
        let partition = self.locals[local as usize].partition;
        let extents = &self.geometry.partitions[partition as usize].extents;
        let all = |can: fn(&Device) -> bool| extents.iter().all(|extent| can(&extent.device));
        if !manner.keep_allocated && all(Device::can_punch) {
            return Some(false);
        }
        (!manner.trim && all(Device::can_zero)).then_some(true)
    }

    pub(super) fn cache(&mut self, part: Part, context: &mut Context<'_>) {
        let partition = self.locals[part.local as usize].partition;
        let asked = self.for_each_run(&part, |of, found, offset, length, _| {
            if found.place == Place::BASE {
                self.base(of, partition).pieces(
                    offset,
                    length as u64,
                    |device, from, here, _| {
                        device.will_need(from, here);
                        Ok::<(), Errno>(())
                    },
                )?;
            } else if found.place.is_slot() {
                let spot = self.spot(of, found.place);
                spot.device.will_need(spot.offset, length as u64);
            }
            Ok(true)
        });
        self.end(part, asked, context);
    }

    pub(super) fn block_status(&mut self, part: Part, context: &mut Context<'_>) {
        if let Some(contexts) = part.request.contexts.clone() {
            self.find_changes(&part, &contexts);
            if !contexts.allocation {
                return self.end(part, Ok(()), context);
            }
        }
        let mut statuses = Vec::new();
        let request_start = part.request.offset + part.at;
        let part_start = u64::from(part.offset);
        let found = self.for_each_run(&part, |of, found, offset, length, _| {
            let mut push = |from: u64, length: u64, hole: bool| {
                let offset = request_start + (from - part_start);
                statuses.push(StatusExtent { offset, length, hole, zero: hole });
            };
            self.run_status(&part, of, found, offset, length as u64, &mut push)?;
            Ok(true)
        });
        part.request.add_status(&statuses);
        // The answer is about what lies before the first gap: it only has to begin where the request does.
        let begins = part.at > 0 || !statuses.is_empty();
        self.end(part, if begins { Ok(()) } else { found }, context);
    }

    /// Calls `push(offset in the partition, length, hole)` for a run.
    fn run_status(
        &self,
        part: &Part,
        of: Option<&Arc<Source>>,
        found: Found<'_>,
        offset: u64,
        length: u64,
        push: &mut impl FnMut(u64, u64, bool),
    ) -> Result<(), Errno> {
        if found.place != Place::BASE {
            push(offset, length, found.place == Place::ZERO);
            return Ok(());
        }
        let partition = self.locals[part.local as usize].partition;
        self.base(of, partition).pieces(offset, length, |device, from, here, done| {
            let mut at = 0;
            while at < here {
                let (run, hole) = device.allocation(from + at, here - at)?;
                push(offset + done + at, run, hole);
                at += run;
            }
            Ok(())
        })
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
