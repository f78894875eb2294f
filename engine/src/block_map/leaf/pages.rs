//! Pages: a packed leaf's checksums and low halves of places, an entry for each present block, in order.
//!
//! How it works      Pages of [`PAGE_ENTRIES`] entries, all full, and a tail with the rest, which has capacity for at
//!                   most [`TAIL_STEP`] more entries. The leaves of a volume that is written at random all grow at the
//!                   same time: if each was one allocation, none of them could reuse the memory that others free as
//!                   they grow. All pages have one size, and tails of all sizes exist at the same time, so one leaf
//!                   reuses what another frees. A clone shares the pages until they change: the first write to a leaf
//!                   after a cut, or during a checkpoint, copies a page and the tail.

use std::sync::Arc;

/// Entries of a page.
pub const PAGE_ENTRIES: usize = 64;
/// A tail's capacity is a multiple of this.
const TAIL_STEP: usize = 4;
/// Entries of all pages.
const ENTRIES_MAX: usize = super::LEAF_BLOCKS as usize;

#[derive(Clone, Debug)]
struct Page {
    sums: [u32; PAGE_ENTRIES],
    lows: [u32; PAGE_ENTRIES],
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    full: Box<[Arc<Page>]>,
    /// Checksums in its first half, low halves in its second.
    tail: Box<[u32]>,
    tail_entries: u8,
}

impl Pages {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.full.len() * PAGE_ENTRIES + usize::from(self.tail_entries)
    }

    /// Checksums and low halves from the `index`-th entry to the end of its page.
    pub fn from(&self, index: usize) -> (&[u32], &[u32]) {
        let inner = index % PAGE_ENTRIES;
        match self.full.get(index / PAGE_ENTRIES) {
            Some(page) => (&page.sums[inner..], &page.lows[inner..]),
            None => {
                let (sums, lows) = self.tail.split_at(self.tail.len() / 2);
                let end = usize::from(self.tail_entries);
                (&sums[inner..end], &lows[inner..end])
            }
        }
    }

    /// Copies entries from the `first`-th on until the slices are full; there are enough entries.
    pub fn copy(&self, first: usize, sums: &mut [u32], lows: &mut [u32]) {
        let mut done = 0;
        while done < sums.len() {
            let (from_sums, from_lows) = self.from(first + done);
            let here = from_sums.len().min(sums.len() - done);
            sums[done..done + here].copy_from_slice(&from_sums[..here]);
            lows[done..done + here].copy_from_slice(&from_lows[..here]);
            done += here;
        }
    }

    fn put(&mut self, first: usize, sums: &[u32], lows: &[u32]) {
        let mut done = 0;
        while done < sums.len() {
            let (page, inner) = ((first + done) / PAGE_ENTRIES, (first + done) % PAGE_ENTRIES);
            let (into_sums, into_lows) = match self.full.get_mut(page) {
                Some(page) => {
                    let page = Arc::make_mut(page);
                    (&mut page.sums[..], &mut page.lows[..])
                }
                None => self.tail.split_at_mut(self.tail.len() / 2),
            };
            let here = (into_sums.len() - inner).min(sums.len() - done);
            into_sums[inner..inner + here].copy_from_slice(&sums[done..done + here]);
            into_lows[inner..inner + here].copy_from_slice(&lows[done..done + here]);
            done += here;
        }
    }

    /// Inserts an entry before the `at`-th.
    pub fn insert(&mut self, at: usize, mut sum: u32, mut low: u32) {
        self.resize(self.len() + 1);
        let (first, mut inner) = (at / PAGE_ENTRIES, at % PAGE_ENTRIES);
        // The entry shifted out of a page becomes the first of the next one.
        for page in self.full.iter_mut().skip(first) {
            let page = Arc::make_mut(page);
            (sum, low) = (push_in(&mut page.sums, inner, sum), push_in(&mut page.lows, inner, low));
            inner = 0;
        }
        let (entries, half) = (usize::from(self.tail_entries), self.tail.len() / 2);
        if entries > 0 {
            let (sums, lows) = self.tail.split_at_mut(half);
            push_in(&mut sums[..entries], inner, sum);
            push_in(&mut lows[..entries], inner, low);
        }
    }

    /// Replaces the entries `from..to` with `put` others.
    pub fn replace(&mut self, from: usize, to: usize, put: usize, sums: &[u32], lows: &[u32]) {
        if to - from != put {
            let behind = self.len() - to;
            let mut after = [[0; ENTRIES_MAX]; 2];
            let [after_sums, after_lows] = &mut after;
            self.copy(to, &mut after_sums[..behind], &mut after_lows[..behind]);
            self.resize(from + put + behind);
            self.put(from + put, &after_sums[..behind], &after_lows[..behind]);
        }
        self.put(from, &sums[..put], &lows[..put]);
    }

    /// Changes the number of entries; those in both the old and the new range keep their values.
    fn resize(&mut self, entries: usize) {
        let (full, rest) = (entries / PAGE_ENTRIES, entries % PAGE_ENTRIES);
        if full != self.full.len() {
            let mut pages = std::mem::take(&mut self.full).into_vec();
            pages.reserve_exact(full.saturating_sub(pages.len()));
            while pages.len() < full {
                let mut page = Page { sums: [0; PAGE_ENTRIES], lows: [0; PAGE_ENTRIES] };
                let tail = usize::from(std::mem::take(&mut self.tail_entries));
                let half = self.tail.len() / 2;
                page.sums[..tail].copy_from_slice(&self.tail[..tail]);
                page.lows[..tail].copy_from_slice(&self.tail[half..half + tail]);
                pages.push(Arc::new(page));
            }
            if pages.len() > full {
                pages.truncate(full + 1);
                let page = pages.pop().expect("one more than `full`");
                self.tail = [page.sums, page.lows].concat().into();
                self.tail_entries = PAGE_ENTRIES as u8;
            }
            self.full = pages.into();
        }
        let (room, half) = (rest.next_multiple_of(TAIL_STEP), self.tail.len() / 2);
        if half < room || half > room + TAIL_STEP {
            let mut tail = vec![0; 2 * room].into_boxed_slice();
            let moved = usize::from(self.tail_entries).min(rest);
            tail[..moved].copy_from_slice(&self.tail[..moved]);
            tail[room..room + moved].copy_from_slice(&self.tail[half..half + moved]);
            self.tail = tail;
        }
        self.tail_entries = rest as u8;
    }
}

/// Shifts all words from `at` on by one, inserts `word`, and returns the last.
fn push_in(words: &mut [u32], at: usize, word: u32) -> u32 {
    let last = words.len() - 1;
    let off = words[last];
    words.copy_within(at..last, at + 1);
    words[at] = word;
    off
}
