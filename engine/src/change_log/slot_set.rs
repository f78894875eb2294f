//! Slot set: slots of any logs, whether these exist or not.
//!
//! How it works      A bitmap for each chunk, as in [`chunks`](super::chunks), but without a lock.
//! Owner and locks   who collects it.

use std::collections::HashMap;

use super::chunks::SlotBits;
use crate::block_map::place::Place;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct SlotSet {
    chunks: HashMap<(u16, u64), Box<SlotBits>>,
}

impl SlotSet {
    /// Adds a run, if it is one of slots.
    pub fn add(&mut self, place: Place, count: u32) {
        let slots = if place.is_slot() { u64::from(count) } else { 0 };
        for (chunk, slot) in (0..slots).map(|i| place.slot_number().plus(i).chunk()) {
            let chunk = self.chunks.entry((place.log(), chunk));
            chunk.or_default()[slot as usize / 64] |= 1 << (slot % 64);
        }
    }

    /// Its slots by log and chunk, in order.
    pub fn into_chunks(self) -> Vec<((u16, u64), Box<SlotBits>)> {
        let mut chunks: Vec<_> = self.chunks.into_iter().collect();
        chunks.sort_unstable_by_key(|(number, _)| *number);
        chunks
    }
}
