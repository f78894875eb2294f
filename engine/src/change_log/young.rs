//! Young slots: those that no map on the disk can refer to, whatever is lost: given back, they can be used again at once.
//!
//! How it works      After a power loss, records count up to the last commit mark (J3), behind the last checkpoint. So a slot
//!                   that was taken and given back between two marks is referred to by nothing that can be read back, and
//!                   what is written to it meanwhile harms nothing. A slot is young from when a record speaks of it until
//!                   a sync begins that may put a mark behind that record, or a checkpoint that holds it. After a kill all
//!                   records count, and the one that gave it back is among them.
//! Invariants        Y1 a sync says that it has begun ([`Watermark::begin_commit`](super::watermark::Watermark::begin_commit)) before
//!                      it looks how far the journal has got, and a processor looks for that after it has appended the
//!                      record that gives a slot back: so either the sync covers that record too, or the processor knows
//!                      of the sync, and what came before it is not young.
//!                   Y2 nobody reads a young slot that is given back: a read of its block would have held up the write that
//!                      gave it back (H1), and no snapshot sees it;
//!                   Y3 a young slot that the live map has is shared with no frozen one: it was written in the epoch that goes
//!                      on, and no frozen map is of that epoch. With the next one, no slot is young.
//! Owner and locks   the processor alone.

use rustc_hash::FxHashMap;

use super::chunks::SlotBits;
use crate::units::Epoch;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Young {
    /// What the latest sync covers that was known as these were taken.
    sync_watermark: u64,
    /// In which these were written.
    epoch: Epoch,
    slots: FxHashMap<(u16, u64), Box<SlotBits>>,
}

impl Young {
    /// A sync, the latest that has begun, covers the records up to `sync_watermark`, and this is the epoch of new writes: where
    /// either is news, no slot is young.
    pub fn see(&mut self, sync_watermark: u64, epoch: Epoch) {
        // While a sync begins, it is not known how many: all.
        if sync_watermark != self.sync_watermark
            || sync_watermark == u64::MAX
            || epoch != self.epoch
        {
            self.sync_watermark = sync_watermark;
            self.epoch = epoch;
            self.clear();
        }
    }

    /// A checkpoint holds all records so far: no slot is young.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// Slots of a log's chunk that record `seq` refers to, the first that does: young, unless a sync covers it.
    pub fn add(&mut self, seq: u64, chunk: (u16, u64), first: u32, count: u32) {
        if seq <= self.sync_watermark {
            return; // it was appended, and the sync began, before the processor looked
        }
        let bits = self.slots.entry(chunk).or_default();
        for slot in first..first + count {
            bits[slot as usize / 64] |= 1 << (slot % 64);
        }
    }

    /// Whether all these slots of a chunk are young.
    pub fn all(&self, chunk: (u16, u64), first: u32, count: u32) -> bool {
        let Some(bits) = self.slots.get(&chunk) else { return false };
        (first..first + count).all(|slot| is_set(bits, slot))
    }

    /// Whether a slot is young, and how many of at most `limit` from it on are like it; those that are, are it no more.
    pub fn take(&mut self, log: u16, chunk: u64, first: u32, limit: u32) -> (bool, u32) {
        let Some(bits) = self.slots.get_mut(&(log, chunk)) else { return (false, limit) };
        let young = is_set(bits, first);
        let alike = (first..first + limit).take_while(|slot| is_set(bits, *slot) == young);
        let count = alike.count() as u32;
        if young {
            for slot in first..first + count {
                bits[slot as usize / 64] &= !(1 << (slot % 64));
            }
        }
        (young, count)
    }
}

fn is_set(bits: &SlotBits, slot: u32) -> bool {
    bits[slot as usize / 64] >> (slot % 64) & 1 != 0
}
