//! Chunks: which slots of one change log are used, for all processors at once.
//!
//! How it works      A bitmap for each chunk of [`CHUNK_SLOTS`] slots that has any used, under a lock of its own. A processor
//!                   makes one chunk its home and takes slots there until it is full, so that processors meet in a
//!                   chunk only when nothing else is left: then they take from each other's homes, down to the last slot.
//! Invariants        CH1 a slot is taken by one taker until it is given back;
//!                   CH2 an idle chunk with free slots is in `open`, but for the moment in which somebody looks at it;
//!                   CH3 nothing is taken from a chunk that is returning.
//! Owner and locks   one lock for each chunk, held for a search in it; no two are ever held together. `open`, `empty` and
//!                   `homes` are hints: who follows one looks at the chunk itself.

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
    /// No home.
    #[default]
    Idle,
    /// A processor takes its slots here.
    Home,
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

    /// Finds and takes the first free run, at most `want` slots.
    fn take_run(&mut self, want: u32) -> Option<(u32, u32)> {
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
    homes: Bits,
    used: AtomicU64,
    claimed: AtomicU64,
}

impl Chunks {
    /// So many chunks, all empty.
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
            homes: Bits::new(count),
            used: AtomicU64::new(0),
            claimed: AtomicU64::new(0),
        }
    }

    /// Slots that are used.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Chunks that are not empty, or some processor's home.
    pub fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Acquire)
    }

    /// Changes a chunk under its lock, and counts what that did.
    fn change<T>(&self, number: u64, f: impl FnOnce(&mut Chunk) -> T) -> T {
        let mut chunk = self.chunks[number as usize].lock().expect("no holder panics");
        let (used, claimed) = (u64::from(chunk.used), u64::from(chunk.is_claimed()));
        let result = f(&mut chunk);
        // Modulo 2^64, so that less is more of the complement.
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

    /// Takes up to `want` slots that follow each other in this chunk: the first one within it, and how many.
    pub fn take_in(&self, chunk: u64, want: u32) -> Option<(u32, u32)> {
        self.change(chunk, |chunk| chunk.take_run(want))
    }

    /// Takes slots in a chunk that is some processor's home.
    pub fn take_in_any_home(&self, want: u32) -> Option<(u64, u32, u32)> {
        self.homes.all().find_map(|chunk| {
            let (first, count) = self.take_in(chunk, want)?;
            Some((chunk, first, count))
        })
    }

    /// Makes an idle chunk that is not full the caller's home: the chunk that it allocates from (elsewhere: its open segment).
    pub fn find_home(&self) -> Option<u64> {
        self.find_home_in(&self.open, Chunk::has_free_slots)
    }

    /// Makes an empty chunk the caller's home, if more than half of all are.
    pub fn find_empty_home(&self) -> Option<u64> {
        let plenty = self.claimed() * 2 < self.chunks.len() as u64;
        plenty.then(|| self.find_home_in(&self.empty, |chunk| chunk.used == 0))?
    }

    fn find_home_in(&self, hints: &Bits, will_do: fn(&Chunk) -> bool) -> Option<u64> {
        loop {
            let chunk = hints.take_first()?;
            let found = self.change(chunk, |chunk| {
                let fits = chunk.role == Role::Idle && will_do(chunk);
                if fits {
                    chunk.role = Role::Home;
                }
                fits
            });
            if found {
                self.homes.set(chunk);
                return Some(chunk);
            }
        }
    }

    /// Gives up a home.
    pub fn leave_home(&self, chunk: u64) {
        self.homes.clear(chunk);
        self.change(chunk, |chunk| chunk.role = Role::Idle);
    }

    /// Takes these very slots, at recovery; gives one that is taken already, if there is any: then none is taken.
    pub fn take_exactly(&self, chunk: u64, slots: &SlotBits) -> Result<(), u32> {
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

    /// Takes those of these slots that are free, and leaves the others out of `slots`.
    pub fn take_free(&self, chunk: u64, slots: &mut SlotBits) {
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

    /// Gives these very slots back.
    pub fn give_exactly(&self, chunk: u64, slots: &SlotBits) {
        self.change(chunk, |chunk| {
            let bits = chunk.bits.as_mut().expect("CH1: these are taken");
            for (bits, slots) in bits.iter_mut().zip(slots) {
                assert!(*bits & slots == *slots, "CH1: a slot is given back once");
                *bits &= !slots;
                chunk.used -= slots.count_ones();
            }
        });
    }

    /// Gives slots back; says whether nothing of the chunk is used any more.
    pub fn give(&self, chunk: u64, first: u32, count: u32) -> bool {
        self.change(chunk, |chunk| {
            let bits = chunk.bits.as_mut().expect("CH1: these are taken");
            for slot in first..first + count {
                let (word, mask) = place(slot);
                assert!(bits[word] & mask != 0, "CH1: a slot is given back once");
                bits[word] &= !mask;
            }
            chunk.used -= count;
            chunk.used == 0
        })
    }

    /// Takes an empty chunk out of use, to be punched (CH3); `false` if it is not empty, or some processor's home.
    pub fn retire(&self, chunk: u64) -> bool {
        self.change(chunk, |chunk| {
            let empty = chunk.used == 0 && chunk.role == Role::Idle;
            if empty {
                chunk.role = Role::Returning;
            }
            empty
        })
    }

    /// Brings it back.
    pub fn revive(&self, chunk: u64) {
        self.change(chunk, |chunk| chunk.role = Role::Idle);
    }
}

/// A set of chunks, without a lock.
#[derive(Debug)]
struct Bits {
    words: Vec<AtomicU64>,
    /// Below the word of this chunk there is probably none.
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

    /// Takes a number out; says whether it was in.
    fn clear(&self, number: u64) -> bool {
        let mask = 1 << (number % 64);
        self.words[number as usize / 64].fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// Takes out one of the lowest.
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

    /// All that are in, each looked up when it is its turn.
    fn all(&self) -> impl Iterator<Item = u64> {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let word = word.load(Ordering::Acquire);
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| at as u64 * 64 + bit)
        })
    }
}
