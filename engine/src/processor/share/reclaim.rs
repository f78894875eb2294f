//! Reclaim: space reclamation (garbage collection): how places that no version sees become usable again.
//!
//! How it works      A change frees slots, dropping a snapshot frees slots and base places. All are reusable only when
//!                   the freeing is durable (J4): then slots can be allocated again, and they and base places are
//!                   punched out of their devices ([`give_back`](super::give_back)). A drop begins with [`Share::begin_drop`]; its caller is answered
//!                   when the places are reusable. A part without a free slot
//!                   [waits](crate::processor::space_waiters) for slots whose freeing is not durable yet.
//! Invariants        T1 a base place is punched only while it is reserved as for a write, and only if no version sees
//!                   it at that time, or has seen it since the last durable record.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::block_map::place::Place;
use crate::change_log::journal::Entry;
use crate::change_log::past::EpochRanges;
use crate::change_log::space::EmptyChunk;
use crate::error::Errno;
use crate::mutants::{Bug, bug};
use crate::processor::flusher::Waiter;
use crate::processor::io_job::{Job, Step};
use crate::processor::messages::{Control, Event};
use crate::processor::part::Part;
use crate::processor::share::in_flight::Span;
use crate::processor::share::{Context, Local, Share, count};
use crate::processor::space_waiters::{Verdict, Wanted};
use crate::units::{BLOCK_SIZE, Epoch, LocalIndex};

/// Runs of freed base places that are punched by one job.
const PUNCH_RUNS_MAX: usize = 16;
/// Upper bound of blocks that one such job reserves, up to the start of its last run.
const PUNCH_SPAN_BLOCKS: u32 = 1024;

/// Runs of slots that one turn frees.
const RELEASE_RUNS_MAX: usize = 2048;
/// Batches of freed base places that one turn checks.
const LOOKS_MAX: usize = 64;

/// How long one turn of dropping a snapshot takes, nanoseconds.
const DROP_NS_MAX: u64 = 1_000_000;

/// Snapshots being dropped, one after the other, partition by partition.
pub struct Dropping {
    /// The remaining ones, in reverse.
    epochs: Vec<Epoch>,
    next_local: LocalIndex,
    freed_blocks: u64,
    /// The caller waits until the freed places can be reused.
    waits: bool,
    answer: Sender<u64>,
}

/// Dropped snapshots: the caller is answered when their places can be reused.
pub(super) struct Dropped {
    seq: u64,
    bytes: u64,
    answer: Sender<u64>,
}

/// Base places that no version sees any more, to be punched when the freeing is durable.
pub(super) struct FreedBase {
    pub(super) seq: u64,
    pub(super) local: LocalIndex,
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Share {
    /// Makes the next flush release the slots that are pending here, if there are any.
    pub(super) fn expect_release(&mut self) {
        if self.slots.pending_free() > 0 || self.relocation.holds() {
            self.journal.shared().expect_commit();
        }
    }

    /// Frees slots to which no record refers.
    pub(super) fn free_unrecorded(&mut self, place: Place, count: u32) {
        self.slots.free_now(place, count, &mut Vec::new());
    }

    /// Keeps a part that needs `wanted` slots until there are enough, or ends it. Slots that are pending here or at
    /// another processor are released after the same flush, perhaps a little later: then the part waits again.
    pub(super) fn wait_for_space(&mut self, part: Part, wanted: u64, context: &mut Context<'_>) {
        let order = self.log_orders.of(self.locals[part.local.index()].partition);
        let waits = Wanted { areas: &order.areas, bits: order.bits, slots: wanted };
        let pending = order.areas.iter().any(|area| area.pending_free() > 0);
        match self.space_waiters.wait_or_refuse(&waits, context.queue, self.number) {
            Verdict::Wait => self.without_space.push(part),
            Verdict::Refuse => return self.end(part, Err(Errno::ENOSPC), context),
        }
        if pending {
            self.ask_release(context);
        }
    }

    pub(super) fn ask_release(&mut self, context: &Context<'_>) {
        if !self.release_asked {
            self.release_asked = true;
            let queue = Arc::clone(context.queue);
            self.flusher.push(Waiter::Release { queue, share: self.number });
        }
    }

    /// Releases places after a sync.
    pub fn release(&mut self, result: Result<(), Errno>, context: &mut Context<'_>) {
        self.release_asked = false;
        self.release_failed = result.is_err();
        if let Err(errno) = result {
            for part in std::mem::take(&mut self.without_space) {
                self.end(part, Err(errno), context);
            }
            for dropped in self.dropped.drain(..) {
                // It is dropped; its places are reused after the next successful flush.
                let _ = dropped.answer.send(dropped.bytes);
            }
            return;
        }
        self.release_more(context);
    }

    /// Releases some of the places after a sync; the rest after others have had their turn.
    pub fn release_more(&mut self, context: &mut Context<'_>) {
        let shared = self.journal.shared();
        let committed = if bug(Bug::EarlyReuse) { shared.appended() } else { shared.committed() };
        self.release_held(committed);
        let mut empty: Vec<EmptyChunk> = Vec::new();
        let released = self.slots.release(committed, RELEASE_RUNS_MAX, &mut empty);
        self.expect_release();
        self.punch_empty(empty, context);
        if self.slots.can_release(committed) {
            let control = Control::ReleaseMore(self.number);
            context.queue.push(Event::Control(Box::new(control)));
        } else {
            self.answer_dropped(committed, context);
        }
        self.punch_freed_bases(context);
        if released > 0 {
            self.space_waiters.wake(self.slots.take_freed_in());
        }
        self.retry_without_space(context);
    }

    /// Answers callers that have dropped snapshots, if the places freed up to record `committed` can be reused.
    fn answer_dropped(&mut self, committed: u64, context: &Context<'_>) {
        self.dropped.retain(|dropped| {
            let done = dropped.seq <= committed;
            if done {
                // The caller may wait no longer.
                let _ = dropped.answer.send(dropped.bytes);
            }
            !done
        });
        if !self.dropped.is_empty() {
            self.ask_release(context);
        }
    }

    /// Retries parts that found too few slots.
    pub fn retry_without_space(&mut self, context: &mut Context<'_>) {
        for part in std::mem::take(&mut self.without_space) {
            self.take_later(part, context);
        }
    }

    /// Punches some of the base places that no version sees (J4), reserved as for a write. One batch at a time: its end
    /// starts the next.
    pub(super) fn punch_freed_bases(&mut self, context: &mut Context<'_>) {
        for look in 0.. {
            if look == LOOKS_MAX {
                *context.again = true; // others have their turn first
                return;
            }
            let Some((local, first, last, steps)) = self.take_freed_bases() else { return };
            if steps.is_empty() {
                continue;
            }
            let job = Job { steps, ..self.own_job(local) };
            self.punching = true;
            self.send(None, Span { local, first, last, write: true }, job, context);
        }
    }

    /// The next freed base places of one partition: partition, first and last block, steps to punch them. `None` if
    /// there are none, or they have to wait.
    fn take_freed_bases(&mut self) -> Option<(LocalIndex, u32, u32, Vec<Step>)> {
        let shared = self.journal.shared();
        let committed = if bug(Bug::EarlyPunch) { shared.appended() } else { shared.committed() };
        let front = self.freed_bases.front()?;
        if self.punching || self.leaving || front.seq > committed {
            return None;
        }
        let (local, first) = (front.local, front.first);
        let fits = |freed: &&FreedBase| {
            let near = freed.first >= first && freed.first - first < PUNCH_SPAN_BLOCKS;
            freed.local == local && freed.seq <= committed && near
        };
        let batch = self.freed_bases.iter().take(PUNCH_RUNS_MAX).take_while(fits).count();
        let ends = self.freed_bases.iter().take(batch).map(|freed| freed.first + freed.count - 1);
        let last = ends.max().expect("the front fits");
        if self.out.has_reserved(&Span { local, first, last, write: true }) {
            return None; // it is retried when that is done
        }
        let mut steps = Vec::new();
        let can_punch = self.can_punch(local);
        let drained: Vec<FreedBase> = self.freed_bases.drain(..batch).collect();
        for freed in drained {
            let Local { versions, moved_back, .. } = &self.locals[local.index()];
            if *moved_back > freed.seq && versions.live.write_seq > committed {
                // A version may have seen it again and freed it again, which is not durable.
                let seq = versions.live.write_seq;
                self.freed_bases.push_back(FreedBase { seq, ..freed });
                continue;
            }
            let held_until = versions.held_until(freed.first, freed.count);
            if held_until > committed {
                self.freed_bases.push_back(FreedBase { seq: held_until, ..freed }); // TB1
                continue;
            }
            // It was written again: the space is in use.
            let seen = versions.sees_base(freed.first, freed.count) && !bug(Bug::PunchSeenBase);
            if can_punch && !seen {
                steps.push(Step::Clear {
                    offset: u64::from(freed.first) * BLOCK_SIZE,
                    length: u64::from(freed.count) * BLOCK_SIZE,
                    keep_allocated: false,
                });
            }
        }
        Some((local, first, last, steps))
    }

    /// Begins to drop snapshots, and what only the rollback at an epoch has retained, if one is given: then the answer
    /// does not wait for a sync.
    pub fn begin_drop(
        &mut self,
        mut epochs: Vec<Epoch>,
        rollback: Option<Epoch>,
        answer: Sender<u64>,
    ) -> Dropping {
        self.record_dropped(&epochs);
        self.history.remove_snapshots(&epochs);
        self.recorded.cuts.retain(|cut| self.history.has(cut.epoch));
        if let Some(at) = rollback {
            epochs.extend(self.history.forget_rollback(at)); // what only it has retained
        }
        self.forget_snapshot_rules();
        epochs.sort_unstable_by(|one, other| other.cmp(one));
        epochs.dedup();
        Dropping {
            epochs,
            next_local: LocalIndex(0),
            freed_blocks: 0,
            waits: rollback.is_none(),
            answer,
        }
    }

    /// Records that snapshots are dropped, before anything that only they saw can be used again: a catalog that has them
    /// is an older copy. If there is no space for that, the next checkpoint has it, and one is due.
    fn record_dropped(&mut self, epochs: &[Epoch]) {
        let mut dropped = EpochRanges::default();
        epochs.iter().filter(|epoch| self.history.has(**epoch)).for_each(|epoch| {
            dropped.add(*epoch, *epoch);
        });
        for (first, last) in dropped.ranges().iter().filter(|_| !bug(Bug::NoDropRecord)) {
            if self.journal.append(Entry::dropped(*first, *last)).is_err() {
                self.journal.bytes_since_checkpoint = u64::MAX / 2;
            }
        }
    }

    /// Continues a drop for about a millisecond; returns the rest.
    pub fn drop_more(
        &mut self,
        mut dropping: Dropping,
        context: &mut Context<'_>,
    ) -> Option<Dropping> {
        let began = context.system.monotonic_ns();
        let seq = self.journal.shared().appended();
        while let Some(epoch) = dropping.epochs.last().copied() {
            if dropping.next_local.index() == self.locals.len() {
                dropping.epochs.pop();
                dropping.next_local = LocalIndex(0);
                continue;
            }
            if context.system.monotonic_ns() - began > DROP_NS_MAX {
                return Some(dropping);
            }
            let number = dropping.next_local;
            dropping.next_local.0 += 1;
            let local = &mut self.locals[number.index()];
            let (slots, bases, bad) = (&mut self.slots, &mut self.freed_bases, &self.bad);
            let (freed_blocks, has_base) = (&mut dropping.freed_blocks, self.origin.is_none());
            local.versions.forget(epoch, &self.history, |first, count, place| {
                if place.is_slot() || (has_base && place == Place::BASE) {
                    *freed_blocks += u64::from(count);
                }
                if place.is_slot() {
                    slots.free_later(seq, place, count);
                    bad.forget(place, count);
                } else if has_base && place == Place::BASE {
                    bases.push_back(FreedBase { seq, local: number, first, count });
                }
            });
        }
        self.expect_release();
        count(&self.stats.drops, 1);
        let bytes = dropping.freed_blocks * BLOCK_SIZE;
        if dropping.waits {
            self.dropped.push(Dropped { seq, bytes, answer: dropping.answer });
        } else {
            let _ = dropping.answer.send(bytes); // the caller may wait no longer
        }
        self.ask_release(context);
        None
    }
}
