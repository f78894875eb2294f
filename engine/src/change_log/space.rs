//! Space: the change logs of one volume, and how much of them is free.
//!
//! How it works      A log is a list of extents, cut into [`chunks`](super::chunks) of [`CHUNK_SLOTS`] slots, which never
//!                   straddle two extents. Before a processor takes slots it claims so many; what is claimed is there,
//!                   wherever in the logs that may be. So a write finds all its slots, or takes none. Which slots are
//!                   used is not stored: it follows from the maps that refer to them.
//! Invariants        SP1 the slots of logs that every processor knows are claimed or used, free, or of a chunk that is
//!                      returning, and the free ones are counted in `free`, never too many of them;
//!                   SP2 slots on their way to be free are counted in `waiting` or `returning` until `free` has them, and
//!                      those of writes in flight, which may free others, in `in_flight` from before `free` has lost
//!                      them until `waiting` has what they have freed.
//!                   SP3 after a kill, slots that what the disk holds may refer to, but no map in memory does, are held: used
//!                      and counted in `waiting`, until what was read back is durable (J4).
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
    /// How many chunks it has.
    pub chunks: u64,
    /// Which of its slots are used.
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

    /// All its slots.
    pub fn size(&self) -> u64 {
        self.chunks * CHUNK_SLOTS
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
    free: AtomicU64,
    waiting: AtomicU64,
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

/// How much there is, in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// All slots.
    pub size: u64,
    /// Those that maps refer to, or that writes in flight have taken.
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

    /// Counts the slots of a log that every processor knows (SP1), of which so many were used before.
    pub fn open(&self, log: &Log, used: u64) {
        self.size.fetch_add(log.size(), Ordering::AcqRel);
        self.give(log.size() - used);
    }

    /// Holds those of these slots that no map in memory refers to, until [`Space::release_held`] (SP3). Before its logs are opened.
    pub fn hold(&self, slots: SlotSet) {
        let mut held = self.held.lock().expect("no holder panics");
        for ((number, chunk), mut slots) in slots.into_chunks() {
            let Some(log) = self.log(number) else { continue };
            log.slots.take_free(chunk, &mut slots);
            let count = slots.iter().map(|word| u64::from(word.count_ones())).sum();
            if count > 0 {
                self.count_waiting(0, count);
                held.push(Held { log, chunk, slots, count });
            }
        }
    }

    /// What was read back is durable: nothing is held any more. Says whether anything was.
    pub fn release_held(&self) -> bool {
        let held = std::mem::take(&mut *self.held.lock().expect("no holder panics"));
        for Held { log, chunk, slots, count } in &held {
            log.slots.give_exactly(*chunk, slots);
            self.give(*count);
            self.count_waiting(*count, 0); // SP2
        }
        !held.is_empty()
    }

    /// Claims so many slots, to be taken at once; `false` if there are not so many free.
    pub fn claim(&self, slots: u64) -> bool {
        self.in_flight.fetch_add(slots, Ordering::SeqCst); // SP2
        let claimed = self.take_free(slots);
        if !claimed {
            self.in_flight.fetch_sub(slots, Ordering::SeqCst);
        }
        claimed
    }

    fn take_free(&self, slots: u64) -> bool {
        let taken = |free: u64| free.checked_sub(slots);
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_ok()
    }

    /// A write with so many of the slots that were claimed has landed: they are recorded, or given back.
    pub fn land(&self, slots: u64) {
        self.in_flight.fetch_sub(slots, Ordering::SeqCst);
    }

    /// Slots of writes in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// So many slots are free: given back, or claimed and not taken.
    pub fn give(&self, slots: u64) {
        self.free.fetch_add(slots, Ordering::AcqRel);
    }

    /// Slots that can be claimed.
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Acquire)
    }

    /// One processor's slots that wait for a commit were `before`, and are `now`.
    pub fn count_waiting(&self, before: u64, now: u64) {
        // Modulo 2^64, so that less is more of the complement.
        self.waiting.fetch_add(now.wrapping_sub(before), Ordering::SeqCst);
    }

    /// Slots of all processors that wait for a commit: room that there will be.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Slots of chunks that are being punched: room that there will be.
    pub fn returning(&self) -> u64 {
        self.returning.load(Ordering::Acquire)
    }

    /// Takes an empty chunk out of use for as long as it is punched, if there is other room enough.
    pub fn retire(&self, chunk: &EmptyChunk) -> bool {
        self.returning.fetch_add(CHUNK_SLOTS, Ordering::AcqRel); // SP2
        let mut retired = self.take_free(CHUNK_SLOTS);
        if retired && !chunk.log.slots.retire(chunk.chunk) {
            self.give(CHUNK_SLOTS);
            retired = false;
        }
        if !retired {
            self.returning.fetch_sub(CHUNK_SLOTS, Ordering::AcqRel);
        }
        retired
    }

    /// A chunk that was retired can be used again.
    pub fn revive(&self, chunk: &EmptyChunk) {
        chunk.log.slots.revive(chunk.chunk);
        self.give(CHUNK_SLOTS);
        self.returning.fetch_sub(CHUNK_SLOTS, Ordering::AcqRel); // SP2
    }

    /// What is used, of how much.
    pub fn usage(&self) -> Use {
        let size = self.size.load(Ordering::Acquire);
        let unused = self.free() + self.waiting() + self.returning();
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

    /// Whether its device can give its space back.
    pub fn can_punch(&self) -> bool {
        self.device().can_punch()
    }

    /// Punches it out of its device.
    pub fn punch(&self) {
        let (device, offset) = self.log.locate(SlotIndex::in_chunk(self.chunk, 0));
        // What stays allocated for an error is only space; the chunk is free all the same.
        let _ = device.punch(offset, CHUNK_BYTES);
    }
}
