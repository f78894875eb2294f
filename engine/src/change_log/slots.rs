//! Slots: what one processor does with the slots of a volume's change logs: takes them, and gives them back.
//!
//! How it works      Slots are handed out in runs, in the processor's home chunk of the first log that was asked for and
//!                   has room; see [`chunks`](super::chunks) for where else. Long runs have a home of their own, which was
//!                   empty, and in another log if that is as good: where single blocks are overwritten, free slots lie
//!                   scattered. A slot that is given back waits until its giving back is durable (J4), then it can be handed
//!                   out again. A [young](super::young) one need not.
//! Invariants        S1 a slot is free, used or waiting, and never two of them;
//!                   S2 no more slots are taken than were claimed in [`Space`](super::space::Space).
//! Owner and locks   the processor alone; the chunks have their own locks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::chunks::Chunks;
use super::space::{EmptyChunk, Log};
use super::used_slots::{LogUsedSlots, UsedSlots};
use super::young::Young;
use crate::block_map::place::Place;
use crate::units::SlotIndex;

/// Slots that are taken at a time from which on they had better follow each other: 32 KiB.
const LONG_RUN: u32 = 8;

#[derive(Debug)]
struct LogShare {
    log: Arc<Log>,
    home: Option<u64>,
    /// For runs of [`LONG_RUN`] and more.
    long_home: Option<u64>,
}

impl LogShare {
    /// Takes a run in a chunk where nobody else does: a long one where runs are long, as long as there are enough empty
    /// chunks.
    fn take(&mut self, want: u32) -> Option<(Place, u32)> {
        if want >= LONG_RUN
            && let Some(run) = self.take_long(want)
        {
            return Some(run);
        }
        take_at(&self.log, &mut self.home, Chunks::find_home, want)
    }

    /// Takes a run where runs are long, if there are enough empty chunks.
    fn take_long(&mut self, want: u32) -> Option<(Place, u32)> {
        take_at(&self.log, &mut self.long_home, Chunks::find_empty_home, want)
    }

    /// A chunk is empty: it is no home any more.
    fn leave(&mut self, chunk: u64) {
        for home in [&mut self.home, &mut self.long_home] {
            if home.take_if(|home| *home == chunk).is_some() {
                self.log.slots.leave_home(chunk);
            }
        }
    }
}

/// Takes a run in a home, or in the next one that `find` makes it when there is no space left.
fn take_at(
    log: &Log,
    home: &mut Option<u64>,
    find: fn(&Chunks) -> Option<u64>,
    want: u32,
) -> Option<(Place, u32)> {
    loop {
        let chunk = match *home {
            Some(chunk) => chunk,
            None => *home.insert(find(&log.slots)?),
        };
        if let Some((first, count)) = log.slots.take_in(chunk, want) {
            return Some((slot(log, chunk, first), count));
        }
        log.slots.leave_home(chunk);
        *home = None;
    }
}

fn slot(log: &Log, chunk: u64, first: u32) -> Place {
    Place::slot(log.number, SlotIndex::in_chunk(chunk, first))
}

#[derive(Debug)]
struct Waiting {
    seq: u64,
    place: Place,
    count: u32,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Slots {
    log_shares: BTreeMap<u16, LogShare>,
    waiting: VecDeque<Waiting>,
    waiting_count: u64,
    /// Those of the processor's that are young.
    pub young: Young,
}

impl Slots {
    fn log_share(&mut self, log: &Arc<Log>) -> &mut LogShare {
        let new = || LogShare { log: Arc::clone(log), home: None, long_home: None };
        self.log_shares.entry(log.number).or_insert_with(new)
    }

    /// Allocates up to `want` consecutive slots. They were claimed (S2), and `logs` are all that are counted, so some are
    /// free. Tried in this order:
    /// - for a long run: the first of the `equal_priority` first logs that has all of it in one piece;
    /// - the first of `logs` that has any.
    pub fn take(&mut self, logs: &[Arc<Log>], equal_priority: usize, want: u32) -> (Place, u32) {
        let whole = |log: &Arc<Log>| self.log_share(log).take_long(want);
        if want >= LONG_RUN
            && let Some(run) = logs[..equal_priority].iter().find_map(whole)
        {
            return run;
        }
        loop {
            if let Some(run) = logs.iter().find_map(|log| self.log_share(log).take(want)) {
                return run;
            }
            let anywhere = |log: &Arc<Log>| {
                let (chunk, first, count) = log.slots.take_in_any_home(want)?;
                Some((slot(log, chunk, first), count))
            };
            if let Some((place, count)) = logs.iter().find_map(anywhere) {
                self.log_share(
                    logs.iter().find(|log| log.number == place.log()).expect("of these"),
                );
                return (place, count);
            }
            // What was free a moment ago is another's by now, and what others gave back was not where we looked.
            std::hint::spin_loop();
        }
    }

    /// Takes what recovered maps refer to. `Err`: a slot that another processor's maps refer to as well.
    pub fn take_used(&mut self, used: UsedSlots) -> Result<(), Place> {
        for LogUsedSlots { log, chunks } in used.logs {
            self.log_share(&log);
            for (chunk, bits) in chunks.iter().enumerate() {
                let Some(bits) = bits else { continue };
                let taken = log.slots.take_exactly(chunk as u64, bits);
                taken.map_err(|first| slot(&log, chunk as u64, first))?;
            }
        }
        Ok(())
    }

    /// Gives a run back that a record of sequence number `seq` no longer refers to: those that are young at once. Says
    /// how many these are; the caller tells the space.
    pub fn give(&mut self, seq: u64, place: Place, count: u32) -> u64 {
        let mut given = 0;
        for (chunk, first, count) in by_chunk(place, count) {
            let mut at = first;
            while at < first + count {
                let (young, run) = self.young.take(place.log(), chunk, at, first + count - at);
                let run_place = Place::slot(place.log(), SlotIndex::in_chunk(chunk, at));
                if young {
                    self.give_now(run_place, run, &mut Vec::new());
                    given += u64::from(run);
                } else {
                    self.give_later(seq, run_place, run);
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

    /// Record `seq` refers to a run that was taken here: it is young, unless a sync may cover it already.
    pub fn recorded(&mut self, seq: u64, place: Place, count: u32) {
        for (chunk, first, count) in by_chunk(place, count) {
            self.young.add(seq, (place.log(), chunk), first, count);
        }
    }

    /// Gives a run back that a record of sequence number `seq`, or the catalog, no longer refers to.
    pub fn give_later(&mut self, seq: u64, place: Place, count: u32) {
        self.waiting.push_back(Waiting { seq, place, count });
        self.waiting_count += u64::from(count);
    }

    /// Gives a run back that no record ever spoke of. The caller tells the space.
    pub fn give_now(&mut self, place: Place, count: u32, empty: &mut Vec<EmptyChunk>) {
        let log_share = self.log_shares.get_mut(&place.log()).expect("the slot was taken here");
        for (chunk, first, count) in by_chunk(place, count) {
            if log_share.log.slots.give(chunk, first, count) {
                log_share.leave(chunk);
                empty.push(EmptyChunk { log: Arc::clone(&log_share.log), chunk });
            }
        }
    }

    /// Frees what waited for the commit of `committed` or an earlier record, at most so many runs; says how many slots that
    /// are. The caller tells the space.
    pub fn release(&mut self, committed: u64, runs: usize, empty: &mut Vec<EmptyChunk>) -> u64 {
        let before = self.waiting_count;
        for _ in 0..runs {
            if !self.can_release(committed) {
                break;
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            self.waiting_count -= u64::from(waiting.count);
            self.give_now(waiting.place, waiting.count, empty);
        }
        before - self.waiting_count
    }

    /// Whether something waits for the commit of `committed` or an earlier record.
    pub fn can_release(&self, committed: u64) -> bool {
        self.waiting.front().is_some_and(|waiting| waiting.seq <= committed)
    }

    /// Slots that wait for a commit.
    pub fn waiting(&self) -> u64 {
        self.waiting_count
    }
}

/// A run of slots, chunk by chunk: the chunk, the first slot within it, and how many.
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
