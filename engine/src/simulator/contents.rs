//! Contents: the contents of one simulated file, in the page cache and on the disk.
//!
//! How it works      Pages of 4096 bytes. A changed page has the disk's contents in addition to the cache's, until a
//!                   sync makes them equal. Write-back may happen at any time, sector by sector. A mapping is memory
//!                   whose owner stores into it without a call: before each access its changes are copied to the pages
//!                   ([`Contents::absorb`]).
//! A failed sync     leaves pages clean that differ from the disk: no later sync writes them, unless they are changed
//!                   again.

use std::cell::UnsafeCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::random::Random;

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Bytes that the disk writes atomically.
pub const SECTOR: usize = 512;

/// A page's bytes; `None`: a hole.
type Block = Option<Box<[u8; PAGE]>>;

static HOLE: [u8; PAGE] = [0; PAGE];

fn bytes(block: &Block) -> &[u8; PAGE] {
    block.as_deref().unwrap_or(&HOLE)
}

#[derive(Clone, Debug, Default)]
struct Page {
    cache: Block,
    /// The disk's contents, if they may differ.
    durable: Option<Block>,
    /// A sync will write it.
    dirty: bool,
}

/// Memory of a mapping.
#[derive(Debug)]
pub struct Memory(Box<[UnsafeCell<u8>]>);

// SAFETY: a simulation runs on one thread.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(length: usize) -> Memory {
        Memory((0..length).map(|_| UnsafeCell::new(0)).collect())
    }

    /// Its length, bytes.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Copies what is written to the file into the mapping, up to the mapping's end.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        for (cell, byte) in self.0.iter().skip(offset).zip(bytes) {
            // SAFETY: one thread, and no slice of a mapping is alive during an operation of the disk.
            unsafe { *cell.get() = *byte };
        }
    }

    fn page(&self, index: usize) -> &[u8] {
        let from = index * PAGE;
        let to = (from + PAGE).min(self.0.len());
        // SAFETY: one thread, and no slice of a mapping is alive during an operation of the disk.
        unsafe { std::slice::from_raw_parts(self.0[from].get(), to - from) }
    }
}

/// How much unsynced data a power loss leaves.
#[derive(Clone, Copy, Debug)]
pub enum Survival {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// Each sector with this probability, in millionths.
    Some(u64),
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pages: Vec<Page>,
    /// Pages that may differ from the disk.
    unsettled: BTreeSet<usize>,
    /// Length in bytes.
    pub length: u64,
    durable_length: u64,
    memory: Option<Arc<Memory>>,
}

impl Contents {
    /// A durable hole of `length` bytes.
    pub fn hole(length: u64) -> Contents {
        let mut contents = Contents { length, durable_length: length, ..Contents::default() };
        contents.pages.resize_with((length as usize).div_ceil(PAGE), Page::default);
        contents
    }

    /// Extends it to at least `length` bytes.
    fn extend(&mut self, length: u64) {
        self.length = self.length.max(length);
        let pages = (self.length as usize).div_ceil(PAGE);
        if self.pages.len() < pages {
            self.pages.resize_with(pages, Page::default);
        }
    }

    /// Sets its length, durably: bytes beyond are lost, new ones are a hole.
    pub fn set_length(&mut self, length: u64) {
        self.absorb();
        (self.length, self.durable_length) = (length, length);
        let pages = (length as usize).div_ceil(PAGE);
        self.pages.resize_with(pages, Page::default);
        self.unsettled.retain(|index| *index < pages);
        let inner = length as usize % PAGE;
        if inner > 0
            && let Some(page) = self.pages.last_mut()
        {
            let durable = page.durable.as_mut().and_then(Option::as_mut);
            page.cache.iter_mut().chain(durable).for_each(|bytes| bytes[inner..].fill(0));
        }
    }

    /// Maps the first `length` bytes.
    pub fn map(&mut self, length: usize) -> Arc<Memory> {
        self.extend(length as u64);
        let memory = Arc::new(Memory::new(length));
        for (index, page) in self.pages.iter().enumerate().take(length.div_ceil(PAGE)) {
            memory.store(index * PAGE, bytes(&page.cache));
        }
        self.memory = Some(Arc::clone(&memory));
        memory
    }

    /// Copies changes of the mapping to the pages.
    pub fn absorb(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        for index in 0..memory.0.len().div_ceil(PAGE) {
            let now = memory.page(index);
            if bytes(&self.pages[index].cache)[..now.len()] != *now {
                self.store((index * PAGE) as u64, now);
            }
        }
        self.memory = Some(memory);
    }

    /// Writes bytes to the cache.
    pub fn write(&mut self, offset: u64, source: &[u8]) {
        self.absorb();
        self.store(offset, source);
    }

    fn store(&mut self, offset: u64, source: &[u8]) {
        self.extend(offset + source.len() as u64);
        let mut done = 0;
        while done < source.len() {
            let at = offset as usize + done;
            let (index, inner) = (at / PAGE, at % PAGE);
            let here = (PAGE - inner).min(source.len() - done);
            let page = self.change(index);
            let cache = page.cache.get_or_insert_with(|| Box::new([0; PAGE]));
            cache[inner..inner + here].copy_from_slice(&source[done..done + here]);
            if let Some(memory) = &self.memory {
                memory.store(at, &source[done..done + here]);
            }
            done += here;
        }
    }

    /// Makes a range of complete pages a hole.
    pub fn punch(&mut self, offset: u64, length: u64) {
        let (from, to) = (offset as usize / PAGE, (offset + length) as usize / PAGE);
        for index in from..to.min(self.pages.len()) {
            if self.pages[index].cache.is_some() {
                self.change(index).cache = None;
            }
        }
    }

    fn change(&mut self, index: usize) -> &mut Page {
        let page = &mut self.pages[index];
        if page.durable.is_none() {
            page.durable = Some(page.cache.clone());
            self.unsettled.insert(index);
        }
        page.dirty = true;
        page
    }

    /// Reads from the cache; `false` beyond the end.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> bool {
        self.absorb();
        if offset + out.len() as u64 > self.length {
            return false;
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset as usize + done;
            let (index, inner) = (at / PAGE, at % PAGE);
            let here = (PAGE - inner).min(out.len() - done);
            let cache = bytes(&self.pages[index].cache);
            out[done..done + here].copy_from_slice(&cache[inner..inner + here]);
            done += here;
        }
        true
    }

    /// Whether a page is a hole.
    pub fn is_hole(&self, index: usize) -> bool {
        self.pages.get(index).is_none_or(|page| page.cache.is_none())
    }

    /// Writes all dirty pages to the disk.
    pub fn sync(&mut self) {
        self.absorb();
        let pages = &mut self.pages;
        self.unsettled.retain(|index| {
            let page = &mut pages[*index];
            if std::mem::take(&mut page.dirty) {
                page.durable = None;
            }
            page.durable.is_some()
        });
        self.durable_length = self.length;
    }

    /// A failing sync: some pages are written, and the others are not written any more.
    pub fn fail_sync(&mut self, random: &mut Random) {
        self.absorb();
        for index in &self.unsettled {
            let page = &mut self.pages[*index];
            if std::mem::take(&mut page.dirty) {
                write_back(page, random, Survival::Some(500_000));
            }
        }
    }

    /// Writes some sectors back, like the kernel without a sync.
    pub fn write_back_some(&mut self, random: &mut Random) {
        self.absorb();
        for index in &self.unsettled {
            let page = &mut self.pages[*index];
            if page.dirty && random.coin() {
                write_back(page, random, Survival::Some(700_000));
            }
        }
    }

    /// Flips a bit of one page, in the cache and on the disk.
    pub fn rot(&mut self, index: usize, bit: usize) {
        let page = &mut self.pages[index];
        if let Some(cache) = &mut page.cache {
            cache[bit / 8] ^= 1 << (bit % 8);
            page.durable = None;
            page.dirty = false;
            self.unsettled.remove(&index);
        }
    }

    /// Flips a bit of data, in the cache and on the disk; `false` in a hole.
    pub fn flip(&mut self, at: u64, bit: u32) -> bool {
        let (index, inner) = (at as usize / PAGE, at as usize % PAGE);
        let page = &mut self.pages[index];
        let cache = page.cache.as_mut();
        let found = [cache, page.durable.as_mut().and_then(Option::as_mut)];
        let mut flipped = false;
        for block in found.into_iter().flatten() {
            block[inner] ^= 1 << bit;
            flipped = true;
        }
        flipped
    }

    /// All contents of the cache.
    pub fn all(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.length as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// The process that had it open was killed: the cache stays.
    pub fn kill(&mut self) {
        self.absorb();
        self.memory = None;
    }

    /// The power is lost, and with it the cache.
    pub fn lose_power(&mut self, random: &mut Random, survival: Survival) {
        self.kill();
        for index in std::mem::take(&mut self.unsettled) {
            let page = &mut self.pages[index];
            if std::mem::take(&mut page.dirty) {
                write_back(page, random, survival);
            }
            if let Some(durable) = page.durable.take() {
                page.cache = durable;
            }
        }
        if self.length != self.durable_length && random.coin() {
            self.length = self.durable_length;
        }
        self.durable_length = self.length;
        self.pages.resize_with((self.length as usize).div_ceil(PAGE), Page::default);
    }
}

/// Writes some sectors of a page to the disk.
fn write_back(page: &mut Page, random: &mut Random, survival: Survival) {
    let Some(durable) = &mut page.durable else { return };
    let rate = match survival {
        Survival::None => return,
        Survival::All => {
            durable.clone_from(&page.cache);
            return;
        }
        Survival::Some(rate) => rate,
    };
    for sector in 0..PAGE / SECTOR {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        if random.chance(rate) && bytes(durable)[range.clone()] != bytes(&page.cache)[range.clone()]
        {
            let block = durable.get_or_insert_with(|| Box::new([0; PAGE]));
            block[range.clone()].copy_from_slice(&bytes(&page.cache)[range]);
        }
    }
}
