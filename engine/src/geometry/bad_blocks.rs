//! Bad blocks: blocks of a volume whose slot does not match its checksum.
//!
//! How it works      A reader of a slot that finds a checksum mismatch notes it here. A block stays listed until its
//!                   slot is freed, because no version sees it any more, or a scrub reads it with a matching checksum.
//! Owner and locks   one lock over the list; an atomic flag says whether it is empty.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::block_map::place::Place;
use crate::system::System;
use crate::units::{BlockIndex, DeviceId, PartitionIndex};

/// Upper bound of listed blocks; all are counted.
const LISTED_MAX: usize = 128;

/// A block that does not match its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// The partition within the volume.
    pub partition: PartitionIndex,
    /// The block within the partition.
    pub block: BlockIndex,
    /// The device of its slot.
    pub device: DeviceId,
    /// When it was first found, nanoseconds since 1970.
    pub first_ns: u64,
    /// When it was last found, nanoseconds since 1970.
    pub last_ns: u64,
    /// How many times it was found.
    pub times: u64,
}

#[derive(Debug, Default)]
struct State {
    listed: BTreeMap<u64, BadBlock>,
    found: BTreeMap<DeviceId, u64>,
}

/// See the module's head.
#[derive(Debug)]
pub struct BadBlocks {
    system: Arc<dyn System>,
    any: AtomicBool,
    state: Mutex<State>,
}

impl BadBlocks {
    /// An empty list.
    pub fn new(system: Arc<dyn System>) -> BadBlocks {
        BadBlocks { system, any: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Notes a block whose slot at `place` on `device` does not match.
    pub fn note(
        &self,
        partition: PartitionIndex,
        block: BlockIndex,
        place: Place,
        device: DeviceId,
    ) {
        let now = self.system.wall_ns();
        let mut state = self.state.lock().expect("no holder panics");
        *state.found.entry(device).or_default() += 1;
        if state.listed.len() >= LISTED_MAX && !state.listed.contains_key(&place.raw()) {
            return;
        }
        let new = BadBlock { partition, block, device, first_ns: now, last_ns: now, times: 0 };
        let entry = state.listed.entry(place.raw()).or_insert(new);
        entry.last_ns = now;
        entry.times += 1;
        self.any.store(true, Ordering::Release);
    }

    /// Removes slots that are free, or whose checksum matches again.
    pub fn forget(&self, place: Place, count: u32) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock().expect("no holder panics");
        let last = place.step(count - 1).raw();
        state.listed.retain(|slot, _| !(place.raw()..=last).contains(slot));
        self.any.store(!state.listed.is_empty(), Ordering::Release);
    }

    /// The known bad blocks, at most [`LISTED_MAX`].
    pub fn listed(&self) -> Vec<BadBlock> {
        let state = self.state.lock().expect("no holder panics");
        let mut blocks: Vec<_> = state.listed.values().copied().collect();
        blocks.sort_by_key(|bad| (bad.partition, bad.block, bad.first_ns));
        blocks
    }

    /// How many times a block was found to be bad, by device.
    pub fn found(&self) -> Vec<(DeviceId, u64)> {
        let state = self.state.lock().expect("no holder panics");
        state.found.iter().map(|(device, times)| (*device, *times)).collect()
    }
}
