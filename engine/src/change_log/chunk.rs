//! Chunk: which slots of one chunk are used, reserved or backed, and who owns it. See [`chunks`](super::chunks).
//!
//! Owner and locks   the lock of the chunk in [`Chunks`](super::chunks::Chunks).

use crate::units::ProcessorIndex;

/// Slots in a chunk: 4 MiB.
pub const CHUNK_SLOTS: u64 = 1024;

pub(super) const SLOTS: u32 = CHUNK_SLOTS as u32;
pub(super) const WORDS: usize = CHUNK_SLOTS as usize / 64;

/// A bit for each slot of a chunk.
pub type SlotBits = [u64; WORDS];

/// What a chunk is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Role {
    /// Not active.
    #[default]
    Idle,
    /// A processor allocates its slots here.
    Active,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// `None`: no slot is used.
    pub(super) bits: Option<Box<SlotBits>>,
    /// `None`: no slot is reserved.
    pub(super) reserved: Option<Box<SlotBits>>,
    pub(super) used: u16,
    pub(super) reserved_count: u16,
    /// `None`: no slot is backed.
    pub(super) backed: Option<Box<SlotBits>>,
    pub(super) backed_count: u16,
    /// Sweeps that have visited it since a slot was last allocated or freed.
    pub(super) quiet_sweeps: u8,
    pub(super) owner: Option<ProcessorIndex>,
    pub(super) role: Role,
    /// Its owner has listed it, or it is in `returned` (CH2).
    pub(super) listed: bool,
}

impl Chunk {
    pub(super) fn is_claimed(&self) -> bool {
        self.used > 0 || self.role != Role::Idle
    }

    pub(super) fn has_free_slots(&self) -> bool {
        u32::from(self.used) < SLOTS
    }

    /// The words of backed slots.
    pub(super) fn backed(&self, word: usize) -> u64 {
        self.backed.as_ref().map_or(0, |bits| bits[word])
    }

    pub(super) fn is_open(&self) -> bool {
        u32::from(self.used + self.reserved_count) < SLOTS
    }

    /// The words of slots that are used, or reserved if `all`.
    pub(super) fn taken(&self, word: usize, all: bool) -> u64 {
        let of = |bits: &Option<Box<SlotBits>>| bits.as_ref().map_or(0, |bits| bits[word]);
        of(&self.bits) | if all { of(&self.reserved) } else { 0 }
    }

    /// The first run of at least `want` slots that are neither used nor reserved, else the longest of the first `runs`
    /// ones; at most `want`.
    pub(super) fn find(&self, want: u32, runs: usize) -> Option<(u32, u32)> {
        let (mut longest, mut runs) = (None, runs);
        let mut at = 0;
        while at < SLOTS && runs > 0 {
            let (word, bit) = (at as usize / 64, at % 64);
            let free = !self.taken(word, true) >> bit;
            if free == 0 {
                at += 64 - bit;
                continue;
            }
            let first = at + free.trailing_zeros();
            let run = self.run(first, want, |chunk, word| !chunk.taken(word, true));
            if run == want {
                return Some((first, run));
            }
            if longest.is_none_or(|(_, length)| length < run) {
                longest = Some((first, run));
            }
            at = first + run;
            runs -= 1;
        }
        longest
    }

    /// How many slots from `first` on, at most `limit`, are in the set that has these words.
    pub(super) fn run(&self, first: u32, limit: u32, set: impl Fn(&Chunk, usize) -> u64) -> u32 {
        run_of_ones(first, limit, |word| set(self, word))
    }

    pub(super) fn allocate(&mut self, first: u32, count: u32) {
        set(self.bits.get_or_insert_default(), first, count);
        self.used += count as u16;
        self.quiet_sweeps = 0;
        self.forget_backed(first, count);
    }

    /// Notes that those of these slots that are free are backed.
    pub(super) fn add_backed(&mut self, first: u32, count: u32) {
        for (word, mask) in masks(first, count) {
            let fresh = mask & !self.taken(word, false) & !self.backed(word);
            if fresh != 0 {
                self.backed.get_or_insert_default()[word] |= fresh;
                self.backed_count += fresh.count_ones() as u16;
            }
        }
    }

    /// Notes that these slots are not backed.
    pub(super) fn forget_backed(&mut self, first: u32, count: u32) {
        let Some(bits) = &mut self.backed else { return };
        for (word, mask) in masks(first, count) {
            self.backed_count -= (bits[word] & mask).count_ones() as u16;
            bits[word] &= !mask;
        }
    }

    /// Allocates all backed slots, which are not backed then, and ends their reservations.
    pub(super) fn take_backed(&mut self) -> Option<Box<SlotBits>> {
        let slots = self.backed.take()?;
        let bits = self.bits.get_or_insert_default();
        for (word, mask) in slots.iter().enumerate() {
            assert!(bits[word] & mask == 0, "CH3: a backed slot is free");
            bits[word] |= mask;
            if let Some(reserved) = &mut self.reserved {
                self.reserved_count -= (reserved[word] & mask).count_ones() as u16; // CH4
                reserved[word] &= !mask;
            }
        }
        self.used += std::mem::take(&mut self.backed_count);
        Some(slots)
    }

    pub(super) fn reserve(&mut self, first: u32, count: u32) {
        if count > 0 {
            set(self.reserved.get_or_insert_default(), first, count);
            self.reserved_count += count as u16;
        }
    }

    /// Ends the reservation of those of these slots that are reserved.
    pub(super) fn unreserve(&mut self, first: u32, count: u32) {
        let Some(bits) = &mut self.reserved else { return };
        for (word, mask) in masks(first, count) {
            self.reserved_count -= (bits[word] & mask).count_ones() as u16;
            bits[word] &= !mask;
        }
        if self.reserved_count == 0 {
            self.reserved = None;
        }
    }

    pub(super) fn unreserve_all(&mut self) {
        (self.reserved, self.reserved_count) = (None, 0);
    }

    /// Whether it has to be listed as open now (CH2); it counts as listed then.
    pub(super) fn list(&mut self) -> bool {
        let open = self.role == Role::Idle && self.owner.is_some() && self.is_open();
        open && !std::mem::replace(&mut self.listed, true)
    }
}

/// How many bits from `first` on, at most `limit`, are set in a chunk's words.
pub(super) fn run_of_ones(first: u32, limit: u32, words: impl Fn(usize) -> u64) -> u32 {
    let mut count = 0;
    while count < limit && first + count < SLOTS {
        let (word, bit) = ((first + count) as usize / 64, (first + count) % 64);
        let ones = (words(word) >> bit).trailing_ones().min(64 - bit);
        count += ones;
        if ones < 64 - bit {
            break;
        }
    }
    count.min(limit)
}

fn set(bits: &mut SlotBits, first: u32, count: u32) {
    for (word, mask) in masks(first, count) {
        assert!(bits[word] & mask == 0, "CH1, CH4: it was free");
        bits[word] |= mask;
    }
}

/// The words of a run of slots, each with a mask.
pub(super) fn masks(first: u32, count: u32) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (first, first + count);
    std::iter::from_fn(move || {
        let (word, bit) = (at as usize / 64, at % 64);
        let here = (64 - bit).min(end - at);
        at += here;
        (here > 0).then(|| (word, u64::MAX >> (64 - here) << bit))
    })
}
