//! Chunks: the allocation bitmaps of one log area, shared by all processors.
//!
//! How it works      A bitmap for each chunk of [`CHUNK_SLOTS`] slots that has any used, under a lock of its own. A chunk
//!                   belongs to one processor as long as a slot of it is used, or it is that processor's active chunk
//!                   (elsewhere: an open segment). A second bitmap has the slots that are reserved for the
//!                   [windows](super::windows) of partitions. A reservation is a hint, and is not counted: only its
//!                   processor respects it, until nothing else is free. So processors share a chunk only when nothing
//!                   else is left: then they allocate any free slot, down to the last one. A third bitmap has the
//!                   backed slots: free ones whose space the device still has, because they were written since they
//!                   were last [punched](super::punching).
//! Invariants        CH1 a slot is allocated to one owner until it is freed;
//!                   CH2 an idle chunk that is empty is in `empty`; one with an owner that has free slots that are not
//!                       reserved is in its owner's list or in `returned`; each with free slots is in `free`;
//!                   CH3 a backed slot is free, and its chunk is in `backed`;
//!                   CH4 a reserved slot is not used, and its chunk has an owner.
//! Owner and locks   one lock for each chunk, held for a search in it; no two are ever held together. `empty` and
//!                   `returned` are hints: a thread that follows one checks the chunk itself.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub use super::chunk::{CHUNK_SLOTS, SlotBits};
use super::chunk::{Chunk, Role, SLOTS, WORDS, masks};
use super::chunk_set::ChunkSet;
use crate::units::{BLOCK_SIZE, ProcessorIndex, SlotIndex};

/// Bytes in a chunk.
pub const CHUNK_BYTES: u64 = CHUNK_SLOTS * BLOCK_SIZE;

impl SlotIndex {
    /// Slot `first` of a chunk.
    pub fn in_chunk(chunk: u64, first: u32) -> SlotIndex {
        SlotIndex(chunk * CHUNK_SLOTS + u64::from(first))
    }

    /// The chunk that it is in, and which of that chunk's slots it is.
    pub fn chunk(self) -> (u64, u32) {
        (self.0 / CHUNK_SLOTS, (self.0 % CHUNK_SLOTS) as u32)
    }

    /// Slots from it to the end of its chunk, at least 1. The next chunk may be in another extent.
    pub fn left_in_chunk(self) -> u32 {
        SLOTS - self.chunk().1
    }
}

/// Slots of a chunk that were allocated, and those after them that were reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carved {
    /// First slot.
    pub first: u32,
    /// Slots that were allocated, from it on.
    pub count: u32,
    /// The end of those that were reserved.
    pub end: u32,
    /// These are the first ones that are reserved in the chunk: its owner lists it.
    pub reserves: bool,
}

/// What became of a chunk of which slots were freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// It is empty.
    pub empty: bool,
    /// It has free slots, and its owner, who has called, lists it (CH2).
    pub open: bool,
}

/// Runs of free slots that are looked at for the longest one.
const RUNS_MAX: usize = 16;

/// See the module's head.
#[derive(Debug)]
pub struct Chunks {
    chunks: Vec<Mutex<Chunk>>,
    empty: ChunkSet,
    returned: ChunkSet,
    free: ChunkSet,
    backed: ChunkSet,
    used: AtomicU64,
    claimed: AtomicU64,
}

impl Chunks {
    /// `count` chunks, all empty.
    pub fn new(count: u64) -> Chunks {
        let (empty, free) = (ChunkSet::new(count), ChunkSet::new(count));
        for chunk in 0..count {
            empty.set(chunk);
            free.set(chunk);
        }
        Chunks {
            chunks: (0..count).map(|_| Mutex::default()).collect(),
            empty,
            returned: ChunkSet::new(count),
            free,
            backed: ChunkSet::new(count),
            used: AtomicU64::new(0),
            claimed: AtomicU64::new(0),
        }
    }

    /// Number of used slots.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Number of chunks that are not empty, or active.
    pub fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Acquire)
    }

    /// Whether more than half of all chunks are empty.
    pub fn has_plenty_empty(&self) -> bool {
        self.claimed() * 2 < self.chunks.len() as u64
    }

    /// The owner of a chunk.
    #[cfg(test)]
    pub fn owner(&self, chunk: u64) -> Option<ProcessorIndex> {
        self.chunks[chunk as usize].lock().expect("no holder panics").owner
    }

    /// Whether a slot is backed.
    #[cfg(test)]
    pub fn is_backed(&self, slot: SlotIndex) -> bool {
        let (chunk, slot) = slot.chunk();
        let chunk = self.chunks[chunk as usize].lock().expect("no holder panics");
        chunk.backed(slot as usize / 64) >> (slot % 64) & 1 == 1
    }

    /// Changes a chunk under its lock, and updates the counters.
    fn change<T>(&self, number: u64, f: impl FnOnce(&mut Chunk) -> T) -> T {
        let mut chunk = self.chunks[number as usize].lock().expect("no holder panics");
        let (used, claimed) = (u64::from(chunk.used), u64::from(chunk.is_claimed()));
        let (free, backed) = (chunk.has_free_slots(), chunk.backed_count > 0);
        let result = f(&mut chunk);
        // Modulo 2^64, so a decrease is added as its complement.
        let more_used = u64::from(chunk.used).wrapping_sub(used);
        let more_claimed = u64::from(chunk.is_claimed()).wrapping_sub(claimed);
        if chunk.used == 0 && chunk.bits.is_some() {
            chunk.bits = None;
        }
        if chunk.used == 0 && chunk.role == Role::Idle {
            chunk.unreserve_all(); // CH4
            (chunk.owner, chunk.listed) = (None, false);
            self.empty.set(number); // CH2
        }
        match (free, chunk.has_free_slots()) {
            (false, true) => self.free.set(number), // CH2
            (true, false) => {
                self.free.clear(number);
            }
            _ => {}
        }
        if !backed && chunk.backed_count > 0 {
            self.backed.set(number); // CH3
        }
        drop(chunk);
        if more_used != 0 {
            self.used.fetch_add(more_used, Ordering::AcqRel);
        }
        if more_claimed != 0 {
            self.claimed.fetch_add(more_claimed, Ordering::AcqRel);
        }
        result
    }

    /// Allocates up to `want` consecutive slots in an active chunk of this processor, and reserves what is left of
    /// `window` slots from the first one on, as far as they are free. `None`: no run has at least `least` slots.
    pub fn carve(&self, chunk: u64, want: u32, window: u32, least: u32) -> Option<Carved> {
        self.change(chunk, |chunk| {
            assert!(chunk.role == Role::Active, "the caller made it active");
            // Where any run will do, a search of many small ones would cost more than it gains.
            let runs = if least > 1 { usize::MAX } else { RUNS_MAX };
            let found = chunk.find(want.max(window), runs);
            let (first, found) = found.filter(|(_, run)| *run >= least)?;
            let count = found.min(want);
            let reserves = found > count && chunk.reserved_count == 0;
            chunk.allocate(first, count);
            chunk.reserve(first + count, found - count);
            Some(Carved { first, count, end: first + found, reserves })
        })
    }

    /// Allocates slots from `first` on, at most `want`, as far as they are reserved for this processor; returns how
    /// many.
    pub fn take_reserved(
        &self,
        chunk: u64,
        processor: ProcessorIndex,
        first: u32,
        want: u32,
    ) -> u32 {
        self.change(chunk, |chunk| {
            if chunk.owner != Some(processor) {
                return 0;
            }
            let reserved = |chunk: &Chunk, word: usize| {
                chunk.reserved.as_ref().map_or(0, |reserved| reserved[word])
            };
            let count = chunk.run(first, want, reserved);
            if count > 0 {
                chunk.unreserve(first, count);
                chunk.allocate(first, count);
            }
            count
        })
    }

    /// Ends the reservation of those of these slots that are reserved for this processor.
    pub fn unreserve(&self, chunk: u64, processor: ProcessorIndex, first: u32, count: u32) -> Left {
        self.change(chunk, |chunk| {
            if chunk.owner != Some(processor) {
                return Left::default();
            }
            chunk.unreserve(first, count);
            Left { empty: false, open: chunk.list() }
        })
    }

    /// Ends all reservations in a chunk of this processor.
    pub fn unreserve_all(&self, chunk: u64, processor: ProcessorIndex) -> Left {
        self.unreserve(chunk, processor, 0, SLOTS)
    }

    /// Allocates up to `want` consecutive slots of any chunk, even of another processor, or reserved ones, or only `backed`
    /// ones: the chunk, the first slot, how many, and whether it is this processor's to list now. It begins with chunk
    /// `from`.
    pub fn steal(
        &self,
        from: u64,
        processor: ProcessorIndex,
        want: u32,
        backed: bool,
    ) -> Option<(u64, u32, u32, bool)> {
        let chunks = if backed { &self.backed } else { &self.free };
        chunks.from(from).find_map(|number| {
            let run = self.change(number, |chunk| {
                let free = |chunk: &Chunk, word| match backed {
                    true => chunk.backed(word),
                    false => !chunk.taken(word, false),
                };
                let word = (0..WORDS).find(|word| free(chunk, *word) != 0)?;
                let first = word as u32 * 64 + free(chunk, word).trailing_zeros();
                let count = chunk.run(first, want, free);
                chunk.unreserve(first, count);
                chunk.allocate(first, count);
                let ours = *chunk.owner.get_or_insert(processor) == processor;
                Some((first, count, ours && chunk.list()))
            });
            run.map(|(first, count, open)| (number, first, count, open))
        })
    }

    /// Makes a chunk active that belongs to this processor, if it is idle and has open slots; returns whether it did.
    pub fn activate(&self, chunk: u64, processor: ProcessorIndex) -> bool {
        self.change(chunk, |chunk| {
            let ours = chunk.owner == Some(processor) && chunk.role == Role::Idle;
            if !ours {
                return false;
            }
            chunk.listed = false;
            if chunk.is_open() {
                chunk.role = Role::Active;
            }
            chunk.is_open()
        })
    }

    /// Makes an empty chunk this processor's active chunk.
    pub fn activate_empty(&self, processor: ProcessorIndex) -> Option<u64> {
        loop {
            let number = self.empty.take_first()?;
            let found = self.change(number, |chunk| {
                let empty = chunk.used == 0 && chunk.role == Role::Idle;
                if empty {
                    (chunk.role, chunk.owner) = (Role::Active, Some(processor));
                }
                empty
            });
            if found {
                return Some(number);
            }
        }
    }

    /// Makes a chunk of this processor active, of which another processor has freed slots.
    pub fn activate_returned(&self, processor: ProcessorIndex) -> Option<u64> {
        self.returned.from(0).find(|number| {
            let ours = || self.activate(*number, processor);
            // Another processor's stays in the set.
            let owned = self.change(*number, |chunk| chunk.owner == Some(processor));
            owned && self.returned.clear(*number) && ours()
        })
    }

    /// Makes an active chunk idle.
    pub fn deactivate(&self, chunk: u64) -> Left {
        self.change(chunk, |chunk| {
            chunk.role = Role::Idle;
            Left { empty: chunk.used == 0, open: chunk.used > 0 && chunk.list() }
        })
    }

    /// Allocates exactly these slots, at recovery: the chunk belongs to this processor, unless another one was first.
    /// `Err`: one of them that is already allocated; then none is.
    pub fn allocate_exactly(
        &self,
        chunk: u64,
        processor: ProcessorIndex,
        slots: &SlotBits,
    ) -> Result<Left, u32> {
        self.change(chunk, |chunk| {
            let bits = chunk.bits.get_or_insert_default();
            let taken = bits.iter().zip(slots).position(|(bits, slots)| bits & slots != 0);
            if let Some(word) = taken {
                return Err(word as u32 * 64 + (bits[word] & slots[word]).trailing_zeros());
            }
            for (bits, slots) in bits.iter_mut().zip(slots) {
                *bits |= slots;
                chunk.used += slots.count_ones() as u16;
            }
            let owner = *chunk.owner.get_or_insert(processor);
            Ok(Left { empty: false, open: owner == processor && chunk.list() })
        })
    }

    /// Allocates those of these slots that are free, and removes the others from `slots`.
    pub fn allocate_available(&self, chunk: u64, slots: &mut SlotBits) {
        if chunk >= self.chunks.len() as u64 {
            return slots.fill(0);
        }
        self.change(chunk, |chunk| {
            let bits = chunk.bits.get_or_insert_default();
            for (bits, slots) in bits.iter_mut().zip(slots) {
                *slots &= !*bits;
                *bits |= *slots;
                chunk.used += slots.count_ones() as u16;
            }
        });
    }

    /// Frees exactly these slots; nothing is known of their space.
    pub fn free_exactly(&self, number: u64, slots: &SlotBits) {
        self.change(number, |chunk| {
            let bits = chunk.bits.as_mut().expect("CH1: these are allocated");
            for (bits, slots) in bits.iter_mut().zip(slots) {
                assert!(*bits & slots == *slots, "CH1: a slot is freed once");
                *bits &= !slots;
                chunk.used -= slots.count_ones() as u16;
            }
            if chunk.list() {
                self.returned.set(number); // CH2
            }
        });
    }

    /// Frees slots, by a call of this processor.
    pub fn free(&self, number: u64, processor: ProcessorIndex, first: u32, count: u32) -> Left {
        self.change(number, |chunk| {
            let bits = chunk.bits.as_mut().expect("CH1: these are allocated");
            for (word, mask) in masks(first, count) {
                assert!(bits[word] & mask == mask, "CH1: a slot is freed once");
                bits[word] &= !mask;
            }
            chunk.used -= count as u16;
            chunk.quiet_sweeps = 0;
            chunk.add_backed(first, count);
            let mut open = chunk.used > 0 && chunk.list();
            if open && chunk.owner != Some(processor) {
                self.returned.set(number); // CH2
                open = false;
            }
            Left { empty: chunk.used == 0, open }
        })
    }

    /// Notes that those of these slots that are free are backed, as far as is known; or that none of them is.
    pub fn set_backed(&self, number: u64, first: u32, count: u32, backed: bool) {
        self.change(number, |chunk| match backed {
            true => chunk.add_backed(first, count),
            false => chunk.forget_backed(first, count),
        });
    }

    /// Chunks with backed slots, from this one on.
    pub fn backed(&self, from: u64) -> impl Iterator<Item = u64> {
        let numbers = self.backed.from(from);
        numbers.skip_while(move |number| *number < from).take_while(move |number| *number >= from)
    }

    /// Notes that a sweep visits a chunk; returns the number of backed slots, if it has any and at least `sweeps`
    /// earlier ones found it unchanged.
    pub fn visit_backed(&self, number: u64, sweeps: u8) -> Option<u64> {
        self.change(number, |chunk| {
            if chunk.backed_count == 0 {
                chunk.backed = None;
                self.backed.clear(number); // CH3: nothing is added while its lock is held
                return None;
            }
            if chunk.quiet_sweeps < sweeps {
                chunk.quiet_sweeps += 1;
                return None;
            }
            Some(u64::from(chunk.backed_count))
        })
    }

    /// Allocates all backed slots of a chunk, if there are any and at most `most`: which, and how many.
    pub fn take_backed(&self, number: u64, most: u64) -> Option<(Box<SlotBits>, u64)> {
        self.change(number, |chunk| {
            let count = u64::from(chunk.backed_count);
            if count == 0 || count > most {
                return None;
            }
            Some((chunk.take_backed()?, count))
        })
    }
}
