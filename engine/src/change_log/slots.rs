//! Slots: one processor's allocation and freeing of the slots of a volume's change logs.
//!
//! How it works      Slots are allocated in runs, in the processor's active chunk of the first requested log that has
//!                   space; [`chunks`](super::chunks) describes the fallbacks. Long runs have an active chunk of their
//!                   own, which was empty, possibly in another log of equal priority: if single blocks are overwritten,
//!                   free slots are scattered. A freed slot is pending until its freeing is durable (J4), then it can
//!                   be allocated again. A [young](super::young) one is free at once.
//! Invariants        S1 a slot is free, used or pending, and never two of them;
//!                   S2 no more slots are allocated than were claimed in [`Space`](super::space::Space).
//! Owner and locks   the processor alone; the chunks have their own locks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::chunks::Chunks;
use super::space::{EmptyChunk, Log};
use super::used_slots::{LogUsedSlots, UsedSlots};
use super::young::Young;
use crate::block_map::place::Place;
use crate::units::SlotIndex;

/// Length of a long run, which is better allocated in one piece: 32 KiB.
const LONG_RUN: u32 = 8;

#[derive(Debug)]
struct LogSlots {
    log: Arc<Log>,
    active: Option<u64>,
    /// The active chunk for runs of [`LONG_RUN`] and more.
    long_active: Option<u64>,
}

impl LogSlots {
    /// Allocates a run in an active chunk of this processor: a long run in the one for long runs, as long as there are
    /// enough empty chunks.
    fn take(&mut self, want: u32) -> Option<(Place, u32)> {
        if want >= LONG_RUN
            && let Some(run) = self.take_long(want)
        {
            return Some(run);
        }
        take_at(&self.log, &mut self.active, Chunks::activate, want)
    }

    /// Allocates a run in the active chunk for long runs, if there are enough empty chunks.
    fn take_long(&mut self, want: u32) -> Option<(Place, u32)> {
        take_at(&self.log, &mut self.long_active, Chunks::activate_empty, want)
    }

    /// Makes an empty chunk inactive.
    fn deactivate(&mut self, chunk: u64) {
        for active in [&mut self.active, &mut self.long_active] {
            if active.take_if(|active| *active == chunk).is_some() {
                self.log.slots.deactivate(chunk);
            }
        }
    }
}

/// Allocates a run in an active chunk, or in a new one from `find` if that has no space left.
fn take_at(
    log: &Log,
    active: &mut Option<u64>,
    find: fn(&Chunks) -> Option<u64>,
    want: u32,
) -> Option<(Place, u32)> {
    loop {
        let chunk = match *active {
            Some(chunk) => chunk,
            None => *active.insert(find(&log.slots)?),
        };
        if let Some((first, count)) = log.slots.allocate_in(chunk, want) {
            return Some((slot(log, chunk, first), count));
        }
        log.slots.deactivate(chunk);
        *active = None;
    }
}

fn slot(log: &Log, chunk: u64, first: u32) -> Place {
    Place::slot(log.number, SlotIndex::in_chunk(chunk, first))
}

#[derive(Debug)]
struct PendingFree {
    seq: u64,
    place: Place,
    count: u32,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Slots {
    logs: BTreeMap<u16, LogSlots>,
    pending: VecDeque<PendingFree>,
    pending_count: u64,
    /// The processor's young slots.
    pub young: Young,
}

impl Slots {
    fn log_slots(&mut self, log: &Arc<Log>) -> &mut LogSlots {
        let new = || LogSlots { log: Arc::clone(log), active: None, long_active: None };
        self.logs.entry(log.number).or_insert_with(new)
    }

    /// Allocates up to `want` consecutive slots. They were claimed (S2), and `logs` are all logs whose slots are
    /// counted, so some are free. Tried in this order:
    /// - for a long run: the first of the `equal_priority` first logs that has all of it in one piece;
    /// - the first of `logs` that has any.
    pub fn allocate(
        &mut self,
        logs: &[Arc<Log>],
        equal_priority: usize,
        want: u32,
    ) -> (Place, u32) {
        let whole = |log: &Arc<Log>| self.log_slots(log).take_long(want);
        if want >= LONG_RUN
            && let Some(run) = logs[..equal_priority].iter().find_map(whole)
        {
            return run;
        }
        loop {
            if let Some(run) = logs.iter().find_map(|log| self.log_slots(log).take(want)) {
                return run;
            }
            let anywhere = |log: &Arc<Log>| {
                let (chunk, first, count) = log.slots.allocate_in_any_active(want)?;
                Some((slot(log, chunk, first), count))
            };
            if let Some((place, count)) = logs.iter().find_map(anywhere) {
                self.log_slots(
                    logs.iter().find(|log| log.number == place.log()).expect("of these"),
                );
                return (place, count);
            }
            // Another processor allocated the slots seen as free, and slots freed since then were not where this one
            // searched.
            std::hint::spin_loop();
        }
    }

    /// Allocates the slots to which recovered maps refer. `Err`: a slot to which another processor's maps refer too.
    pub fn allocate_used(&mut self, used: UsedSlots) -> Result<(), Place> {
        for LogUsedSlots { log, chunks } in used.logs {
            self.log_slots(&log);
            for (chunk, bits) in chunks.iter().enumerate() {
                let Some(bits) = bits else { continue };
                let taken = log.slots.allocate_exactly(chunk as u64, bits);
                taken.map_err(|first| slot(&log, chunk as u64, first))?;
            }
        }
        Ok(())
    }

    /// Frees a run to which record `seq` removed the last reference: young slots at once. Returns how many these are;
    /// the caller adds them to the space.
    pub fn free(&mut self, seq: u64, place: Place, count: u32) -> u64 {
        let mut given = 0;
        for (chunk, first, count) in by_chunk(place, count) {
            let mut at = first;
            while at < first + count {
                let (young, run) = self.young.take(place.log(), chunk, at, first + count - at);
                let run_place = Place::slot(place.log(), SlotIndex::in_chunk(chunk, at));
                if young {
                    self.free_now(run_place, run, &mut Vec::new());
                    given += u64::from(run);
                } else {
                    self.free_later(seq, run_place, run);
                }
                at += run;
            }
        }
        given
    }

    /// Whether a run is of slots that are all young.
    pub fn are_young(&self, place: Place, count: u32) -> bool {
        let young = |(chunk, first, count)| self.young.all((place.log(), chunk), first, count);
        place.is_slot() && by_chunk(place, count).all(young)
    }

    /// Notes that record `seq` refers to a run that was allocated here: it is young, unless a sync may already cover
    /// it.
    pub fn recorded(&mut self, seq: u64, place: Place, count: u32) {
        for (chunk, first, count) in by_chunk(place, count) {
            self.young.add(seq, (place.log(), chunk), first, count);
        }
    }

    /// Frees a run after the commit of record `seq`: that record, or the catalog, removed the last reference.
    pub fn free_later(&mut self, seq: u64, place: Place, count: u32) {
        self.pending.push_back(PendingFree { seq, place, count });
        self.pending_count += u64::from(count);
    }

    /// Frees a run to which no record ever referred. The caller adds it to the space.
    pub fn free_now(&mut self, place: Place, count: u32, empty: &mut Vec<EmptyChunk>) {
        let log_slots = self.logs.get_mut(&place.log()).expect("the slot was allocated here");
        for (chunk, first, count) in by_chunk(place, count) {
            if log_slots.log.slots.free(chunk, first, count) {
                log_slots.deactivate(chunk);
                empty.push(EmptyChunk { log: Arc::clone(&log_slots.log), chunk });
            }
        }
    }

    /// Frees pending slots that need the commit of `committed` or an earlier record, at most `runs` runs; returns how
    /// many slots. The caller adds them to the space.
    pub fn release(&mut self, committed: u64, runs: usize, empty: &mut Vec<EmptyChunk>) -> u64 {
        let before = self.pending_count;
        for _ in 0..runs {
            if !self.can_release(committed) {
                break;
            }
            let Some(run) = self.pending.pop_front() else { break };
            self.pending_count -= u64::from(run.count);
            self.free_now(run.place, run.count, empty);
        }
        before - self.pending_count
    }

    /// Whether pending slots can be freed after the commit of `committed`.
    pub fn can_release(&self, committed: u64) -> bool {
        self.pending.front().is_some_and(|run| run.seq <= committed)
    }

    /// Number of slots that wait for a commit.
    pub fn pending_free(&self) -> u64 {
        self.pending_count
    }
}

/// Splits a run of slots by chunk: the chunk, the first slot within it, and how many.
fn by_chunk(place: Place, count: u32) -> impl Iterator<Item = (u64, u32, u32)> {
    let (mut at, mut left) = (place.slot_number(), count);
    std::iter::from_fn(move || {
        let (chunk, first) = at.chunk();
        let here = left.min(at.left_in_chunk());
        at = at.plus(u64::from(here));
        left -= here;
        (here > 0).then_some((chunk, first, here))
    })
}
