//! Packed: the form of a leaf whose blocks are scattered: 8 bytes for each block that is not at its base place.
//!
//! How it works      A bitmap says which blocks are present; their checksums and the low halves of their places are in
//!                   [`pages`](super::pages), in order of blocks. The high halves (kind, log, and the slot's upper
//!                   bits) are almost always the same: then there is one; otherwise each block has the index of its
//!                   own, 2 more bytes.
//! Invariants        LF3 `counts` has the number of bits set in each word of `present`, and `entries` has that many
//!                   entries in total;
//!                   LF4 no place is base, and a place that is no slot has the checksum 0.

use super::super::place::Place;
use super::pages::{PAGE_ENTRIES, Pages};
use super::{Found, LEAF_BLOCKS};

/// Words of a leaf's bitmap.
pub const PRESENT_WORDS: usize = LEAF_BLOCKS as usize / 64;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    present: [u64; PRESENT_WORDS],
    counts: [u8; PRESENT_WORDS],
    entries: Pages,
    high: High,
}

/// The high halves of the places.
#[derive(Clone, Debug)]
enum High {
    One(u32),
    Many(Box<Many>),
}

impl Default for High {
    fn default() -> High {
        High::One(0)
    }
}

#[derive(Clone, Debug, Default)]
struct Many {
    highs: Vec<u32>,
    /// For each present block, the index of its high half.
    of: Vec<u16>,
}

/// The parts of a packed leaf, for a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct PackedParts<'a> {
    /// Which blocks are present.
    pub present: &'a [u64; PRESENT_WORDS],
    /// Their checksums.
    pub checksums: &'a [u32],
    /// The low halves of their places.
    pub lows: &'a [u32],
    /// The different high halves.
    pub highs: &'a [u32],
    /// For each block the index of its high half, if there are several; else empty.
    pub of: &'a [u16],
}

fn counts_of(present: &[u64; PRESENT_WORDS]) -> [u8; PRESENT_WORDS] {
    present.map(|word| word.count_ones() as u8)
}

impl Packed {
    /// Builds one from its parts; `None` if they are inconsistent.
    pub fn from_parts(parts: PackedParts<'_>) -> Option<Packed> {
        let PackedParts { present, checksums, lows, highs, of } = parts;
        let count: usize = present.iter().map(|word| word.count_ones() as usize).sum();
        let numbered = if highs.len() == 1 { of.is_empty() } else { of.len() == count };
        let numbers_fit = of.iter().all(|number| usize::from(*number) < highs.len());
        if checksums.len() != count || lows.len() != count || !numbered || !numbers_fit {
            return None;
        }
        let high = match highs {
            [high] => High::One(*high),
            _ => High::Many(Box::new(Many { highs: highs.to_vec(), of: of.to_vec() })),
        };
        let mut packed =
            Packed { counts: counts_of(present), present: *present, high, ..Packed::default() };
        packed.entries.replace(0, 0, count, checksums, lows);
        let is_slot = |high: &u32| Place::joined(*high, 0).is_some_and(Place::is_slot);
        if highs.iter().all(is_slot) {
            return Some(packed); // for any low halves
        }
        let mut sums = checksums.to_vec();
        for ((index, low), sum) in lows.iter().enumerate().zip(&mut sums) {
            let place = Place::joined(packed.high_of(index), *low)?;
            if place == Place::BASE || (!place.is_slot() && *sum != 0) {
                return None; // LF4
            }
        }
        Some(packed)
    }

    /// Calls `f` with its parts.
    pub fn with_parts<T>(&self, f: impl FnOnce(PackedParts<'_>) -> T) -> T {
        let mut buffer = [[0; LEAF_BLOCKS as usize]; 2];
        let count = self.count();
        let [checksums, lows] = &mut buffer;
        self.entries.copy(0, &mut checksums[..count], &mut lows[..count]);
        let (highs, of) = match &self.high {
            High::One(high) => (std::slice::from_ref(high), &[][..]),
            High::Many(many) => (&many.highs[..], &many.of[..]),
        };
        let (checksums, lows) = (&checksums[..count], &lows[..count]);
        f(PackedParts { present: &self.present, checksums, lows, highs, of })
    }

    /// How many of the blocks before `block` are present.
    pub fn rank(&self, block: u32) -> usize {
        let word = block as usize / 64;
        let whole: usize = self.counts[..word].iter().map(|count| usize::from(*count)).sum();
        match block % 64 {
            0 => whole,
            bit => whole + (self.present[word] & ((1 << bit) - 1)).count_ones() as usize,
        }
    }

    /// How many blocks are present.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    fn high_of(&self, index: usize) -> u32 {
        match &self.high {
            High::One(high) => *high,
            High::Many(many) => many.highs[usize::from(many.of[index])],
        }
    }

    fn joined(&self, index: usize, low: u32) -> Place {
        Place::joined(self.high_of(index), low).expect("LF4: it was valid when it was stored")
    }

    fn is_present(&self, block: u32) -> bool {
        self.present[block as usize / 64] >> (block % 64) & 1 == 1
    }

    /// The first block from `from` on whose presence is `present`; the leaf's end if there is none.
    fn next(&self, from: u32, present: bool) -> u32 {
        let flip = if present { 0 } else { u64::MAX };
        let mut at = from;
        while at < LEAF_BLOCKS {
            let rest = (self.present[at as usize / 64] ^ flip) >> (at % 64);
            if rest != 0 {
                return at + rest.trailing_zeros();
            }
            at = (at / 64 + 1) * 64;
        }
        LEAF_BLOCKS
    }

    /// The run from the `index`-th block on, of which `limit` are present. It ends at the end of its page.
    fn run(&self, index: usize, limit: u32) -> Found<'_> {
        let (sums, lows) = self.entries.from(index);
        let place = self.joined(index, lows[0]);
        let limit = (limit as usize).min(lows.len());
        let mut count = 1;
        while count < limit && self.joined(index + count, lows[count]).follows(place, count as u32)
        {
            count += 1;
        }
        let checksums = if place.is_slot() { &sums[..count] } else { &[] };
        Found { count: count as u32, place, checksums }
    }

    /// See [`super::Leaf::find`].
    pub fn find(&self, block: u32, limit: u32) -> Found<'_> {
        if !self.is_present(block) {
            let count = if limit == 1 { 1 } else { limit.min(self.next(block, true) - block) };
            return Found { count, place: Place::BASE, checksums: &[] };
        }
        let limit = if limit == 1 { 1 } else { limit.min(self.next(block, false) - block) };
        self.run(self.rank(block), limit)
    }

    /// Calls `f(first, run)` for every run, in order.
    pub fn for_each_run(&self, mut f: impl FnMut(u32, Found<'_>)) {
        let (mut block, mut index) = (self.next(0, true), 0);
        while block < LEAF_BLOCKS {
            let end = self.next(block, false);
            while block < end {
                let run = self.run(index, end - block);
                f(block, run);
                block += run.count;
                index += run.count as usize;
            }
            block = self.next(end, true);
        }
    }

    /// The common place of all blocks, if that is base or zero.
    pub fn uniform_place(&self) -> Option<Place> {
        let count = self.count();
        if count == 0 {
            return Some(Place::BASE);
        }
        let zero = |index| self.run(index, 1).place == Place::ZERO;
        (count == LEAF_BLOCKS as usize && (0..count).all(zero)).then_some(Place::ZERO)
    }

    /// See [`super::Leaf::set`].
    pub fn set(&mut self, start: u32, count: u32, place: Place, sums: &[u32]) {
        let (from, to) = (self.rank(start), self.rank(start + count));
        let put = if place == Place::BASE { 0 } else { count as usize };
        self.set_highs(from, to, place, put);
        if let (1, [sum]) = (put, sums) {
            return self.set_slot(start, from, *sum, place.raw() as u32);
        }
        let mut lows = [0; LEAF_BLOCKS as usize];
        for (i, low) in lows[..put].iter_mut().enumerate() {
            *low = place.step(i as u32).raw() as u32;
        }
        if place.is_slot() {
            self.entries.replace(from, to, put, sums, &lows[..put]);
        } else {
            self.entries.replace(from, to, put, &[0; LEAF_BLOCKS as usize][..put], &lows[..put]);
        }
        if to - from != put {
            for block in start..start + count {
                let (word, mask) = (block as usize / 64, 1 << (block % 64));
                if put == 0 { self.present[word] &= !mask } else { self.present[word] |= mask }
            }
            self.counts = counts_of(&self.present);
        }
    }

    /// Sets one block, before which `index` are present, to a slot whose high half is already in the list.
    fn set_slot(&mut self, block: u32, index: usize, sum: u32, low: u32) {
        let (word, mask) = (block as usize / 64, 1 << (block % 64));
        if self.present[word] & mask != 0 {
            return self.entries.replace(index, index + 1, 1, &[sum], &[low]);
        }
        self.entries.insert(index, sum, low);
        self.present[word] |= mask;
        self.counts[word] += 1;
    }

    /// Replaces the high halves of the blocks `from..to` with those of `put` places from `place` on.
    fn set_highs(&mut self, from: usize, to: usize, place: Place, put: usize) {
        let high = |i: usize| (place.step(i as u32).raw() >> 32) as u32;
        let old = self.count();
        if let High::One(one) = &mut self.high {
            let all_new = to - from == old;
            let alike = put == 0 || (high(0) == high(put - 1) && (all_new || high(0) == *one));
            if alike {
                if put > 0 {
                    *one = high(0);
                }
                return;
            }
            let many = Many { highs: vec![*one], of: vec![0; old] };
            self.high = High::Many(Box::new(many));
        }
        let High::Many(many) = &mut self.high else { unreachable!("it was just replaced") };
        let numbers: Vec<u16> = (0..put).map(|i| many.number(high(i))).collect();
        many.of.splice(from..to, numbers);
        many.tidy();
        if let [one] = many.highs[..] {
            self.high = High::One(one);
        }
    }

    /// How many runs it has; a run that spans pages counts once.
    pub fn runs(&self) -> usize {
        let mut runs = 0;
        self.for_each_run(|_, _| runs += 1);
        runs - self.count().saturating_sub(1) / PAGE_ENTRIES
    }
}

impl Many {
    fn number(&mut self, high: u32) -> u16 {
        let found = self.highs.iter().position(|other| *other == high);
        let number = found.unwrap_or(self.highs.len());
        if found.is_none() {
            self.highs.push(high);
        }
        number as u16
    }

    /// Removes the high halves that no block uses, if there may be many.
    fn tidy(&mut self) {
        let alike = self.of.windows(2).all(|pair| pair[0] == pair[1]);
        if !alike && self.highs.len() <= self.of.len() + 8 {
            return;
        }
        let old = std::mem::take(&mut self.highs);
        let mut of = std::mem::take(&mut self.of);
        for number in &mut of {
            *number = self.number(old[usize::from(*number)]);
        }
        self.of = of;
        if self.highs.is_empty() {
            self.highs.push(0); // no block is left
        }
        self.highs.shrink_to_fit();
    }
}
