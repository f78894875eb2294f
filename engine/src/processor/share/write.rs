//! Write: a part of WRITE.
//!
//! How it works      Block by block: a block that only the live map sees at its base place is overwritten in place. All
//!                   others are redirected: to their base places where no version sees these, else to free slots;
//!                   then a record is appended, then the map changes. Blocks in slots are always redirected, so a slot is
//!                   written once (J1), and its checksum and its record are of one age. A clone has no base places:
//!                   what it shows there is its [origin](crate::geometry::origin)'s, which it never writes.
//! Why moving back to the base place is safe   no version sees the base place, and no recovery finds one that does: a
//!                   snapshot that saw it is gone from the catalog durably before the engine drops it. The live map has
//!                   the block in a slot. Until the record is durable, a power loss restores that slot, which is not
//!                   reused before (J4).

use std::sync::Arc;

use crate::block_map::place::Place;
use crate::change_log::format::RECORD_SUMS_MAX;
use crate::error::Errno;
use crate::geometry::origin::resolve;
use crate::mutants::{Bug, bug};
use crate::processor::io_job::{Frees, Job, NewPlace, Old, Step, Target, write_base, write_slots};
use crate::processor::part::Part;
use crate::processor::share::{Context, Local, Share};
use crate::units::{BLOCK_SIZE, BlockIndex, LocalIndex};

/// A pool thread writes longer parts: the processor has other requests to serve.
pub(super) const INLINE_BYTES_MAX: u32 = 128 << 10;

/// Where the blocks that a part writes are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// Complete blocks, all overwritten at their base places.
    InPlace,
    /// Complete blocks, all redirected to new places.
    Redirected,
    /// Some of each, or partial blocks.
    Mixed,
}

/// The state of a write.
enum Progress {
    /// It was planned.
    Planned(Job),
    /// It was made and recorded, or that failed.
    Done(Result<(), Errno>),
    /// Its data could not be written.
    Failed(Job, Errno),
}

/// There are fewer free slots than a part needs.
pub(super) struct NoSpace {
    pub(super) wanted: u64,
}

impl Share {
    pub(super) fn write(&mut self, part: Part, context: &mut Context<'_>) {
        self.freeze(part.local);
        let placement = self.placement(&part);
        if placement != Placement::InPlace {
            self.learn_taken(&part);
        }
        let small = self.is_small(&part);
        if small && placement == Placement::InPlace {
            match self.overwrite_now(&part) {
                Ok(false) => {} // it would wait
                result => {
                    let result = result.map(|_| ());
                    return self.end_written(part, result, context);
                }
            }
        }
        let inline = small && self.inline;
        let planned = match placement {
            Placement::Redirected if inline => self.redirect_now(&part),
            Placement::Redirected => self.plan_redirects(&part).map(Progress::Planned),
            _ => self.plan_write(&part).map(Progress::Planned),
        };
        match planned {
            Err(NoSpace { wanted }) => self.wait_for_space(part, wanted, context),
            Ok(Progress::Done(result)) => self.end_written(part, result, context),
            Ok(Progress::Failed(job, errno)) => {
                self.finish(part, job, self.epoch, Err(errno), context);
            }
            Ok(Progress::Planned(mut job)) if inline => {
                let result = job.run();
                self.finish(part, job, self.epoch, result, context);
            }
            Ok(Progress::Planned(job)) => self.hand_over(part, job, context),
        }
    }

    /// Freezes what a snapshot sees, before a partition is changed.
    pub(super) fn freeze(&mut self, local: LocalIndex) {
        if !bug(Bug::NoFreeze) {
            let versions = &mut self.locals[local.index()].versions;
            versions.freeze_before(self.epoch, self.history.retained_epochs());
        }
    }

    /// Finds out which base places are free, for blocks of a part that are to be written and are not there.
    pub(super) fn learn_taken(&mut self, part: &Part) {
        let versions = &mut self.locals[part.local.index()].versions;
        let (first, last) = part.blocks();
        if self.origin.is_none() && !versions.live.is_base(first, last - first + 1) {
            versions.learn_taken(first, last - first + 1);
        }
    }

    /// Ends a part that was written on this thread.
    fn end_written(&mut self, part: Part, result: Result<(), Errno>, context: &mut Context<'_>) {
        if result.is_ok() {
            self.count_change(&part, self.epoch, context.wall_ns);
        }
        self.give_back_if_full(result, context);
        self.end(part, result, context);
    }

    /// Where a part's blocks are placed.
    fn placement(&self, part: &Part) -> Placement {
        if !is_aligned(part) {
            return Placement::Mixed;
        }
        let (first, blocks) = complete_blocks(part);
        let (count, in_place) = self.overwritable(part.local, first, blocks);
        match (count == blocks, in_place) {
            (true, true) => Placement::InPlace,
            (true, false) => Placement::Redirected,
            (false, false) if self.moving(part.local, first, blocks) >= blocks => {
                Placement::Redirected
            }
            _ => Placement::Mixed,
        }
    }

    /// Whether a part consists of complete blocks that are all overwritten in place; `placement` distinguishes the
    /// other cases too.
    pub(super) fn is_overwritten(&self, part: &Part) -> bool {
        let (first, blocks) = complete_blocks(part);
        is_aligned(part) && self.overwritable(part.local, first, blocks) == (blocks, true)
    }

    /// Overwrites complete blocks in place.
    pub(super) fn overwrite(&self, part: &Part) -> Result<(), Errno> {
        let partition = self.locals[part.local.index()].partition;
        let partition = &self.geometry.partitions[partition as usize];
        write_base(partition, u64::from(part.offset), payload(part))
    }

    /// The same without waiting; `false` if it would wait, and some of it may be written.
    pub(super) fn overwrite_now(&self, part: &Part) -> Result<bool, Errno> {
        let partition = self.locals[part.local.index()].partition;
        let partition = &self.geometry.partitions[partition as usize];
        let (bytes, mut now) = (payload(part), true);
        partition.pieces(
            u64::from(part.offset),
            bytes.len() as u64,
            |device, from, here, done| {
                now =
                    now && device.write_now(&bytes[done as usize..(done + here) as usize], from)?;
                Ok::<(), Errno>(())
            },
        )?;
        Ok(now)
    }

    /// The length of the run from `block` (at most `limit`) for which the answer is the same, and the answer: may these
    /// blocks be overwritten in place?
    fn overwritable(&self, local: LocalIndex, block: BlockIndex, limit: u32) -> (u32, bool) {
        let versions = &self.locals[local.index()].versions;
        let live = versions.live.find(block, limit);
        if live.place != Place::BASE || self.origin.is_some() {
            return (live.count, false); // OR3
        }
        match versions.parent(&self.history) {
            None => (live.count, true),
            Some(parent) => {
                let theirs = parent.find(block, live.count);
                (theirs.count, theirs.place != Place::BASE)
            }
        }
    }

    /// Plans a write of a part, if there are enough slots.
    fn plan_write(&mut self, part: &Part) -> Result<Job, NoSpace> {
        let mut job = self.new_job(part, false);
        let (from, to) = (u64::from(part.offset), u64::from(part.offset) + u64::from(part.length));
        self.claim(part.local, self.slots_for(part.local, from, to))?;
        self.plan_range(&mut job, part, from, to);
        job.frees = self.may_free(part, &job.changes);
        Ok(job)
    }

    /// Plans a write of complete blocks that are all redirected, if there are enough slots: like `plan_write`, without
    /// checking each block again.
    fn plan_redirects(&mut self, part: &Part) -> Result<Job, NoSpace> {
        self.claim(part.local, self.slots_for_moves(part))?;
        let mut job = self.new_job(part, false);
        self.plan_more_moves(&mut job, part, 0);
        job.frees = self.may_free(part, &job.changes);
        Ok(job)
    }

    /// Plans the rest of a write of complete blocks that are all redirected, after the first `done` ones; the slots for
    /// it were claimed.
    fn plan_more_moves(&mut self, job: &mut Job, part: &Part, done: u32) {
        let (first, blocks) = complete_blocks(part);
        let mut done = done;
        while done < blocks {
            let at = part.at as usize + done as usize * BLOCK_SIZE as usize;
            let (change, count, target) =
                self.plan_change(job, part.local, first + done, blocks - done);
            job.steps.push(Step::WriteWhole { change, target, at });
            done += count;
        }
    }

    /// Writes complete blocks that are all redirected, on this thread, if there are enough slots. If one run is enough,
    /// as it almost always is, no job is allocated.
    fn redirect_now(&mut self, part: &Part) -> Result<Progress, NoSpace> {
        self.claim(part.local, self.slots_for_moves(part))?;
        let (first, blocks) = complete_blocks(part);
        let (place, count) = self.choose_place(part.local, first, blocks);
        let mut sums = std::mem::take(&mut self.sums);
        sums.clear();
        let mut change = NewPlace { first, count, place, sums };
        if count < blocks {
            let mut job = self.new_job(part, false);
            let (target, at) = (self.target(place), part.at as usize);
            job.changes.push(change);
            job.steps.push(Step::WriteWhole { change: 0, target, at });
            self.plan_more_moves(&mut job, part, count);
            job.frees = self.may_free(part, &job.changes);
            return Ok(Progress::Planned(job));
        }
        let frees = self.may_free(part, std::slice::from_ref(&change));
        if let Err(errno) = self.write_redirected(part, &mut change) {
            let mut job = Job { frees, ..self.new_job(part, false) };
            job.changes.push(change);
            job.failed = place.is_slot().then_some(0);
            return Ok(Progress::Failed(job, errno));
        }
        let changes = std::slice::from_ref(&change);
        let result = self.settle_changes(part.local, self.epoch, changes, &frees, Ok(()));
        self.sums = change.sums;
        Ok(Progress::Done(result))
    }

    /// Writes a part of complete blocks to its new place.
    fn write_redirected(&self, part: &Part, change: &mut NewPlace) -> Result<(), Errno> {
        if !change.place.is_slot() {
            return self.overwrite(part);
        }
        let (device, offset) = self.area_of(change.place).locate(change.place.slot_number());
        write_slots(device, offset, payload(part), &mut change.sums)
    }

    /// How many slots a write of complete blocks needs that are all redirected.
    fn slots_for_moves(&self, part: &Part) -> u64 {
        let (first, blocks) = complete_blocks(part);
        self.slots_for_blocks(part.local, first, blocks)
    }

    /// How many slots a write of the bytes `from..to` of a partition needs.
    pub(super) fn slots_for(&self, local: LocalIndex, from: u64, to: u64) -> u64 {
        if from == to {
            return 0;
        }
        let (mut block, last) = ((from / BLOCK_SIZE) as u32, ((to - 1) / BLOCK_SIZE) as u32);
        let mut slots = 0;
        while block <= last {
            let (count, in_place) = self.overwritable(local, block, last - block + 1);
            slots += if in_place { 0 } else { self.slots_for_blocks(local, block, count) };
            block += count;
        }
        slots
    }

    /// A job without steps that writes a part's payload, or zeroes.
    pub(super) fn new_job(&self, part: &Part, zeroes: bool) -> Job {
        let request = Some(Arc::clone(&part.request));
        Job { request, zeroes, ..self.own_job(part.local) }
    }

    /// A job of the share itself, without steps.
    pub(super) fn own_job(&self, local: LocalIndex) -> Job {
        Job {
            geometry: Arc::clone(&self.geometry),
            partition: self.locals[local.index()].partition,
            request: None,
            steps: Vec::new(),
            changes: Vec::new(),
            zeroes: true,
            stopped_at: None,
            failed: None,
            frees: Frees::new(),
            bad: Arc::clone(&self.bad),
        }
    }

    /// Plans the bytes `from..to` of the partition; the slots for it were claimed.
    pub(super) fn plan_range(&mut self, job: &mut Job, part: &Part, from: u64, to: u64) {
        let mut pos = from;
        while pos < to {
            let block = (pos / BLOCK_SIZE) as u32;
            let skip = pos % BLOCK_SIZE;
            let left = (to - 1) / BLOCK_SIZE - pos / BLOCK_SIZE + 1;
            let (count, in_place) = self.overwritable(part.local, block, left as u32);
            let at = part.at as usize + (pos - u64::from(part.offset)) as usize;
            if in_place {
                let end = (u64::from(block + count) * BLOCK_SIZE).min(to);
                job.steps.push(Step::WriteInPlace { offset: pos, length: end - pos, at });
                pos = end;
                continue;
            }
            let whole = (to - pos) / BLOCK_SIZE;
            let partial = skip != 0 || whole == 0;
            let want = if partial { 1 } else { self.moving(part.local, block, whole as u32) };
            let (change, count, target) = self.plan_change(job, part.local, block, want);
            if partial {
                let (skip, length) = (skip as usize, (BLOCK_SIZE - skip).min(to - pos) as usize);
                let old = self.old(part.local, block);
                job.steps.push(Step::WritePartial { change, target, old, skip, length, at });
                pos += length as u64;
            } else {
                job.steps.push(Step::WriteWhole { change, target, at });
                pos += u64::from(count) * BLOCK_SIZE;
            }
        }
    }

    /// How many blocks from `block` on, at most `limit`, must be redirected.
    fn moving(&self, local: LocalIndex, block: BlockIndex, limit: u32) -> u32 {
        let mut count = 0;
        while count < limit {
            let (here, in_place) = self.overwritable(local, block + count, limit - count);
            if in_place {
                break;
            }
            count += here;
        }
        count
    }

    /// How many slots are needed for blocks that must be redirected: those without a free base place.
    fn slots_for_blocks(&self, local: LocalIndex, first: BlockIndex, count: u32) -> u64 {
        let (mut done, mut slots) = (0, 0);
        while done < count {
            let (here, goes_home) = self.goes_home(local, first + done, count - done);
            slots += if goes_home { 0 } else { u64::from(here) };
            done += here;
        }
        slots
    }

    /// The length of the run from `block` (at most `limit`) for which the answer is the same, and the answer, for
    /// blocks that must be redirected: can they go to their base places, because no version sees these?
    fn goes_home(&self, local: LocalIndex, block: BlockIndex, limit: u32) -> (u32, bool) {
        let versions = &self.locals[local.index()].versions;
        if self.origin.is_some() {
            return (limit, false); // OR3
        }
        if versions.frozen().is_empty() {
            return (limit, true);
        }
        let one = |block: BlockIndex, limit: u32| {
            let live = versions.live.find(block, limit);
            match live.place {
                Place::BASE => (live.count, false), // a snapshot sees it too
                _ => {
                    let (count, taken) = versions.base_is_taken(block, live.count);
                    (count, !taken || bug(Bug::TakenBase))
                }
            }
        };
        let (mut count, answer) = one(block, limit);
        while count < limit {
            let (more, other) = one(block + count, limit - count);
            if other != answer {
                break;
            }
            count += more;
        }
        (count, answer)
    }

    /// Plans a new place for up to `want` blocks from `block` on; returns the index of the job's change, the number of
    /// blocks, and where they are written.
    fn plan_change(
        &mut self,
        job: &mut Job,
        local: LocalIndex,
        block: BlockIndex,
        want: u32,
    ) -> (usize, u32, Target) {
        let (place, count) = self.choose_place(local, block, want);
        job.changes.push(NewPlace { first: block, count, place, sums: Vec::new() });
        (job.changes.len() - 1, count, self.target(place))
    }

    /// A new place for up to `want` blocks from `block` on, and for how many.
    fn choose_place(&mut self, local: LocalIndex, block: BlockIndex, want: u32) -> (Place, u32) {
        let (count, goes_home) = self.goes_home(local, block, want);
        if goes_home {
            return (Place::BASE, count);
        }
        let (place, taken) = self.allocate_slots(local, count.min(RECORD_SUMS_MAX));
        super::count(&self.stats.redirected_blocks, u64::from(taken));
        (place, taken)
    }

    /// The target of a place, for a job.
    fn target(&self, place: Place) -> Target {
        if place.is_slot() { Target::Slots(self.spot(None, place)) } else { Target::Base }
    }

    /// Where a block's contents are now.
    fn old(&self, local: LocalIndex, block: BlockIndex) -> Old {
        let Local { versions, partition, .. } = &self.locals[local.index()];
        let own = versions.live.find(block, 1);
        let (of, found) = resolve(own, self.origin.as_ref(), *partition, block);
        match found.place {
            Place::BASE => Old::Base(of.cloned()),
            Place::ZERO => Old::Zero,
            place => Old::Slot(of.cloned(), self.spot(of, place), found.checksums[0]),
        }
    }
}

/// The first of a part's complete blocks, and their number.
fn complete_blocks(part: &Part) -> (BlockIndex, u32) {
    (part.offset / BLOCK_SIZE as u32, part.length / BLOCK_SIZE as u32)
}

/// The payload of a part.
fn payload(part: &Part) -> &[u8] {
    let at = part.at as usize;
    &part.request.data.as_slice()[at..at + part.length as usize]
}

/// Whether a part consists of complete blocks.
pub(super) fn is_aligned(part: &Part) -> bool {
    (part.offset | part.length).is_multiple_of(BLOCK_SIZE as u32)
}
