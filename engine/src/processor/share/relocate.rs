//! Relocate: brings live blocks from slots back to their base places.
//!
//! How it works      A call looks for blocks of one leaf that the live map has in slots, and whose base places no version
//!                   sees. (Where one does, [`relocate_away`](super::relocate_away) moves what it sees to slots first.)
//!                   A pool thread reads these slots, checks them, and writes the base places, while the blocks,
//!                   and those between them, are reserved as for a write. Then the processor records for each run of slots that its blocks are
//!                   at their base places, in all versions that had them in the slots, and frees the slots. The caller
//!                   decides how much and how often ([`Engine::relocate`](crate::engine::Engine::relocate)).
//! Invariants        MV1 a base place is written only while its blocks are reserved, and if no version sees it;
//!                   MV2 when the move is recorded, the live map has the blocks in the slots that were copied, no
//!                       snapshot is being read there, and no clone has a copy of a map with them (PI1);
//!                   MV3 a slot's checksum is checked before its contents count: a bad block stays where it is.
//! Why it is safe    The record is appended after the data was written, so a commit that covers it has synced that. Until
//!                   then a power loss restores the slot, which is not reused before (J4). No version sees the base
//!                   place in the meantime. Hosts' reads and writes of the blocks wait for the copy.
//! Owner and locks   the share's processor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::block_map::leaf::LEAF_BLOCKS;
use crate::block_map::place::Place;
use crate::block_map::relocation::Move;
use crate::block_map::tree::{NodeRef, leaves};
use crate::change_log::journal::Entry;
use crate::error::Errno;
use crate::geometry::Partition;
use crate::geometry::pins::Pins;
use crate::mutants::{Bug, bug};
use crate::processor::io_job::{Job, NewPlace, Spot, Step, read_slots, write_base};
use crate::processor::share::in_flight::Span;
use crate::processor::share::read::within_chunk;
use crate::processor::share::relocate_away::slot_runs;
use crate::processor::share::{Context, Local, Share};
use crate::units::{BLOCK_SIZE, BlockIndex, LocalIndex};

/// How long one call looks for blocks, nanoseconds.
const LOOK_NS_MAX: u64 = 500_000;

/// What one call has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relocated {
    /// Blocks that were moved.
    pub blocks: u64,
    /// Blocks that were not, because their slots are bad, or their devices failed.
    pub failed: u64,
    /// It has come to the end of the share's partitions: the next call begins again.
    pub at_end: bool,
    /// Some blocks were left out, because the share has other work there, or a snapshot is being read there.
    pub busy: bool,
}

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Live blocks, from slots to base places that no version sees.
    Home,
    /// What only snapshots see, from base places to slots, where the live map has the blocks in many pieces: so that
    /// these can go home.
    Away(Scattered),
}

/// Which live blocks are to go home after what snapshots see there has moved away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scattered {
    /// Those of leaves that have the blocks in so many runs of slots, or more.
    pub runs: u32,
    /// Only those that were not written since the newest snapshot.
    pub cold: bool,
}

/// The state of a share's relocation.
pub(super) struct Relocation {
    pub(super) pins: Arc<Pins>,
    /// Where the next call begins: a partition, and a leaf; for each kind.
    next: [(usize, u32); 2],
    /// In this pass, blocks were left out because of other work.
    skipped: bool,
    /// The number of the job in flight, its kind, and who waits for it.
    running: Option<(u64, Kind, Sender<Relocated>)>,
    /// Partitions with held base places, each with the record that it waits for, in order.
    held: VecDeque<(u64, LocalIndex)>,
}

impl Relocation {
    /// None was made in this run. Recovered partitions may hold base places: the records of that may not be durable.
    pub(super) fn new(pins: Arc<Pins>, locals: &[Local]) -> Relocation {
        let until = |local: &Local| local.versions.held_until(0, local.versions.live.blocks());
        let all = locals.iter().enumerate();
        let all = all.map(|(index, local)| (until(local), LocalIndex(index as u32)));
        let mut held: Vec<_> = all.filter(|(seq, _)| *seq > 0).collect();
        held.sort_unstable_by_key(|(seq, _)| *seq);
        let held = VecDeque::from(held);
        Relocation { pins, next: [(0, 0); 2], skipped: false, running: None, held }
    }

    /// Whether this is the job in flight.
    pub(super) fn is(&self, id: u64) -> bool {
        self.running.as_ref().is_some_and(|(running, ..)| *running == id)
    }

    /// Whether base places are held until a record is durable.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Notes that a partition holds base places until record `seq` is durable.
    pub(super) fn hold(&mut self, seq: u64, local: LocalIndex) {
        self.held.push_back((seq, local));
    }

    fn next(&mut self, kind: Kind) -> &mut (usize, u32) {
        &mut self.next[usize::from(kind != Kind::Home)]
    }
}

/// Runs of blocks of a partition: the first one, and how many.
pub(super) type Runs = Vec<(BlockIndex, u32)>;

/// Blocks to copy, in runs of consecutive blocks: their slots with their checksums.
type Copies = Vec<Step>;

impl Share {
    /// Relocates up to `blocks_max` blocks of the next leaf that has some, and then answers.
    pub fn relocate(
        &mut self,
        kind: Kind,
        blocks_max: u32,
        answer: Sender<Relocated>,
        context: &mut Context<'_>,
    ) {
        let stopped = self.leaving || self.stopped_at.is_some() || self.release_failed;
        if stopped || self.relocation.running.is_some() {
            let _ = answer.send(Relocated { busy: true, ..Relocated::default() });
            return;
        }
        let began = context.system.monotonic_ns();
        let mut looks = 0;
        while let Some((local, leaf)) = self.next_leaf(kind) {
            looks += 1;
            if looks > 1 && context.system.monotonic_ns() - began > LOOK_NS_MAX {
                let _ = answer.send(Relocated::default()); // the caller asks again
                return;
            }
            let (runs, more) = self.movable_runs(kind, local, leaf, blocks_max);
            let (Some(begin), Some(end)) = (runs.first(), runs.last()) else { continue };
            let first = begin.0;
            let unreserved = bug(Bug::MoveOverWrite) || bug(Bug::LateCopy);
            let last = if unreserved { first } else { end.0 + end.1 - 1 };
            let span = Span { local, first, last, write: true };
            if self.overlaps_other_work(&span) {
                self.relocation.skipped = true;
                continue;
            }
            let job = match kind {
                Kind::Home => Some(self.plan_home(local, &runs)),
                Kind::Away(_) => self.plan_away(local, &runs),
            };
            let Some(job) = job else { break }; // there is no room for it
            if more {
                self.relocation.next(kind).1 = leaf; // the rest of it
            }
            self.send(None, span, job, context);
            self.relocation.running = Some((self.out.last_id(), kind, answer));
            return;
        }
        *self.relocation.next(kind) = (0, 0);
        self.release_freed(context);
        let busy = std::mem::take(&mut self.relocation.skipped);
        let _ = answer.send(Relocated { at_end: true, busy, ..Relocated::default() });
    }

    /// The next leaf of a map that has any; moves on.
    fn next_leaf(&mut self, kind: Kind) -> Option<(LocalIndex, u32)> {
        if self.origin.is_some() {
            return None; // a clone has no base places
        }
        let next = self.relocation.next(kind);
        loop {
            let (local, leaf) = *next;
            let live = &self.locals.get(local)?.versions.live;
            if leaf as usize >= leaves(live.blocks()) || live.is_uniform() {
                *next = (local + 1, 0);
                continue;
            }
            next.1 = leaf + 1;
            if matches!(live.node(leaf), NodeRef::Leaf(_)) {
                return Some((LocalIndex(local as u32), leaf));
            }
        }
    }

    /// The runs of up to `blocks_max` blocks of a leaf that can be moved; and whether there may be more.
    fn movable_runs(
        &mut self,
        kind: Kind,
        local: LocalIndex,
        leaf: u32,
        blocks_max: u32,
    ) -> (Runs, bool) {
        let pinned = self.relocation.pins.epochs();
        let versions = &mut self.locals[local.index()].versions;
        let (first, blocks) = (leaf * LEAF_BLOCKS, versions.live.blocks());
        if let Kind::Away(Scattered { runs, .. }) = kind
            && slot_runs(&versions.live, leaf) < runs
        {
            return (Runs::new(), false);
        }
        let end = (first + LEAF_BLOCKS).min(blocks);
        versions.learn_taken(first, end - first);
        let (mut runs, mut block, mut left) = (Runs::new(), first, blocks_max);
        while block < end && left > 0 {
            let limit = (end - block).min(left);
            let (count, movable) = match kind {
                Kind::Home => self.movable(local, block, limit, &pinned),
                Kind::Away(Scattered { cold, .. }) => {
                    self.movable_away(local, block, limit, &pinned, cold)
                }
            };
            if movable {
                runs.push((block, count));
                left -= count;
            }
            block += count;
        }
        (runs, left == 0 && block < end)
    }

    /// Plans the copies of blocks to their base places.
    fn plan_home(&self, local: LocalIndex, runs: &Runs) -> Job {
        let mut copies = Copies::new();
        runs.iter().for_each(|(block, count)| self.plan_copy(&mut copies, local, *block, *count));
        Job { steps: copies, ..self.own_job(local) }
    }

    /// The length of the run from `block`, at most `limit`, that is in consecutive slots or in none, for which the answer
    /// is the same, and the answer: can these blocks be moved to their base places (MV1, MV2)?
    fn movable(
        &self,
        local: LocalIndex,
        block: BlockIndex,
        limit: u32,
        pinned: &[u64],
    ) -> (u32, bool) {
        let versions = &self.locals[local.index()].versions;
        let live = versions.live.find(block, limit);
        if !live.place.is_slot() {
            return (live.count, false);
        }
        let (count, taken) = versions.base_is_taken(block, live.count);
        if taken && !bug(Bug::TakenHome) {
            return (count, false);
        }
        let (count, is_pinned) =
            versions.any_has(pinned, block, count, |place| place == live.place);
        (count, !is_pinned)
    }

    /// Plans to copy blocks that are in consecutive slots, together with those before them where they follow.
    fn plan_copy(&self, copies: &mut Copies, local: LocalIndex, block: BlockIndex, count: u32) {
        let live = &self.locals[local.index()].versions.live;
        let mut done = 0;
        while done < count {
            let found = within_chunk(live.find(block + done, count - done));
            let run = (self.spot(None, found.place), found.checksums.to_vec());
            match copies.last_mut() {
                Some(Step::CopyHome { first, slots })
                    if *first + blocks_of(slots) == block + done =>
                {
                    slots.push(run);
                }
                _ => copies.push(Step::CopyHome { first: block + done, slots: vec![run] }),
            }
            done += found.count;
        }
    }

    /// Whether host requests, or other work of the share, have some of these blocks, or wait for them.
    fn overlaps_other_work(&self, span: &Span) -> bool {
        self.out.has_reserved(span) || self.waiting.iter().any(|part| Span::of(part).overlaps(span))
    }

    /// Handles the end of a copy: records which blocks are at their base places now. `span`: what was reserved. One that
    /// was given up has moved nothing.
    pub(super) fn relocated(
        &mut self,
        job: &Job,
        span: &Span,
        result: Result<(), Errno>,
        given_up: bool,
        context: &mut Context<'_>,
    ) {
        let Some((_, kind, answer)) = self.relocation.running.take() else { return };
        let mut report = Relocated { failed: u64::from(result.is_err()), ..Relocated::default() };
        let read = self.out.reads_snapshots(span);
        report.busy = given_up || read;
        self.relocation.skipped |= report.busy;
        if kind != Kind::Home {
            report.blocks = self.settle_away(span.local, &job.changes, !report.busy);
            report.failed += u64::from(job.stopped_at.is_some());
            self.expect_release();
        } else if !report.busy {
            report.failed += u64::from(job.stopped_at.is_some());
            report.blocks = self.settle_home(span.local, &job.changes);
            self.space_waiters.wake(self.slots.take_freed_in());
            self.expect_release();
            if self.space_waiters.has_waiters() || self.slots.pending_free() > PENDING_MAX {
                self.ask_release(context);
            }
        }
        let _ = answer.send(report); // the caller may wait no longer
    }

    /// Records and makes the moves for which a copy was made, as far as the live map still has the blocks in the slots
    /// (MV2); how many blocks were moved.
    fn settle_home(&mut self, local: LocalIndex, copies: &[NewPlace]) -> u64 {
        let pinned = self.relocation.pins.epochs();
        let number = self.locals[local.index()].partition;
        let (mut moves, mut last_seq) = (Vec::new(), 0);
        'copies: for copied in copies {
            self.locals[local.index()].versions.learn_taken(copied.first, copied.count);
            let mut done = 0;
            while done < copied.count {
                let (block, from) = (copied.first + done, copied.place.step(done));
                let (count, movable) = self.movable(local, block, copied.count - done, &pinned);
                done += count;
                let stays = self.locals[local.index()].versions.live.place(block) == from;
                if !movable || !(stays || bug(Bug::MoveOverWrite)) {
                    continue;
                }
                let entry = Entry::home(self.epoch, number, block, count, from);
                let Ok(seq) = self.journal.append(entry) else { break 'copies };
                moves.push(Move { first: block, count, from, to: Place::BASE, sums: Vec::new() });
                last_seq = seq;
                self.bad.forget(from, count);
                match bug(Bug::FreeBeforeHome) {
                    true => self.slots.free_now(from, count, &mut Vec::new()),
                    false => drop(self.slots.free(seq, from, count)), // J4
                }
            }
        }
        if !moves.is_empty() {
            let local = &mut self.locals[local.index()];
            local.versions.relocate(&moves, last_seq);
            local.moved_back = last_seq;
        }
        moves.iter().map(|one| u64::from(one.count)).sum()
    }

    /// Has slots released that are pending, if there are any: nobody may flush for a long time.
    fn release_freed(&mut self, context: &Context<'_>) {
        let waits = self.slots.pending_free() > 0 || self.relocation.holds();
        if waits || !self.freed_bases.is_empty() {
            self.ask_release(context);
        }
    }

    /// Ends the holding of base places for which a record up to `committed` is durable.
    pub(super) fn release_held(&mut self, committed: u64) {
        while let Some((seq, local)) = self.relocation.held.front().copied()
            && seq <= committed
        {
            self.locals[local.index()].versions.release_held(committed);
            self.relocation.held.pop_front();
        }
    }
}

/// Pending slots at which a relocation requests a sync: 16 MiB.
const PENDING_MAX: u64 = 4096;

fn blocks_of(slots: &[(Spot, Vec<u32>)]) -> u32 {
    slots.iter().map(|(_, sums)| sums.len() as u32).sum()
}

impl Job {
    /// Copies blocks from slots to their base places. `changes` are what was copied, with the slots; `stopped_at` says
    /// that some could not be read.
    pub(in crate::processor) fn copy_home(
        &mut self,
        partition: &Partition,
        steps: &[Step],
    ) -> Result<(), Errno> {
        let mut buffer = Vec::new();
        for step in steps {
            let Step::CopyHome { first, slots } = step else { unreachable!("all are alike") };
            buffer.clear();
            let mut block = *first;
            let mut read = Ok(());
            for (spot, sums) in slots {
                read = read.and_then(|()| self.read_run(block, spot, sums, &mut buffer));
                block += sums.len() as u32;
            }
            if read.is_ok() {
                write_base(partition, u64::from(*first) * BLOCK_SIZE, &buffer)?;
                self.note_copied(*first, slots.iter().map(|(spot, sums)| (spot.place, sums.len())));
                continue;
            }
            // One by one: those that can be read.
            let mut block = *first;
            for (spot, sums) in slots {
                for (index, sum) in sums.iter().enumerate() {
                    let here = Spot {
                        offset: spot.offset + index as u64 * BLOCK_SIZE,
                        place: spot.place.step(index as u32),
                        ..spot.clone()
                    };
                    buffer.clear();
                    if self.read_run(block, &here, &[*sum], &mut buffer).is_ok() {
                        write_base(partition, u64::from(block) * BLOCK_SIZE, &buffer)?;
                        self.note_copied(block, [(here.place, 1)].into_iter());
                    } else {
                        self.stopped_at = Some(u64::from(block) * BLOCK_SIZE);
                    }
                    block += 1;
                }
            }
        }
        Ok(())
    }

    /// Appends consecutive slots to a buffer (MV3).
    fn read_run(
        &self,
        block: BlockIndex,
        spot: &Spot,
        sums: &[u32],
        buffer: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let start = buffer.len();
        buffer.resize(start + sums.len() * BLOCK_SIZE as usize, 0);
        let note = |index: u32| {
            let place = spot.place.step(index);
            self.bad.note(self.partition, block + index, place, spot.device.id);
        };
        read_slots(spot, sums, 0, &mut buffer[start..], note, |device, buffer, offset| {
            device.read(buffer, offset).map(|()| true)
        })
        .map(|_| ())
    }

    fn note_copied(&mut self, first: BlockIndex, slots: impl Iterator<Item = (Place, usize)>) {
        let mut first = first;
        for (place, count) in slots {
            let count = count as u32;
            self.changes.push(NewPlace { first, count, place, sums: Vec::new() });
            first += count;
        }
    }
}
