//! Chunks: the allocation bitmaps of one change log, shared by all processors.
//!
//! How it works      A bitmap for each chunk of [`CHUNK_SLOTS`] slots that has any used, under a lock of its own. A
//!                   processor has an active chunk (elsewhere: an open segment), from which it allocates until it is
//!                   full. So processors share a chunk only when nothing else is left: then they allocate from each
//!                   other's active chunks, down to the last slot.
//! Invariants        CH1 a slot is allocated to one owner until it is freed;
//!                   CH2 an idle chunk with free slots is in `open`, except while a thread examines it;
//!                   CH3 nothing is allocated from a chunk that is returning.
//! Owner and locks   one lock for each chunk, held for a search in it; no two are ever held together. `open`, `empty`
//!                   and `active` are hints: a thread that follows one checks the chunk itself.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::{BLOCK_SIZE, SlotIndex};

/// Slots in a chunk: 4 MiB.
pub const CHUNK_SLOTS: u64 = 1024;
/// Bytes in a chunk.
pub const CHUNK_BYTES: u64 = CHUNK_SLOTS * BLOCK_SIZE;

const WORDS: usize = CHUNK_SLOTS as usize / 64;

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
        CHUNK_SLOTS as u32 - self.chunk().1
    }
}

/// A bit for each slot of a chunk.
pub type SlotBits = [u64; WORDS];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Role {
    /// Not active.
    #[default]
    Idle,
    /// A processor allocates its slots here.
    Active,
    /// Empty, and being punched out of its device.
    Returning,
}

#[derive(Debug, Default)]
struct Chunk {
    /// `None`: no slot is used.
    bits: Option<Box<SlotBits>>,
    used: u32,
    role: Role,
}

impl Chunk {
    fn is_claimed(&self) -> bool {
        self.used > 0 || self.role != Role::Idle
    }

    fn has_free_slots(&self) -> bool {
        u64::from(self.used) < CHUNK_SLOTS
    }

    /// Finds and allocates the first free run, at most `want` slots.
    fn allocate_run(&mut self, want: u32) -> Option<(u32, u32)> {
        if !self.has_free_slots() || self.role == Role::Returning {
            return None;
        }
        let bits = self.bits.get_or_insert_default();
        let word = bits.iter().position(|bits| *bits != u64::MAX)?;
        let first = word as u32 * 64 + (!bits[word]).trailing_zeros();
        let mut count = 0;
        while count < want && u64::from(first + count) < CHUNK_SLOTS {
            let (word, mask) = place(first + count);
            if bits[word] & mask != 0 {
                break;
            }
            bits[word] |= mask;
            count += 1;
        }
        self.used += count;
        Some((first, count))
    }
}

fn place(slot: u32) -> (usize, u64) {
    (slot as usize / 64, 1 << (slot % 64))
}

/// See the module's head.
#[derive(Debug)]
pub struct Chunks {
    chunks: Vec<Mutex<Chunk>>,
    open: Bits,
    empty: Bits,
    active: Bits,
    used: AtomicU64,
    claimed: AtomicU64,
}

impl Chunks {
    /// `count` chunks, all empty.
    pub fn new(count: u64) -> Chunks {
        let (open, empty) = (Bits::new(count), Bits::new(count));
        for chunk in 0..count {
            open.set(chunk);
            empty.set(chunk);
        }
        Chunks {
            chunks: (0..count).map(|_| Mutex::default()).collect(),
            open,
            empty,
            active: Bits::new(count),
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

    /// Changes a chunk under its lock, and updates the counters.
    fn change<T>(&self, number: u64, f: impl FnOnce(&mut Chunk) -> T) -> T {
        let mut chunk = self.chunks[number as usize].lock().expect("no holder panics");
        let (used, claimed) = (u64::from(chunk.used), u64::from(chunk.is_claimed()));
        let result = f(&mut chunk);
        // Modulo 2^64, so a decrease is added as its complement.
        let more_used = u64::from(chunk.used).wrapping_sub(used);
        let more_claimed = u64::from(chunk.is_claimed()).wrapping_sub(claimed);
        if chunk.used == 0 {
            chunk.bits = None;
        }
        if chunk.role == Role::Idle && chunk.has_free_slots() {
            self.open.set(number); // CH2
            if chunk.used == 0 {
                self.empty.set(number);
            }
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

    /// Allocates up to `want` consecutive slots in this chunk; returns the first one within it, and how many.
    pub fn allocate_in(&self, chunk: u64, want: u32) -> Option<(u32, u32)> {
        self.change(chunk, |chunk| chunk.allocate_run(want))
    }

    /// Allocates slots in an active chunk of any processor.
    pub fn allocate_in_any_active(&self, want: u32) -> Option<(u64, u32, u32)> {
        self.active.all().find_map(|chunk| {
            let (first, count) = self.allocate_in(chunk, want)?;
            Some((chunk, first, count))
        })
    }

    /// Makes an idle chunk that is not full the caller's active chunk.
    pub fn activate(&self) -> Option<u64> {
        self.activate_from(&self.open, Chunk::has_free_slots)
    }

    /// Makes an empty chunk the caller's active chunk, if more than half of all are empty.
    pub fn activate_empty(&self) -> Option<u64> {
        let plenty = self.claimed() * 2 < self.chunks.len() as u64;
        plenty.then(|| self.activate_from(&self.empty, |chunk| chunk.used == 0))?
    }

    fn activate_from(&self, hints: &Bits, will_do: fn(&Chunk) -> bool) -> Option<u64> {
        loop {
            let chunk = hints.take_first()?;
            let found = self.change(chunk, |chunk| {
                let fits = chunk.role == Role::Idle && will_do(chunk);
                if fits {
                    chunk.role = Role::Active;
                }
                fits
            });
            if found {
                self.active.set(chunk);
                return Some(chunk);
            }
        }
    }

    /// Makes an active chunk idle.
    pub fn deactivate(&self, chunk: u64) {
        self.active.clear(chunk);
        self.change(chunk, |chunk| chunk.role = Role::Idle);
    }

    /// Allocates exactly these slots, at recovery. `Err`: one of them that is already allocated; then none is.
    pub fn allocate_exactly(&self, chunk: u64, slots: &SlotBits) -> Result<(), u32> {
        self.change(chunk, |chunk| {
            let bits = chunk.bits.get_or_insert_default();
            let taken = bits.iter().zip(slots).position(|(bits, slots)| bits & slots != 0);
            if let Some(word) = taken {
                return Err(word as u32 * 64 + (bits[word] & slots[word]).trailing_zeros());
            }
            for (bits, slots) in bits.iter_mut().zip(slots) {
                *bits |= slots;
                chunk.used += slots.count_ones();
            }
            Ok(())
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
                chunk.used += slots.count_ones();
            }
        });
    }

    /// Frees exactly these slots.
    pub fn free_exactly(&self, chunk: u64, slots: &SlotBits) {
        self.change(chunk, |chunk| {
            let bits = chunk.bits.as_mut().expect("CH1: these are allocated");
            for (bits, slots) in bits.iter_mut().zip(slots) {
                assert!(*bits & slots == *slots, "CH1: a slot is freed once");
                *bits &= !slots;
                chunk.used -= slots.count_ones();
            }
        });
    }

    /// Frees slots; returns whether the chunk is empty now.
    pub fn free(&self, chunk: u64, first: u32, count: u32) -> bool {
        self.change(chunk, |chunk| {
            let bits = chunk.bits.as_mut().expect("CH1: these are allocated");
            for slot in first..first + count {
                let (word, mask) = place(slot);
                assert!(bits[word] & mask != 0, "CH1: a slot is freed once");
                bits[word] &= !mask;
            }
            chunk.used -= count;
            chunk.used == 0
        })
    }

    /// Takes an empty chunk out of use, to be punched (CH3); `false` if it is not empty, or active.
    pub fn retire(&self, chunk: u64) -> bool {
        self.change(chunk, |chunk| {
            let empty = chunk.used == 0 && chunk.role == Role::Idle;
            if empty {
                chunk.role = Role::Returning;
            }
            empty
        })
    }

    /// Makes a retired chunk idle again.
    pub fn revive(&self, chunk: u64) {
        self.change(chunk, |chunk| chunk.role = Role::Idle);
    }
}

/// A set of chunks, without a lock.
#[derive(Debug)]
struct Bits {
    words: Vec<AtomicU64>,
    /// Below the word of this chunk the set is probably empty.
    hint: AtomicU64,
}

impl Bits {
    fn new(count: u64) -> Bits {
        let words = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Bits { words, hint: AtomicU64::new(0) }
    }

    fn set(&self, number: u64) {
        let mask = 1 << (number % 64);
        let word = &self.words[number as usize / 64];
        if word.load(Ordering::Acquire) & mask == 0 {
            word.fetch_or(mask, Ordering::AcqRel);
        }
        if number < self.hint.load(Ordering::Relaxed) {
            self.hint.store(number, Ordering::Relaxed);
        }
    }

    /// Removes a number; returns whether it was in the set.
    fn clear(&self, number: u64) -> bool {
        let mask = 1 << (number % 64);
        self.words[number as usize / 64].fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// Removes and returns one of the lowest.
    fn take_first(&self) -> Option<u64> {
        let count = self.words.len();
        let begin = self.hint.load(Ordering::Relaxed) as usize / 64;
        for step in 0..count {
            let at = (begin + step) % count;
            loop {
                let word = self.words[at].load(Ordering::Acquire);
                if word == 0 {
                    break;
                }
                let number = at as u64 * 64 + u64::from(word.trailing_zeros());
                if self.clear(number) {
                    self.hint.store(number, Ordering::Relaxed);
                    return Some(number);
                }
            }
        }
        None
    }

    /// All numbers in the set, each read when the iterator reaches it.
    fn all(&self) -> impl Iterator<Item = u64> {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let word = word.load(Ordering::Acquire);
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| at as u64 * 64 + bit)
        })
    }
}
