//! Chunk set: a set of chunks of one log area, which many threads change without a lock.
//!
//! Owner and locks   atomic words; what a thread finds in it may have left it since then.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module's head.
#[derive(Debug)]
pub(super) struct ChunkSet {
    words: Vec<AtomicU64>,
    /// Below the word of this chunk the set is probably empty.
    hint: AtomicU64,
}

impl ChunkSet {
    /// The empty set, for chunks below `count`.
    pub(super) fn new(count: u64) -> ChunkSet {
        let words = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        ChunkSet { words, hint: AtomicU64::new(0) }
    }

    /// Adds a chunk.
    pub(super) fn set(&self, number: u64) {
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
    pub(super) fn clear(&self, number: u64) -> bool {
        let mask = 1 << (number % 64);
        self.words[number as usize / 64].fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// Removes and returns one of the lowest.
    pub(super) fn take_first(&self) -> Option<u64> {
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

    /// All numbers in the set, those of the word of `from` first, each word read when the iterator reaches it.
    pub(super) fn from(&self, from: u64) -> impl Iterator<Item = u64> {
        let (count, begin) = (self.words.len(), from as usize / 64);
        (0..count).map(move |step| (begin + step) % count).flat_map(|at| {
            let mut word = self.words[at].load(Ordering::Acquire);
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| u64::from(word.trailing_zeros()))?;
                word &= word - 1;
                Some(at as u64 * 64 + bit)
            })
        })
    }
}
