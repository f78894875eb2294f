//! Relocate away: moves what only snapshots see from base places to slots, so that the live blocks can go home.
//!
//! How it works      Where many blocks of a leaf are in slots, one by one, reading the volume in order reads its devices
//!                   out of order. If a snapshot sees the base places, [`relocate`](super::relocate) cannot bring the
//!                   blocks home. So a pool thread copies the old contents to new slots, while the blocks are reserved as
//!                   for a write, and the processor records that all versions that had the blocks at their base places
//!                   have them in these slots. When that is durable, no version needs the base places, and the live
//!                   blocks can go home.
//! Invariants        RA1 when the move is recorded, a snapshot sees the base places, no snapshot is being read there, and no
//!                       clone has a copy of a map with them (PI1);
//!                   RA2 a base place that was left is held until the record is durable (TB1): no write, relocation or
//!                       punch uses it.
//! Why it is safe    The copy is written before the record is appended, so a commit that covers the record has synced the
//!                   copy. Until then a power loss restores the base place, which nobody has changed (RA2). No version
//!                   refers to the new slots before the record: if the copy fails, or a crash comes, they are free.
//! Room              a move of so many blocks takes as many slots, until the live blocks are home. An eighth of the areas
//!                   stays free for hosts.
//! Owner and locks   the share's processor.

use crate::block_map::place::Place;
use crate::block_map::relocation::Move;
use crate::block_map::tree::{Map, NodeRef};
use crate::change_log::format::RECORD_SUMS_MAX;
use crate::change_log::journal::Entry;
use crate::change_log::space::AreaBits;
use crate::error::Errno;
use crate::geometry::Partition;
use crate::mutants::{Bug, bug};
use crate::processor::io_job::{Job, NewPlace, Spot, Step, write_slots};
use crate::processor::share::Share;
use crate::processor::share::relocate::Runs;
use crate::units::{BLOCK_SIZE, BlockIndex, LocalIndex};

/// This part of the areas stays free for hosts.
const FREE_PART: u64 = 8;

/// How many runs of slots a leaf has.
pub(super) fn slot_runs(map: &Map, leaf: u32) -> u32 {
    let NodeRef::Leaf(leaf) = map.node(leaf) else { return 0 };
    let mut runs = 0;
    leaf.for_each_run(|_, run| runs += u32::from(run.place.is_slot()));
    runs
}

impl Share {
    /// The length of the run from `block`, at most `limit`, that is in consecutive slots or in none, for which the answer
    /// is the same, and the answer: can what snapshots see at these base places be moved away (RA1), so that the live
    /// blocks can go home? `cold`: only if these were not written since the newest snapshot.
    pub(super) fn movable_away(
        &self,
        local: LocalIndex,
        block: BlockIndex,
        limit: u32,
        pinned: &[u64],
        cold: bool,
    ) -> (u32, bool) {
        let versions = &self.locals[local.index()].versions;
        let live = versions.live.find(block, limit);
        if !live.place.is_slot() {
            return (live.count, false);
        }
        let (count, seen) = versions.snapshot_sees_base(block, live.count);
        if !seen {
            return (count, false);
        }
        let needs = |place| place == Place::BASE || place == live.place;
        let (mut count, is_pinned) = versions.any_has(pinned, block, count, needs);
        if is_pinned {
            return (count, false);
        }
        let newest = self.history.snapshots().last().filter(|_| cold);
        if let Some(newest) = newest {
            let theirs = versions.at(*newest).0.find(block, count);
            count = theirs.count;
            if theirs.place != live.place {
                return (count, false);
            }
        }
        (count, true)
    }

    /// Plans to copy the old contents of these blocks to new slots; `None` if there is too little room, or snapshots have
    /// log rules of their own, which the slots might not keep to.
    pub(super) fn plan_away(&mut self, local: LocalIndex, runs: &Runs) -> Option<Job> {
        let order = self.log_orders.of(self.locals[local.index()].partition);
        let wanted: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
        let (free, size) = order
            .areas
            .iter()
            .fold((0, 0), |(free, size), area| (free + area.free(), size + area.size()));
        let full =
            free < wanted + size / FREE_PART || order.areas.iter().any(|area| area.is_lean());
        if full || !self.rules.snapshots.is_empty() {
            return None;
        }
        self.claim(local, wanted).ok()?;
        let mut job = self.own_job(local);
        for (block, count) in runs {
            let mut done = 0;
            while done < *count {
                let want = (count - done).min(RECORD_SUMS_MAX);
                let (place, taken) = self.allocate_slots(local, want);
                let change =
                    NewPlace { first: block + done, count: taken, place, sums: Vec::new() };
                job.changes.push(change);
                let change = job.changes.len() - 1;
                job.steps.push(Step::CopyAway { change, to: self.spot(None, place) });
                done += taken;
            }
        }
        Some(job)
    }

    /// Records and makes the moves for which a copy was made, if `count` is set, and as far as they can still be made
    /// (RA1); frees the other slots. How many blocks were moved.
    pub(super) fn settle_away(
        &mut self,
        local: LocalIndex,
        changes: &[NewPlace],
        counts: bool,
    ) -> u64 {
        let pinned = self.relocation.pins.epochs();
        let number = self.locals[local.index()].partition;
        let (mut moves, mut last_seq, mut ended) = (Vec::new(), 0, AreaBits::default());
        for change in changes {
            let copied = counts && change.sums.len() == change.count as usize;
            let versions = &mut self.locals[local.index()].versions;
            versions.learn_taken(change.first, change.count);
            let mut done = 0;
            while done < change.count {
                let (first, to) = (change.first + done, change.place.step(done));
                let left = change.count - done;
                let (count, movable) = self.movable_away(local, first, left, &pinned, false);
                let sums = match copied && movable {
                    true => change.sums[done as usize..(done + count) as usize].to_vec(),
                    false => Vec::new(),
                };
                let entry = Entry::away(self.epoch, number, first, to, &sums);
                match (!sums.is_empty()).then(|| self.journal.append(entry)) {
                    Some(Ok(seq)) => {
                        last_seq = seq;
                        if bug(Bug::FreeAwaySlot) {
                            self.free_unrecorded(to, count);
                        }
                        moves.push(Move { first, count, from: Place::BASE, to, sums });
                    }
                    _ => self.free_unrecorded(to, count),
                }
                done += count;
            }
            let area = self.area_of(change.place);
            area.end_write(u64::from(change.count)); // SP2
            ended |= area.bit();
        }
        if !moves.is_empty() {
            self.locals[local.index()].versions.relocate(&moves, last_seq);
            self.relocation.hold(last_seq, local); // RA2
        }
        self.space_waiters.wake(ended | self.slots.take_freed_in());
        moves.iter().map(|one| u64::from(one.count)).sum()
    }
}

impl Job {
    /// Copies base places to slots. A change keeps no checksums if it could not be copied; `stopped_at` says that there
    /// is such.
    pub(in crate::processor) fn copy_away(
        &mut self,
        partition: &Partition,
        steps: &[Step],
    ) -> Result<(), Errno> {
        let mut buffer = Vec::new();
        for step in steps {
            let Step::CopyAway { change, to } = step else { unreachable!("all are alike") };
            let change = &mut self.changes[*change];
            if copy_run(partition, change, to, &mut buffer).is_err() {
                change.sums.clear();
                self.stopped_at = Some(u64::from(change.first) * BLOCK_SIZE);
            }
        }
        Ok(())
    }
}

fn copy_run(
    partition: &Partition,
    change: &mut NewPlace,
    to: &Spot,
    buffer: &mut Vec<u8>,
) -> Result<(), Errno> {
    let length = u64::from(change.count) * BLOCK_SIZE;
    buffer.resize(length as usize, 0);
    let start = u64::from(change.first) * BLOCK_SIZE;
    partition.pieces(start, length, |device, from, here, done| {
        device.read(&mut buffer[done as usize..(done + here) as usize], from)
    })?;
    write_slots(&to.device, to.offset, buffer, &mut change.sums)
}
