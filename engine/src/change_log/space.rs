//! Space: the change logs of one volume, and which chunk of them belongs to which processor.
//!
//! How it works      A log is a list of extents, cut into chunks of [`CHUNK_SLOTS`] slots, which never straddle two
//!                   extents. A processor takes a chunk when its own are full, and gives it back when it is
//!                   empty. Which chunks are taken is not stored: it follows from the slots that maps refer to.
//! Owner and locks   one lock over the chunks of a log, held for a search; logs are only ever added.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::io::device::Device;
use crate::units::{BLOCK_SHIFT, BLOCK_SIZE};
use crate::volume::geometry::Extent;

/// Slots in a chunk: 4 MiB.
pub const CHUNK_SLOTS: u64 = 1024;
/// Fewer free chunks than this are few, however small the log.
const SCARCE_CHUNKS: u64 = 8;
/// Bytes in a chunk.
pub const CHUNK_BYTES: u64 = CHUNK_SLOTS * BLOCK_SIZE;

/// One change log of a volume.
#[derive(Debug)]
pub struct Log {
    /// Its number within the volume.
    pub number: u16,
    /// How many chunks it has.
    pub chunks: u64,
    extents: Vec<Extent>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    bits: Vec<u64>,
    count: u64,
    hint: u64,
}

impl Log {
    /// A log over these extents, each a multiple of [`CHUNK_BYTES`].
    pub fn new(number: u16, extents: Vec<Extent>) -> Result<Log> {
        if extents.iter().any(|extent| !extent.length.is_multiple_of(CHUNK_BYTES)) {
            let what = format!("change log {number}: an extent is not a multiple of 4 MiB");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let chunks = extents.iter().map(|extent| extent.length / CHUNK_BYTES).sum();
        let bits = vec![0; (chunks as usize).div_ceil(64)];
        let taken = Mutex::new(Taken { bits, count: 0, hint: 0 });
        Ok(Log { number, chunks, extents, taken })
    }

    /// The device and offset of a slot.
    pub fn locate(&self, slot: u64) -> (&Arc<Device>, u64) {
        let mut offset = slot << BLOCK_SHIFT;
        for extent in &self.extents {
            if offset < extent.length {
                return (&extent.device, extent.offset + offset);
            }
            offset -= extent.length;
        }
        unreachable!("slots were checked against the log's size when they were recovered");
    }

    /// Takes a free chunk.
    pub fn take_chunk(&self) -> Option<u64> {
        let mut taken = self.taken.lock().expect("no holder panics");
        if taken.count == self.chunks {
            return None;
        }
        let words = taken.bits.len();
        for step in 0..words {
            let word = (taken.hint as usize / 64 + step) % words;
            let free = (!taken.bits[word]).trailing_zeros();
            let chunk = word as u64 * 64 + u64::from(free);
            if free < 64 && chunk < self.chunks {
                taken.bits[word] |= 1 << free;
                taken.count += 1;
                taken.hint = chunk;
                return Some(chunk);
            }
        }
        None
    }

    /// Takes this very chunk, at recovery; `false` if it is beyond the log or has been taken.
    pub fn take_exactly(&self, chunk: u64) -> bool {
        let mut taken = self.taken.lock().expect("no holder panics");
        if chunk >= self.chunks || taken.bits[chunk as usize / 64] & (1 << (chunk % 64)) != 0 {
            return false;
        }
        taken.bits[chunk as usize / 64] |= 1 << (chunk % 64);
        taken.count += 1;
        true
    }

    /// Gives a chunk back.
    pub fn give_chunk(&self, chunk: u64) {
        let mut taken = self.taken.lock().expect("no holder panics");
        let bit = 1 << (chunk % 64);
        assert!(taken.bits[chunk as usize / 64] & bit != 0, "a chunk is given back once");
        taken.bits[chunk as usize / 64] &= !bit;
        taken.count -= 1;
        taken.hint = taken.hint.min(chunk);
    }

    /// Whether so few chunks are free that the next one may be needed at once.
    pub fn is_scarce(&self) -> bool {
        let free = self.chunks - self.chunks_taken();
        free < SCARCE_CHUNKS.max(self.chunks / 16)
    }

    /// Chunks taken.
    pub fn chunks_taken(&self) -> u64 {
        self.taken.lock().expect("no holder panics").count
    }

    /// The devices that it is on.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.extents.iter().map(|extent| &extent.device)
    }
}

/// All change logs of a volume.
#[derive(Debug, Default)]
pub struct Space {
    logs: RwLock<Vec<Arc<Log>>>,
    waiting: AtomicU64,
}

impl Space {
    /// Adds a log.
    pub fn add(&self, log: Log) -> Result<()> {
        let mut logs = self.logs.write().expect("no holder panics");
        if logs.iter().any(|other| other.number == log.number) {
            let what = format!("change log {} exists already", log.number);
            return Err(Error::new(ErrorKind::Exists, what));
        }
        logs.push(Arc::new(log));
        logs.sort_by_key(|log| log.number);
        Ok(())
    }

    /// One processor's slots that wait for a commit were `before`, and are `now`.
    pub fn count_waiting(&self, before: u64, now: u64) {
        // Modulo 2^64, so that less is more of the complement.
        self.waiting.fetch_add(now.wrapping_sub(before), Ordering::AcqRel);
    }

    /// Slots of all processors that wait for a commit: room that there will be.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    /// All logs, by number.
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.logs.read().expect("no holder panics").clone()
    }

    /// The log of this number.
    pub fn log(&self, number: u16) -> Option<Arc<Log>> {
        let logs = self.logs.read().expect("no holder panics");
        let index = logs.binary_search_by_key(&number, |log| log.number).ok()?;
        Some(Arc::clone(&logs[index]))
    }
}
