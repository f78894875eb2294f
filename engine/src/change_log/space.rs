//! Space: the change logs of one volume, and how many of their slots are free.
//!
//! How it works      A log is a list of extents, cut into [`chunks`](super::chunks) of [`CHUNK_SLOTS`] slots, which
//!                   never straddle two extents. Before a processor allocates slots it claims their number; claimed
//!                   slots exist somewhere in the logs. So a write finds all its slots, or allocates none. Which slots
//!                   are used is not stored: it follows from the maps that refer to them.
//! Invariants        SP1 the slots of logs that every processor knows are claimed or used, free, or in a chunk that is
//!                   returning; `free` counts the free ones, and is never too large;
//!                   SP2 slots that will become free are counted in `pending_free` or `returning` until `free` includes
//!                       them, and those of writes in flight, which may free others, in `in_flight` from before `free`
//!                       is reduced until `pending_free` includes the slots that they freed.
//!                   SP3 after a kill, slots to which maps on the disk may refer, but no map in memory does, are held:
//!                       used and counted in `pending_free`, until the recovered maps are durable (J4).
//! Owner and locks   counters, and the locks of the chunks; logs are only ever added.

use std::sync::Arc;

use super::chunks::{CHUNK_BYTES, CHUNK_SLOTS, Chunks, SlotBits};
use super::slot_set::SlotSet;
use crate::error::{Error, ErrorKind, Result};
use crate::io::device::Device;
use crate::io::extent::Extent;
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
use crate::units::{BLOCK_SHIFT, SlotIndex};

/// One change log of a volume.
#[derive(Debug)]
pub struct Log {
    /// Its number within the volume.
    pub number: u16,
    /// Number of its chunks.
    pub chunks: u64,
    /// The allocation of its slots.
    pub slots: Chunks,
    extents: Vec<Extent>,
}

impl Log {
    /// A log over these extents, each a multiple of [`CHUNK_BYTES`].
    pub fn new(number: u16, extents: Vec<Extent>) -> Result<Log> {
        if extents.iter().any(|extent| !extent.length.is_multiple_of(CHUNK_BYTES)) {
            let what = format!("change log {number}: an extent is not a multiple of 4 MiB");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let chunks = extents.iter().map(|extent| extent.length / CHUNK_BYTES).sum();
        Ok(Log { number, chunks, slots: Chunks::new(chunks), extents })
    }

    /// The device and offset of a slot.
    pub fn locate(&self, slot: SlotIndex) -> (&Arc<Device>, u64) {
        let mut offset = slot.0 << BLOCK_SHIFT;
        for extent in &self.extents {
            if offset < extent.length {
                return (&extent.device, extent.offset + offset);
            }
            offset -= extent.length;
        }
        unreachable!("slots were checked against the log's size when they were recovered");
    }

    /// Number of its slots.
    pub fn size(&self) -> u64 {
        self.chunks * CHUNK_SLOTS
    }

    /// Its devices.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.extents.iter().map(|extent| &extent.device)
    }
}

/// All change logs of a volume.
#[derive(Debug, Default)]
pub struct Space {
    logs: RwLock<Vec<Arc<Log>>>,
    free: AtomicU64,
    pending_free: AtomicU64,
    returning: AtomicU64,
    in_flight: AtomicU64,
    size: AtomicU64,
    held: Mutex<Vec<Held>>,
}

/// Slots of one chunk that are held (SP3).
#[derive(Debug)]
struct Held {
    log: Arc<Log>,
    chunk: u64,
    slots: Box<SlotBits>,
    count: u64,
}

/// Use of the space, in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Number of slots.
    pub size: u64,
    /// Slots to which maps refer, or that are allocated to writes in flight.
    pub used: u64,
}

impl Space {
    /// Adds a log. Its slots are not counted before [`Space::open`].
    pub fn add(&self, log: Log) -> Result<Arc<Log>> {
        let mut logs = self.logs.write().expect("no holder panics");
        if logs.iter().any(|other| other.number == log.number) {
            let what = format!("change log {} exists already", log.number);
            return Err(Error::new(ErrorKind::Exists, what));
        }
        let log = Arc::new(log);
        logs.push(Arc::clone(&log));
        logs.sort_by_key(|log| log.number);
        Ok(log)
    }

    /// Counts the slots of a log that every processor knows (SP1), of which `used` are used.
    pub fn open(&self, log: &Log, used: u64) {
        self.size.fetch_add(log.size(), Ordering::AcqRel);
        self.add_free(log.size() - used);
    }

    /// Holds those of these slots to which no map in memory refers, until [`Space::release_held`] (SP3). Called before
    /// the logs are opened.
    pub fn hold(&self, slots: SlotSet) {
        let mut held = self.held.lock().expect("no holder panics");
        for ((number, chunk), mut slots) in slots.into_chunks() {
            let Some(log) = self.log(number) else { continue };
            log.slots.allocate_available(chunk, &mut slots);
            let count = slots.iter().map(|word| u64::from(word.count_ones())).sum();
            if count > 0 {
                self.count_pending_free(0, count);
                held.push(Held { log, chunk, slots, count });
            }
        }
    }

    /// Frees the held slots, because the recovered maps are durable. Returns whether any were held.
    pub fn release_held(&self) -> bool {
        let held = std::mem::take(&mut *self.held.lock().expect("no holder panics"));
        for Held { log, chunk, slots, count } in &held {
            log.slots.free_exactly(*chunk, slots);
            self.add_free(*count);
            self.count_pending_free(*count, 0); // SP2
        }
        !held.is_empty()
    }

    /// Claims `slots` slots, for immediate allocation; `false` if fewer are free.
    pub fn claim(&self, slots: u64) -> bool {
        self.in_flight.fetch_add(slots, Ordering::SeqCst); // SP2
        let claimed = self.try_decrement_free(slots);
        if !claimed {
            self.in_flight.fetch_sub(slots, Ordering::SeqCst);
        }
        claimed
    }

    fn try_decrement_free(&self, slots: u64) -> bool {
        let taken = |free: u64| free.checked_sub(slots);
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_ok()
    }

    /// Ends a write with `slots` claimed slots: they are recorded, or freed.
    pub fn end_write(&self, slots: u64) {
        self.in_flight.fetch_sub(slots, Ordering::SeqCst);
    }

    /// Slots of writes in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Counts slots that became free: they were freed, or claimed and not allocated.
    pub fn add_free(&self, slots: u64) {
        self.free.fetch_add(slots, Ordering::AcqRel);
    }

    /// Slots that can be claimed.
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Acquire)
    }

    /// Updates the number of one processor's slots that wait for a commit from `before` to `now`.
    pub fn count_pending_free(&self, before: u64, now: u64) {
        // Modulo 2^64, so a decrease is added as its complement.
        self.pending_free.fetch_add(now.wrapping_sub(before), Ordering::SeqCst);
    }

    /// Slots of all processors that wait for a commit, and then become free.
    pub fn pending_free(&self) -> u64 {
        self.pending_free.load(Ordering::SeqCst)
    }

    /// Slots of chunks that are being punched, and then become free.
    pub fn returning(&self) -> u64 {
        self.returning.load(Ordering::Acquire)
    }

    /// Takes an empty chunk out of use while it is punched, if enough other slots are free.
    pub fn retire(&self, chunk: &EmptyChunk) -> bool {
        self.returning.fetch_add(CHUNK_SLOTS, Ordering::AcqRel); // SP2
        let mut retired = self.try_decrement_free(CHUNK_SLOTS);
        if retired && !chunk.log.slots.retire(chunk.chunk) {
            self.add_free(CHUNK_SLOTS);
            retired = false;
        }
        if !retired {
            self.returning.fetch_sub(CHUNK_SLOTS, Ordering::AcqRel);
        }
        retired
    }

    /// Makes a retired chunk usable again.
    pub fn revive(&self, chunk: &EmptyChunk) {
        chunk.log.slots.revive(chunk.chunk);
        self.add_free(CHUNK_SLOTS);
        self.returning.fetch_sub(CHUNK_SLOTS, Ordering::AcqRel); // SP2
    }

    /// Used slots and all slots.
    pub fn usage(&self) -> Use {
        let size = self.size.load(Ordering::Acquire);
        let unused = self.free() + self.pending_free() + self.returning();
        Use { size, used: size.saturating_sub(unused) }
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

/// A chunk that has become empty: its range can be punched while it is retired.
#[derive(Clone, Debug)]
pub struct EmptyChunk {
    /// The log.
    pub log: Arc<Log>,
    /// The chunk's number.
    pub chunk: u64,
}

impl EmptyChunk {
    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        self.log.locate(SlotIndex::in_chunk(self.chunk, 0)).0
    }

    /// Whether its device supports punching.
    pub fn can_punch(&self) -> bool {
        self.device().can_punch()
    }

    /// Punches it out of its device.
    pub fn punch(&self) {
        let (device, offset) = self.log.locate(SlotIndex::in_chunk(self.chunk, 0));
        // After an error only disk space stays allocated; the chunk is still free.
        let _ = device.punch(offset, CHUNK_BYTES);
    }
}
