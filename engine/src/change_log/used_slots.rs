//! Used slots: the slots that recovered maps refer to, collected by one thread, then allocated in their logs all at
//! once.
//!
//! How it works      A bitmap for each chunk, as in [`chunks`](super::chunks), but without a lock, so that millions of
//!                   unordered slots cost little more than setting their bits.
//! Errors            a slot that is outside its log, or to which two blocks refer, is reported by its place.

use std::sync::Arc;

use super::chunks::SlotBits;
use super::space::{LogArea, Space};
use crate::block_map::diff::slots_not_in;
use crate::block_map::history::History;
use crate::block_map::place::Place;
use crate::block_map::versions::Versions;

/// Bits of one log's chunks.
#[derive(Debug)]
pub(super) struct LogUsedSlots {
    pub(super) log: Arc<LogArea>,
    pub(super) chunks: Vec<Option<Box<SlotBits>>>,
}

/// See the module's head.
#[derive(Debug)]
pub struct UsedSlots {
    pub(super) logs: Vec<LogUsedSlots>,
}

impl UsedSlots {
    /// The empty set, for these logs.
    pub fn new(space: &Space) -> UsedSlots {
        let used =
            |log: Arc<LogArea>| LogUsedSlots { chunks: vec![None; log.chunks as usize], log };
        UsedSlots { logs: space.logs().into_iter().map(used).collect() }
    }

    /// Marks a partition's slots as used, each once for all versions that see it. `Err`: one that cannot be marked.
    pub fn add_partition(&mut self, versions: &Versions, history: &History) -> Result<(), Place> {
        let mut bad = None;
        // The slots that a version sees and its parent does not: by V2 each slot occurs once.
        for index in 0..=versions.frozen().len() {
            let parent = versions.parent_of(index, history).map(|parent| versions.map(parent));
            slots_not_in(versions.map(index), parent, |count, place| {
                if bad.is_none() && !self.add(place, count) {
                    bad = Some(place);
                }
            });
        }
        bad.map_or(Ok(()), Err)
    }

    fn add(&mut self, place: Place, count: u32) -> bool {
        let Some(used) = self.logs.iter_mut().find(|used| used.log.number == place.log()) else {
            return false;
        };
        (0..u64::from(count)).all(|i| {
            let (chunk, slot) = place.slot_number().plus(i).chunk();
            let Some(chunk) = used.chunks.get_mut(chunk as usize) else {
                return false;
            };
            let bits = chunk.get_or_insert_default();
            let (word, mask) = (slot as usize / 64, 1 << (slot % 64));
            let fresh = bits[word] & mask == 0;
            bits[word] |= mask;
            fresh
        })
    }
}
