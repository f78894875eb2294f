//! Slots: one processor's allocation and freeing of the slots of a volume's log areas.
//!
//! How it works      Slots are allocated in runs, in the area in which they were claimed: those that are reserved in the
//!                   partition's [window](super::windows), else from a new window in the processor's active chunk.
//!                   Short windows fill the holes of the processor's chunks, long ones have an active chunk of their
//!                   own, which was empty, as long as more than half of the area is. A processor that has no chunk
//!                   with free slots ends its reservations of older change logs. Then it takes an empty chunk. If
//!                   there is none, it ends its other reservations; then it claims slots in the next area of the same
//!                   priority instead, if there is one; at last it takes the free slots of the area wherever they are.
//!                   So an area that a rule names is full before one that the rule names later is used. A freed slot is
//!                   pending until its freeing is durable (J4), then it can be allocated again. A [young](super::young)
//!                   one is free at once. While the device of an area is full, backed slots come first, wherever they
//!                   are: for others it has no space.
//! Invariants        S1 a slot is free, used or pending, and never two of them;
//!                   S2 no more slots are allocated than were [claimed](super::claim), and in the areas in which they
//!                      were.
//! Owner and locks   the processor alone; the chunks have their own locks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use super::chunks::{CHUNK_SLOTS, Left};
use super::claim::{Claim, LONG_RUN};
use super::space::{AreaBits, EmptyChunk, LogArea};
use super::used_slots::{LogUsedSlots, UsedSlots};
use super::windows::{Window, Windows};
use super::young::Young;
use crate::block_map::place::Place;
use crate::units::{LocalIndex, ProcessorIndex, SlotIndex};

/// A run of slots that were allocated in a chunk.
#[derive(Clone, Copy, Debug)]
struct Run {
    chunk: u64,
    first: u32,
    count: u32,
}

/// What one processor has of an area.
#[derive(Debug)]
struct AreaSlots {
    log: Arc<LogArea>,
    active: Option<u64>,
    /// The active chunk for windows of [`LONG_RUN`] and more.
    long_active: Option<u64>,
    /// Idle chunks with open slots (CH2).
    open: BinaryHeap<Reverse<u64>>,
    /// Chunks with reserved slots, of the present change logs and of older ones.
    reserved: Vec<u64>,
    expired: Vec<u64>,
    /// The chunk in which a slot was last found that may be anywhere.
    last_ones: u64,
}

impl AreaSlots {
    fn new(log: Arc<LogArea>) -> AreaSlots {
        AreaSlots {
            log,
            active: None,
            long_active: None,
            open: BinaryHeap::new(),
            reserved: Vec::new(),
            expired: Vec::new(),
            last_ones: 0,
        }
    }

    /// Allocates a run in a chunk of this processor, or an empty one, for a partition with this window.
    fn take(&mut self, processor: ProcessorIndex, window: &mut Window, want: u32) -> Option<Run> {
        if let Some((log, chunk, next, left)) = window.left() {
            let suits = log == self.log.number && (want <= left || want < LONG_RUN);
            let wanted = if suits { want.min(left) } else { 0 };
            let count = match wanted {
                0 => 0,
                _ => self.log.slots.take_reserved(chunk, processor, next, wanted),
            };
            if count > 0 {
                window.take(count);
                return Some(Run { chunk, first: next, count });
            }
        }
        self.take_from_new_window(processor, window, want)
    }

    /// Whether there may be a chunk of this processor, or an empty one, with free slots.
    fn has_chunks(&self) -> bool {
        let lists = self.open.is_empty() && self.expired.is_empty() && self.reserved.is_empty();
        let none = self.active.or(self.long_active).is_none() && lists;
        !none || self.log.slots.claimed() < self.log.chunks
    }

    fn take_from_new_window(
        &mut self,
        processor: ProcessorIndex,
        window: &mut Window,
        want: u32,
    ) -> Option<Run> {
        let size = want.max(window.next_size());
        loop {
            let long = (size >= LONG_RUN).then(|| self.long_chunk(processor)).flatten();
            // With many empty chunks, what is left of this one is for short windows.
            let least = match long {
                Some(_) if self.log.slots.has_plenty_empty() => {
                    want.clamp(LONG_RUN, CHUNK_SLOTS as u32)
                }
                _ => 1,
            };
            let chunk = match long {
                Some(chunk) => chunk,
                None => self.short_chunk(processor)?,
            };
            if let Some(carved) = self.log.slots.carve(chunk, want, size, least) {
                if carved.reserves {
                    self.reserves(chunk);
                }
                window.set(self.log.number, chunk, carved.first, carved.end);
                window.take(carved.count);
                return Some(Run { chunk, first: carved.first, count: carved.count });
            }
            self.deactivate(chunk);
        }
    }

    /// Allocates the first free run, or the first run of `backed` slots, even if it is reserved or in a chunk of another
    /// processor.
    fn steal(
        &mut self,
        processor: ProcessorIndex,
        window: &mut Window,
        want: u32,
        backed: bool,
    ) -> Option<Run> {
        let slots = &self.log.slots;
        let (chunk, first, count, open) = slots.steal(self.last_ones, processor, want, backed)?;
        self.last_ones = chunk;
        self.list(chunk, Left { empty: false, open });
        window.took(count);
        Some(Run { chunk, first, count })
    }

    /// The active chunk for long windows, or a new one if there are enough empty chunks.
    fn long_chunk(&mut self, processor: ProcessorIndex) -> Option<u64> {
        if self.long_active.is_none() && self.log.slots.has_plenty_empty() {
            self.long_active = self.log.slots.activate_empty(processor);
        }
        self.long_active
    }

    /// The active chunk for short windows, or a new one: one of this processor, else an empty one, else one of this
    /// processor whose reservations end.
    fn short_chunk(&mut self, processor: ProcessorIndex) -> Option<u64> {
        if self.active.is_some() {
            return self.active;
        }
        loop {
            let slots = &self.log.slots;
            if let Some(Reverse(chunk)) = self.open.pop() {
                if slots.activate(chunk, processor) {
                    self.active = Some(chunk);
                    break;
                }
            } else if let Some(chunk) = self.expired.pop() {
                let left = slots.unreserve_all(chunk, processor);
                self.list(chunk, left);
            } else if let Some(chunk) = slots.activate_empty(processor) {
                self.active = Some(chunk);
                break;
            } else if let Some(chunk) = self.reserved.pop() {
                let left = slots.unreserve_all(chunk, processor);
                self.list(chunk, left);
            } else {
                // The long chunk serves short windows too before any is stolen.
                self.active = slots.activate_returned(processor);
                return self.active.or(self.long_active);
            }
        }
        self.active
    }

    /// Makes an active chunk idle.
    fn deactivate(&mut self, chunk: u64) {
        let is_it = |active: &mut u64| *active == chunk;
        if self.active.take_if(is_it).or_else(|| self.long_active.take_if(is_it)).is_some() {
            let left = self.log.slots.deactivate(chunk);
            self.list(chunk, left);
        }
    }

    /// Lists a chunk, if it is open now (CH2).
    fn list(&mut self, chunk: u64, left: Left) {
        if left.open {
            self.open.push(Reverse(chunk));
            if is_long(self.open.len(), &self.log) {
                let mut open = std::mem::take(&mut self.open).into_vec();
                open.sort_unstable();
                open.dedup();
                self.open = open.into();
            }
        }
    }

    /// Notes that a chunk has reserved slots.
    fn reserves(&mut self, chunk: u64) {
        self.reserved.push(chunk);
        for list in [&mut self.reserved, &mut self.expired] {
            if is_long(list.len(), &self.log) {
                list.sort_unstable();
                list.dedup();
            }
        }
    }
}

/// Whether a list of an area's chunks is so long that chunks are in it twice: they became empty, and were taken again.
fn is_long(length: usize, log: &LogArea) -> bool {
    length as u64 > 2 * log.chunks + 64
}

fn area_of<'a>(logs: &'a mut BTreeMap<u16, AreaSlots>, log: &Arc<LogArea>) -> &'a mut AreaSlots {
    logs.entry(log.number).or_insert_with(|| AreaSlots::new(Arc::clone(log)))
}

fn slot(log: &LogArea, chunk: u64, first: u32) -> Place {
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
    processor: ProcessorIndex,
    logs: BTreeMap<u16, AreaSlots>,
    windows: Windows,
    pending: VecDeque<PendingFree>,
    pending_count: u64,
    /// Areas in which slots were freed since the last [`Slots::take_freed_in`].
    freed_in: AreaBits,
    /// Areas in which slots that were freed here may be backed.
    pub backed_in: AreaBits,
    /// The processor's young slots.
    pub young: Young,
}

impl Slots {
    /// Those of a processor, none yet.
    pub fn new(processor: ProcessorIndex) -> Slots {
        Slots { processor, ..Slots::default() }
    }

    /// Allocates up to `want` consecutive slots for a partition, of those that were claimed in `areas` (S2).
    pub fn allocate(
        &mut self,
        local: LocalIndex,
        areas: &[Arc<LogArea>],
        claim: &mut Claim,
        want: u32,
    ) -> (Place, u32) {
        let (index, claimed) = claim.next();
        let want = u64::from(want).min(claimed) as u32;
        let window = self.windows.of(local);
        let before = *window;
        let area = area_of(&mut self.logs, &areas[index]);
        let lean = areas[index].is_lean();
        let backed = if lean { area.steal(self.processor, window, want, true) } else { None };
        let found = backed.or_else(|| area.take(self.processor, window, want));
        let found = found.map(|run| (&areas[index], run));
        let alike = &areas[claim.alike()];
        let found = found.or_else(|| self.allocate_elsewhere(local, alike, want));
        let (log, Run { chunk, first, count }) =
            found.unwrap_or_else(|| self.allocate_last_ones(local, &areas[index], want));
        let window = self.windows.of(local);
        let replaced = before.left().filter(|_| !window.is(&before));
        claim.allocated(u64::from(count));
        if let Some((log, chunk, first, count)) = replaced {
            let area = self.logs.get_mut(&log).expect("it has a window there");
            let left = area.log.slots.unreserve(chunk, self.processor, first, count);
            area.list(chunk, left);
        }
        (slot(log, chunk, first), count)
    }

    /// Allocates slots, which were claimed in the first of these areas, in another one where the processor has chunks.
    fn allocate_elsewhere<'a>(
        &mut self,
        local: LocalIndex,
        areas: &'a [Arc<LogArea>],
        want: u32,
    ) -> Option<(&'a Arc<LogArea>, Run)> {
        for log in &areas[1..] {
            let area = area_of(&mut self.logs, log);
            if !area.has_chunks() || !log.claim(u64::from(want)) {
                continue;
            }
            let run = area.take(self.processor, self.windows.of(local), want);
            let count = u64::from(run.map_or(0, |run| run.count));
            // What was claimed twice is given back; others may have waited for it.
            for (claimed_in, unused) in [(log, u64::from(want) - count), (&areas[0], count)] {
                claimed_in.add_free(unused);
                claimed_in.end_write(unused);
                self.freed_in |= claimed_in.bit();
            }
            if let Some(run) = run {
                return Some((log, run));
            }
        }
        None
    }

    /// Allocates the slots that are left in an area, wherever they are.
    fn allocate_last_ones<'a>(
        &mut self,
        local: LocalIndex,
        log: &'a Arc<LogArea>,
        want: u32,
    ) -> (&'a Arc<LogArea>, Run) {
        let area = area_of(&mut self.logs, log);
        let window = self.windows.of(local);
        loop {
            if let Some(run) = area.steal(self.processor, window, want, false) {
                return (log, run);
            }
            // Another processor allocated the slots seen as free, and slots freed since then were not where this one
            // searched.
            std::hint::spin_loop();
        }
    }

    /// Begins new change logs: all windows begin at 1, and what is reserved may be used when another chunk is needed.
    pub fn begin_logs(&mut self) {
        self.windows.clear();
        for area in self.logs.values_mut() {
            area.expired.append(&mut area.reserved);
        }
    }

    /// The area of this number, if the processor has used it.
    pub fn log(&self, number: u16) -> Option<&Arc<LogArea>> {
        self.logs.get(&number).map(|area| &area.log)
    }

    /// The areas in which slots became free, or pending, since the last call.
    pub fn take_freed_in(&mut self) -> AreaBits {
        std::mem::take(&mut self.freed_in)
    }

    /// Allocates the slots to which recovered maps refer. `Err`: a slot to which another processor's maps refer too.
    pub fn allocate_used(&mut self, used: UsedSlots) -> Result<(), Place> {
        for LogUsedSlots { log, chunks } in used.logs {
            let processor = self.processor;
            let area = area_of(&mut self.logs, &log);
            for (chunk, bits) in chunks.iter().enumerate() {
                let Some(bits) = bits else { continue };
                let taken = log.slots.allocate_exactly(chunk as u64, processor, bits);
                let left = taken.map_err(|first| slot(&log, chunk as u64, first))?;
                area.list(chunk as u64, left);
            }
        }
        Ok(())
    }

    /// Frees a run to which record `seq` removed the last reference: young slots at once. Returns how many these are.
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
        let area = self.logs.get(&place.log()).expect("the slot was allocated here");
        area.log.add_pending_free(u64::from(count)); // SP2
        self.freed_in |= area.log.bit();
        self.pending.push_back(PendingFree { seq, place, count });
        self.pending_count += u64::from(count);
    }

    /// Frees a run to which no record ever referred.
    pub fn free_now(&mut self, place: Place, count: u32, empty: &mut Vec<EmptyChunk>) {
        let processor = self.processor;
        let area = self.logs.get_mut(&place.log()).expect("the slot was allocated here");
        for (chunk, first, count) in by_chunk(place, count) {
            let left = area.log.slots.free(chunk, processor, first, count);
            area.list(chunk, left);
            if left.empty {
                area.deactivate(chunk);
                empty.push(EmptyChunk { log: Arc::clone(&area.log), chunk });
            }
        }
        area.log.add_free(u64::from(count));
        self.freed_in |= area.log.bit();
        self.backed_in |= area.log.bit();
    }

    /// Notes whether those of these slots that are free are backed.
    pub fn set_backed(&mut self, place: Place, count: u32, backed: bool) {
        let log = &self.logs.get(&place.log()).expect("the slot was allocated here").log;
        for (chunk, first, count) in by_chunk(place, count) {
            log.slots.set_backed(chunk, first, count, backed);
        }
        self.backed_in |= log.bit();
    }

    /// Frees pending slots that need the commit of `committed` or an earlier record, at most `runs` runs; returns how
    /// many slots.
    pub fn release(&mut self, committed: u64, runs: usize, empty: &mut Vec<EmptyChunk>) -> u64 {
        let before = self.pending_count;
        for _ in 0..runs {
            if !self.can_release(committed) {
                break;
            }
            let Some(run) = self.pending.pop_front() else { break };
            self.pending_count -= u64::from(run.count);
            self.free_now(run.place, run.count, empty);
            let area = self.logs.get(&run.place.log()).expect("the slot was allocated here");
            area.log.sub_pending_free(u64::from(run.count)); // SP2: after they are free
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
