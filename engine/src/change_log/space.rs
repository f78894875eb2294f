//! Space: the log areas of one volume, and how many of their slots are free.
//!
//! How it works      A log area is a list of extents, cut into [`chunks`](super::chunks) of [`CHUNK_SLOTS`] slots, which
//!                   never straddle two extents. Change logs take their slots from it. Before a processor allocates
//!                   slots it [claims](super::claim) their number in the areas that it may use; claimed slots exist
//!                   somewhere in their area. So a write finds all its slots, or allocates none. Which slots are used
//!                   is not stored: it follows from the maps that refer to them.
//! Invariants        SP1 the slots of an area that every processor knows are claimed or used, free, or being punched;
//!                   its `free` counts the free ones, and is never too large. What is reserved for windows is free;
//!                   SP2 slots of an area that will become free are counted in its `pending_free` or `returning` until
//!                       `free` includes them, and those of writes in flight in `in_flight`: what they claimed there,
//!                       from before `free` is reduced, and what they may free there, until `pending_free` or `free`
//!                       includes the slots that they freed;
//!                   SP3 after a kill, slots to which maps on the disk may refer, but no map in memory does, are held:
//!                       used and counted in `pending_free`, until the recovered maps are durable (J4).
//! Owner and locks   counters, and the locks of the chunks; areas are only ever added.

use std::sync::Arc;
use std::sync::atomic::{self, AtomicBool, AtomicU32};

use super::chunks::{CHUNK_BYTES, CHUNK_SLOTS, Chunks, SlotBits};
use super::slot_set::SlotSet;
use crate::error::{Error, ErrorKind, Result};
use crate::io::device::Device;
use crate::io::extent::Extent;
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
use crate::units::{BLOCK_SHIFT, SlotIndex};

/// One log area of a volume.
#[derive(Debug)]
pub struct LogArea {
    /// Its number within the volume.
    pub number: u16,
    /// Number of its chunks.
    pub chunks: u64,
    /// The allocation of its slots.
    pub slots: Chunks,
    extents: Vec<Extent>,
    /// Slots that are counted: 0 before it is opened.
    open_size: AtomicU64,
    free: AtomicU64,
    pending_free: AtomicU64,
    pub(super) returning: AtomicU64,
    in_flight: AtomicU64,
    /// The state of what is being punched out of it.
    pub(super) sweep: Sweep,
    /// Its device is full: slots that are backed come first.
    lean: AtomicBool,
    /// Held for a claim in several areas, the same one for all areas of a volume (SQ2).
    pub(super) spanning: Arc<Mutex<()>>,
}

/// The state of an area's sweeps; see [`punching`](super::punching).
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pub(super) running: AtomicBool,
    /// The tick of the next one.
    pub(super) next: AtomicU32,
    /// The chunk with which that begins.
    pub(super) chunk: atomic::AtomicU64,
    /// The slot up to which it is known which free slots are backed.
    pub(super) surveyed: atomic::AtomicU64,
}

/// The bits of some log areas: of area `n`, bit `n` modulo 64.
pub type AreaBits = u64;

impl LogArea {
    /// An area over these extents, each a multiple of [`CHUNK_BYTES`].
    pub fn new(number: u16, extents: Vec<Extent>) -> Result<LogArea> {
        if extents.iter().any(|extent| !extent.length.is_multiple_of(CHUNK_BYTES)) {
            let what = format!("log area {number}: an extent is not a multiple of 4 MiB");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let chunks = extents.iter().map(|extent| extent.length / CHUNK_BYTES).sum();
        Ok(LogArea {
            number,
            chunks,
            slots: Chunks::new(chunks),
            extents,
            open_size: AtomicU64::new(0),
            free: AtomicU64::new(0),
            pending_free: AtomicU64::new(0),
            returning: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            sweep: Sweep::default(),
            lean: AtomicBool::new(false),
            spanning: Arc::default(),
        })
    }

    /// The device and offset of a slot.
    pub fn locate(&self, slot: SlotIndex) -> (&Arc<Device>, u64) {
        let (device, offset, _) = self.locate_run(slot);
        (device, offset)
    }

    /// The same, and the bytes from there to the end of the slot's extent.
    pub(super) fn locate_run(&self, slot: SlotIndex) -> (&Arc<Device>, u64, u64) {
        let mut offset = slot.0 << BLOCK_SHIFT;
        for extent in &self.extents {
            if offset < extent.length {
                return (&extent.device, extent.offset + offset, extent.length - offset);
            }
            offset -= extent.length;
        }
        unreachable!("slots were checked against the log's size when they were recovered");
    }

    /// Number of its slots.
    pub fn size(&self) -> u64 {
        self.chunks * CHUNK_SLOTS
    }

    /// Its bit.
    pub fn bit(&self) -> AreaBits {
        1 << (self.number % 64)
    }

    /// Counts its slots, of which `used` are used: every processor knows it (SP1).
    pub fn open(&self, used: u64) {
        self.open_size.store(self.size(), Ordering::Release);
        self.add_free(self.size() - used);
    }

    /// Claims `slots` slots, for immediate allocation; `false` if fewer are free.
    pub fn claim(&self, slots: u64) -> bool {
        self.begin_write(slots); // SP2
        let claimed = self.try_decrement_free(slots);
        if !claimed {
            self.end_write(slots);
        }
        claimed
    }

    /// Claims as many slots as are free, at most `most`; returns how many.
    pub fn claim_up_to(&self, most: u64) -> u64 {
        let wanted = most.min(self.free());
        if self.claim(wanted) { wanted } else { 0 }
    }

    pub(super) fn try_decrement_free(&self, slots: u64) -> bool {
        let taken = |free: u64| free.checked_sub(slots);
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_ok()
    }

    /// Notes that a write that may free `slots` slots here is in flight.
    pub fn begin_write(&self, slots: u64) {
        self.in_flight.fetch_add(slots, Ordering::SeqCst);
    }

    /// Ends a write with `slots` claimed slots, or that may free so many: they are recorded, or freed.
    pub fn end_write(&self, slots: u64) {
        self.in_flight.fetch_sub(slots, Ordering::SeqCst);
    }

    /// Slots of writes in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Counts slots that became free: they were freed, or claimed and not allocated.
    pub fn add_free(&self, slots: u64) {
        self.free.fetch_add(slots, Ordering::SeqCst);
    }

    /// Slots that can be claimed.
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::SeqCst)
    }

    /// Counts slots that wait for a commit, and then become free.
    pub fn add_pending_free(&self, slots: u64) {
        self.pending_free.fetch_add(slots, Ordering::SeqCst);
    }

    /// Notes that slots that waited for a commit are counted as free.
    pub fn sub_pending_free(&self, slots: u64) {
        self.pending_free.fetch_sub(slots, Ordering::SeqCst);
    }

    /// Slots of all processors that wait for a commit.
    pub fn pending_free(&self) -> u64 {
        self.pending_free.load(Ordering::SeqCst)
    }

    /// Slots that are being punched, and then become free.
    pub fn returning(&self) -> u64 {
        self.returning.load(Ordering::SeqCst)
    }

    /// Used slots and all slots.
    pub fn usage(&self) -> Use {
        let size = self.open_size.load(Ordering::Acquire);
        let unused = self.free() + self.pending_free() + self.returning();
        Use { size, used: size.saturating_sub(unused) }
    }

    /// Whether a write has recently found its device full: then slots that are backed come first.
    pub fn is_lean(&self) -> bool {
        self.lean.load(Ordering::Relaxed)
    }

    /// See [`LogArea::is_lean`].
    pub fn set_lean(&self, lean: bool) {
        self.lean.store(lean, Ordering::Relaxed);
    }

    /// Its devices.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.extents.iter().map(|extent| &extent.device)
    }
}

/// All log areas of a volume.
#[derive(Debug, Default)]
pub struct Space {
    logs: RwLock<Vec<Arc<LogArea>>>,
    held: Mutex<Vec<Held>>,
    spanning: Arc<Mutex<()>>,
}

/// Slots of one chunk that are held (SP3).
#[derive(Debug)]
struct Held {
    log: Arc<LogArea>,
    chunk: u64,
    slots: Box<SlotBits>,
    count: u64,
}

/// Use of the space, in slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Number of slots.
    pub size: u64,
    /// Slots to which maps refer, or that are allocated to writes in flight.
    pub used: u64,
}

impl Space {
    /// Adds an area. Its slots are not counted before [`LogArea::open`].
    pub fn add(&self, mut log: LogArea) -> Result<Arc<LogArea>> {
        log.spanning = Arc::clone(&self.spanning);
        let mut logs = self.logs.write().expect("no holder panics");
        if logs.iter().any(|other| other.number == log.number) {
            let what = format!("log area {} exists already", log.number);
            return Err(Error::new(ErrorKind::Exists, what));
        }
        let log = Arc::new(log);
        logs.push(Arc::clone(&log));
        logs.sort_by_key(|log| log.number);
        Ok(log)
    }

    /// Holds those of these slots to which no map in memory refers, until [`Space::release_held`] (SP3). Called before
    /// the areas are opened.
    pub fn hold(&self, slots: SlotSet) {
        let mut held = self.held.lock().expect("no holder panics");
        for ((number, chunk), mut slots) in slots.into_chunks() {
            let Some(log) = self.log(number) else { continue };
            log.slots.allocate_available(chunk, &mut slots);
            let count = slots.iter().map(|word| u64::from(word.count_ones())).sum();
            if count > 0 {
                log.add_pending_free(count);
                held.push(Held { log, chunk, slots, count });
            }
        }
    }

    /// Whether slots are held.
    pub fn holds(&self) -> bool {
        !self.held.lock().expect("no holder panics").is_empty()
    }

    /// Frees the held slots, because the recovered maps are durable. Returns whether any were held.
    pub fn release_held(&self) -> bool {
        let held = std::mem::take(&mut *self.held.lock().expect("no holder panics"));
        for Held { log, chunk, slots, count } in &held {
            log.slots.free_exactly(*chunk, slots);
            log.add_free(*count);
            log.sub_pending_free(*count); // SP2
        }
        !held.is_empty()
    }

    /// Slots that can be claimed, in all areas.
    pub fn free(&self) -> u64 {
        self.logs.read().expect("no holder panics").iter().map(|log| log.free()).sum()
    }

    /// Used slots and all slots.
    pub fn usage(&self) -> Use {
        let logs = self.logs.read().expect("no holder panics");
        logs.iter().map(|log| log.usage()).fold(Use::default(), |sum, one| Use {
            size: sum.size + one.size,
            used: sum.used + one.used,
        })
    }

    /// All areas, by number.
    pub fn logs(&self) -> Vec<Arc<LogArea>> {
        self.logs.read().expect("no holder panics").clone()
    }

    /// The area of this number.
    pub fn log(&self, number: u16) -> Option<Arc<LogArea>> {
        let logs = self.logs.read().expect("no holder panics");
        let index = logs.binary_search_by_key(&number, |log| log.number).ok()?;
        Some(Arc::clone(&logs[index]))
    }
}

/// A chunk that has become empty.
#[derive(Clone, Debug)]
pub struct EmptyChunk {
    /// The log area.
    pub log: Arc<LogArea>,
    /// The chunk's number.
    pub chunk: u64,
}

impl EmptyChunk {
    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        self.log.locate(SlotIndex::in_chunk(self.chunk, 0)).0
    }
}
