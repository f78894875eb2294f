//! Young slots: slots to which no map on the disk can refer, whatever a crash loses: once freed, they can be reused at
//! once.
//!
//! How it works      After a power loss, records count up to the last commit mark (J3), after the last checkpoint. So
//!                   nothing that recovery can read refers to a slot that was allocated and freed between two marks,
//!                   and writing to it in that time is harmless. A slot is young from its first record until a sync
//!                   begins that may store a mark after that record, or a checkpoint begins that includes it. After a
//!                   kill all records count, including the one that freed the slot.
//! Invariants        Y1 a sync announces its begin
//!                   ([`Watermark::begin_commit`](super::watermark::Watermark::begin_commit)) before it reads the last
//!                   record appended, and a processor reads the announcement after it has appended the record that
//!                   frees a slot: so either the sync covers that record too, or the processor knows of the sync, and
//!                   slots recorded before it are not young.
//!                   Y2 no thread reads a young slot that is freed: a read of its block would have blocked the write
//!                      that freed it (H1), and no snapshot sees it;
//!                   Y3 a young slot in the live map is shared with no frozen map: it was written in the current epoch,
//!                      and no frozen map is of that epoch. When the next epoch begins, no slot is young.
//! Owner and locks   the processor alone.

use rustc_hash::FxHashMap;

use super::chunks::SlotBits;
use crate::units::Epoch;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Young {
    /// The sync watermark known when these slots were added.
    sync_watermark: u64,
    /// The epoch in which these slots were written.
    epoch: Epoch,
    slots: FxHashMap<(u16, u64), Box<SlotBits>>,
}

impl Young {
    /// Observes the sync watermark and the epoch of new writes: if either has changed, no slot is young any more.
    pub fn observe(&mut self, sync_watermark: u64, epoch: Epoch) {
        // While a sync begins, the watermark is unknown: all records count as covered.
        if sync_watermark != self.sync_watermark
            || sync_watermark == u64::MAX
            || epoch != self.epoch
        {
            self.sync_watermark = sync_watermark;
            self.epoch = epoch;
            self.clear();
        }
    }

    /// Notes that a checkpoint includes all records so far: no slot is young.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// Adds slots of a log's chunk to which record `seq` is the first to refer: young, unless a sync covers it.
    pub fn add(&mut self, seq: u64, chunk: (u16, u64), first: u32, count: u32) {
        if seq <= self.sync_watermark {
            return; // the sync began after the append, before the processor read the watermark
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

    /// Whether a slot is young, and how many slots from it on, at most `limit`, have the same answer. Young ones are
    /// removed from the set.
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
