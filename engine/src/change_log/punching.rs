//! Punching: the space of freed slots goes back to their device.
//!
//! How it works      A freed slot is *backed*: its device still has space for it. A sweep visits the chunks of an area that
//!                   have backed slots. Where no slot was allocated or freed for some sweeps, it takes the backed ones,
//!                   punches them run by run, and frees them; so an active writer keeps what it is about to use again. A
//!                   chunk that has become empty is punched at once. After a start it is not known which free slots are
//!                   backed. So the first sweeps are a survey: they ask the file system where the area's file has data. A
//!                   disk cannot be asked: of its slots only those that are freed from then on count as backed.
//! Invariants        PU1 a slot that is punched is allocated to the punching, from before the call until after it;
//!                   PU2 slots are punched only if nobody waits for slots of the area and enough others are free (SP2);
//!                   PU3 one sweep of an area at a time.
//! Why no punch destroys a write   The punching allocates slots as a write does, under the chunk's lock. So a write gets
//!                   them before, and then they are not backed (CH3), or after the call has returned. A punched slot may be
//!                   overwritten like any free slot: its freeing is durable, or it was young (J4). No record refers to
//!                   the slots of a punching, so after a kill they are free.
//! Owner and locks   the pool thread that sweeps; the chunks have their own locks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk::run_of_ones;
use super::chunks::{CHUNK_SLOTS, SlotBits};
use super::space::LogArea;
use crate::io::device::Device;
use crate::mutants::{Bug, bug};
use crate::system::ticks::{TICK, Tick};
use crate::units::{BLOCK_SIZE, SlotIndex};

/// Ticks from one sweep to the next one.
const SWEEP_TICKS: Tick = 4;
/// How many times as long as a sweep took the next one waits, if it did not come to the end.
const PAUSE_FACTOR: u64 = 9;

impl LogArea {
    /// Begins a sweep, if one is due, or `now`; it ends with [`LogArea::end_sweep`] (PU3).
    pub fn begin_sweep(&self, tick: Tick, now: bool) -> bool {
        let due = tick.wrapping_sub(self.sweep.next.load(Ordering::Relaxed)) < Tick::MAX / 2;
        let begins = (due || now) && !self.sweep.running.swap(true, Ordering::AcqRel);
        if begins {
            self.sweep.next.store(tick.wrapping_add(SWEEP_TICKS), Ordering::Relaxed);
        }
        begins
    }

    /// Ends a sweep that has taken so many nanoseconds; `tick`: when it began, if there is more to do.
    pub fn end_sweep(&self, took_ns: u64, tick: Option<Tick>) {
        if let Some(tick) = tick {
            let pause = took_ns * PAUSE_FACTOR / TICK.as_nanos() as u64;
            let next = tick.wrapping_add(1 + pause.min(1000) as Tick);
            self.sweep.next.store(next, Ordering::Relaxed);
        }
        self.sweep.running.store(false, Ordering::Release);
    }

    /// Whether a sweep may find something to punch.
    pub fn needs_sweep(&self) -> bool {
        let can_punch = self.devices().any(|device| device.can_punch());
        can_punch && (!self.is_surveyed() || self.slots.backed(0).next().is_some())
    }

    /// Whether a survey has come to the end.
    pub fn is_surveyed(&self) -> bool {
        self.sweep.surveyed.load(Ordering::Relaxed) >= self.size()
    }

    /// The device where the next sweep begins.
    pub fn next_swept(&self) -> &Arc<Device> {
        let slot = if self.is_surveyed() {
            let from = self.sweep.chunk.load(Ordering::Relaxed);
            let chunk = self.slots.backed(from).next().or_else(|| self.slots.backed(0).next());
            SlotIndex::in_chunk(chunk.unwrap_or(0), 0)
        } else {
            SlotIndex(self.sweep.surveyed.load(Ordering::Relaxed))
        };
        self.locate(slot).0
    }

    /// Sweeps the chunks on a device, until `over`; `take` takes a chunk's slots. Returns whether it did not come to the
    /// end.
    pub fn sweep(
        &self,
        device: &Device,
        over: impl Fn() -> bool,
        take: impl Fn(u64) -> Option<Punching>,
    ) -> bool {
        if !self.is_surveyed() {
            self.survey(device, over);
            return true;
        }
        let from = self.sweep.chunk.load(Ordering::Relaxed);
        let from = if self.slots.backed(from).next().is_some() { from } else { 0 };
        for chunk in self.slots.backed(from) {
            if over() || self.locate(SlotIndex::in_chunk(chunk, 0)).0.id != device.id {
                self.sweep.chunk.store(chunk, Ordering::Relaxed);
                return true;
            }
            if let Some(punching) = take(chunk) {
                punching.punch();
            }
        }
        self.sweep.chunk.store(0, Ordering::Relaxed);
        false
    }

    /// Finds out which free slots on a device are backed, until `over`.
    fn survey(&self, device: &Device, over: impl Fn() -> bool) {
        loop {
            let slot = SlotIndex(self.sweep.surveyed.load(Ordering::Relaxed));
            if slot.0 >= self.size() || over() {
                return;
            }
            let (here, offset, left) = self.locate_run(slot);
            if here.id != device.id {
                return;
            }
            let known = here.can_punch() && here.knows_holes();
            let found = if known { here.allocation(offset, left) } else { Ok((left, true)) };
            // After an error only disk space stays allocated.
            let (run, hole) = found.unwrap_or((left, true));
            let data = !hole || run < BLOCK_SIZE;
            let slots = if hole { run / BLOCK_SIZE } else { run.div_ceil(BLOCK_SIZE) }.max(1);
            if data {
                self.note_backed(slot, slots);
            }
            self.sweep.surveyed.store(slot.0 + slots, Ordering::Relaxed);
        }
    }

    fn note_backed(&self, slot: SlotIndex, slots: u64) {
        let (mut slot, mut left) = (slot, slots);
        while left > 0 {
            let (chunk, first) = slot.chunk();
            let here = left.min(u64::from(slot.left_in_chunk()));
            self.slots.set_backed(chunk, first, here as u32, true);
            slot = slot.plus(here);
            left -= here;
        }
    }
}

/// Backed slots of one chunk that are being punched (PU1). They are free again when it is dropped.
#[derive(Debug)]
pub struct Punching {
    log: Arc<LogArea>,
    chunk: u64,
    slots: Box<SlotBits>,
    count: u64,
}

impl Punching {
    /// Takes the backed slots of a chunk, if at least `sweeps` sweeps have found it unchanged, and enough other slots
    /// are free (PU2).
    pub fn take(log: &Arc<LogArea>, chunk: u64, sweeps: u8) -> Option<Punching> {
        if !log.locate(SlotIndex::in_chunk(chunk, 0)).0.can_punch() {
            return None;
        }
        let most = log.slots.visit_backed(chunk, sweeps)?;
        log.returning.fetch_add(most, Ordering::SeqCst); // SP2
        let claimed = log.try_decrement_free(most);
        let taken = if claimed { log.slots.take_backed(chunk, most) } else { None };
        let count = taken.as_ref().map_or(0, |(_, count)| *count);
        if claimed {
            log.add_free(most - count);
        }
        log.returning.fetch_sub(most - count, Ordering::SeqCst);
        let (slots, _) = taken?;
        let mut punching = Punching { log: Arc::clone(log), chunk, slots, count };
        if bug(Bug::UnownedPunch) {
            punching.give_back();
        }
        Some(punching)
    }

    /// Punches them out of their device.
    pub fn punch(&self) {
        let mut first = 0;
        while first < CHUNK_SLOTS as u32 {
            let (word, bit) = (first as usize / 64, first % 64);
            let rest = self.slots[word] >> bit;
            if rest == 0 {
                first += 64 - bit;
                continue;
            }
            first += rest.trailing_zeros();
            let count = run_of_ones(first, CHUNK_SLOTS as u32, |word| self.slots[word]);
            self.punch_run(first, count);
            first += count;
        }
    }

    /// Punches a run in several calls: during each of them the file system locks the file.
    fn punch_run(&self, first: u32, count: u32) {
        let (device, mut offset) = self.log.locate(SlotIndex::in_chunk(self.chunk, first));
        let mut left = u64::from(count) * BLOCK_SIZE;
        while left > 0 {
            let here = device.clearable_in_one_call(offset, left).max(BLOCK_SIZE).min(left);
            // After an error only disk space stays allocated; the slots are still free.
            let Ok(true) = device.punch(offset, here) else { return };
            offset += here;
            left -= here;
        }
    }

    fn give_back(&mut self) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            self.log.slots.free_exactly(self.chunk, &self.slots);
            self.log.add_free(count);
            self.log.returning.fetch_sub(count, Ordering::SeqCst); // SP2
        }
    }
}

impl Drop for Punching {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_due_once_in_a_while_and_later_if_the_last_one_took_long() {
        let area = LogArea::new(1, Vec::new()).unwrap();
        assert!(area.begin_sweep(7, false) && !area.begin_sweep(100, true), "PU3");
        area.end_sweep(0, None);
        assert!(!area.begin_sweep(8, false) && area.begin_sweep(8, true));
        area.end_sweep(0, None);
        assert!(!area.begin_sweep(11, false) && area.begin_sweep(12, false));
        area.end_sweep(TICK.as_nanos() as u64, Some(12));
        assert!(!area.begin_sweep(21, false) && area.begin_sweep(22, false));
        area.end_sweep(0, Some(22));
        assert!(area.begin_sweep(23, false));
    }
}
