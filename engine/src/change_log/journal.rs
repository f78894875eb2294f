//! Journal: one processor's records of one volume, appended through a shared mapping.
//!
//! How it works      Segments `pPPP-NNNNNNNNNN.journal` of the same size, fully allocated and mapped. The
//!                   processor appends; when a segment is full, or the volume is opened, a new one begins with
//!                   the next sequence number, and what older ones hold from that number on does not count. The next
//!                   one is [prepared](Prepared) by a pool thread when the newest is half full, so that the processor does
//!                   not wait for the disk. A flush ([`Shared::commit`]) syncs segments, oldest first, and puts a commit
//!                   mark into the newest one.
//! Invariants        J2, J3 (see the parent); J5 records of a segment are consecutive in sequence and bytes;
//!                   J6 a mark of sequence number s is written after the data of all records up to s was synced;
//!                   J7 a segment's name and space are durable before its first record, and its header and records before a
//!                      mark in a later segment is written: so where a header is lost, no record from there on was committed;
//!                   J8 after a failed sync the kernel may have dropped records, so no later commit succeeds before a
//!                      checkpoint, together with a segment that was begun after the failure, has made them all unnecessary;
//!                      also if the process is started again in between.
//! Owner and locks   the records' bytes: the processor. The marks' bytes: whoever holds `committing`. The list of
//!                   segments: one lock, held for a push or a clone.
//! Durability        an appended record survives SIGKILL at once, power loss once `committed` has reached it. A
//!                   mark that reaches the disk before records it covers is harmless: what is read back is the
//!                   unbroken sequence of whole records, and their data was synced.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::failed_sync::FailedSync;
use super::format::{FORMAT_VERSION, Record, RecordKind, record_bytes};
use super::format::{HEADER_BYTES, Header, JOURNAL_MAGIC, MARK_BYTES, MARK_OFFSETS, Mark};
use super::reached::Reached;
use crate::block_map::history::Rollback;
use crate::deliberate::{Bug, bug};
use crate::error::{Errno, Error, Result};
use crate::limits::SEGMENT_BYTES;
use crate::system::mapping::Mapping;
use crate::system::{File, System};
use crate::units::Epoch;

/// Who writes a journal, and where.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What has its files.
    pub system: Arc<dyn System>,
    /// The volume's directory.
    pub directory: PathBuf,
    /// The volume's UUID.
    pub volume_uuid: [u8; 16],
    /// The processor.
    pub processor: u32,
    /// The host's boot id.
    pub boot_id: [u8; 16],
}

impl Identity {
    /// The path of a segment.
    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("p{:03}-{number:010}.journal", self.processor))
    }

    /// The path of a checkpoint.
    pub fn checkpoint_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("p{:03}-{number:010}.checkpoint", self.processor))
    }
}

/// A segment that is mapped.
#[derive(Debug)]
pub struct Segment {
    header: Header,
    file: Arc<dyn File>,
    map: Mapping,
    length: usize,
    synced: AtomicBool,
}

/// A segment that has no records and no header yet.
#[derive(Debug)]
pub struct Prepared {
    number: u64,
    incarnation: u64,
    file: Arc<dyn File>,
    map: Mapping,
    length: usize,
}

impl Prepared {
    /// Makes it, durably. What is left of one that could not be made is removed.
    pub fn make(identity: &Identity, number: u64) -> std::result::Result<Prepared, Errno> {
        let path = identity.segment_path(number);
        let made = Prepared::make_at(identity, number, &path);
        if made.is_err() {
            let _ = identity.system.remove(&path);
        }
        made
    }

    fn make_at(
        identity: &Identity,
        number: u64,
        path: &Path,
    ) -> std::result::Result<Prepared, Errno> {
        let file = identity.system.create(path)?;
        let length = SEGMENT_BYTES.load(Ordering::Relaxed);
        let map = file.map(length)?;
        file.sync()?;
        if !bug(Bug::NoDirectorySync) {
            identity.system.sync_directory(&identity.directory)?; // J7
        }
        Ok(Prepared { number, incarnation: identity.system.random()?, file, map, length })
    }

    /// Has its pages in memory: else the processor would meet each one for the first time.
    pub fn warm(&self) {
        self.map.warm();
    }

    fn begin(self, identity: &Identity, first_seq: u64) -> Segment {
        let Prepared { number, incarnation, file, map, length } = self;
        let header = Header {
            version: FORMAT_VERSION,
            volume_uuid: identity.volume_uuid,
            boot_id: identity.boot_id,
            processor: identity.processor,
            number,
            first_seq,
            incarnation,
        };
        let bytes = header.encode(JOURNAL_MAGIC);
        // SAFETY: nobody else has the mapping yet.
        unsafe { map.slice_mut(0, bytes.len()) }.copy_from_slice(&bytes);
        Segment { header, file, map, length, synced: AtomicBool::new(false) }
    }
}

/// What commits leave for the next one.
#[derive(Debug, Default)]
struct Committing {
    turn: u64,
    /// The first sync that failed, and the newest segment's number then (J8).
    failed: Option<(Errno, u64)>,
}

/// What the processor and flushes share.
#[derive(Debug)]
pub struct Shared {
    /// How far it has got, and syncs may commit it.
    pub reached: Reached,
    committed: AtomicU64,
    /// The processor has places that wait for a commit.
    expecting: AtomicBool,
    segments: Mutex<Vec<Arc<Segment>>>,
    committing: Mutex<Committing>,
    /// What outlives the process of `committing.failed`.
    failed_sync: FailedSync,
    /// Segments of the run before this one, until they were synced once.
    recovered: Mutex<Vec<Arc<dyn File>>>,
}

impl Shared {
    /// The last record appended.
    pub fn appended(&self) -> u64 {
        self.reached.appended()
    }

    /// The last record that survives a power loss.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Has the next flush tell the processor that it was made.
    pub fn expect_commit(&self) {
        self.expecting.store(true, Ordering::Release);
    }

    /// Whether the processor wants to be told, once.
    pub fn take_expecting(&self) -> bool {
        self.expecting.swap(false, Ordering::AcqRel)
    }

    /// Makes the records up to `seq` durable. The caller has synced the data that they speak of (J6).
    pub fn commit(&self, seq: u64) -> std::result::Result<(), Errno> {
        let mut committing = self.committing.lock().expect("no holder panics");
        if let Some((errno, _)) = committing.failed {
            return Err(errno);
        }
        let result = self.commit_now(&mut committing.turn, seq);
        let remembered = result.err().filter(|_| !bug(Bug::ForgetFailedSync));
        committing.failed = remembered.map(|errno| (errno, self.newest_number())); // J8
        if committing.failed.is_some() {
            self.failed_sync.set();
        }
        result
    }

    fn commit_now(&self, turn: &mut u64, seq: u64) -> std::result::Result<(), Errno> {
        let mut recovered = self.recovered.lock().expect("no holder panics");
        // A mark that was read back may not be durable, and neither may what it covers: not before they were synced.
        if self.committed() >= seq && recovered.is_empty() {
            return Ok(());
        }
        for file in recovered.iter() {
            file.sync()?;
        }
        recovered.clear();
        drop(recovered);
        let segments = self.segments.lock().expect("no holder panics").clone();
        let (newest, sealed) = segments.split_last().expect("a journal has a segment");
        let unsynced = |segment: &&Arc<Segment>| {
            !segment.synced.load(Ordering::Relaxed) && !bug(Bug::NoSealedSync)
        };
        for segment in sealed.iter().filter(unsynced) {
            segment.file.sync()?;
            segment.synced.store(true, Ordering::Relaxed);
        }
        *turn += 1;
        let mark = Mark { committed_seq: seq.max(self.committed()), turn: *turn };
        let at = MARK_OFFSETS[(*turn % 2) as usize];
        // SAFETY: the marks' bytes belong to the holder of `committing`.
        unsafe { newest.map.slice_mut(at, MARK_BYTES) }
            .copy_from_slice(&mark.encode(newest.header.incarnation));
        newest.file.sync()?;
        self.committed.fetch_max(seq, Ordering::Release);
        Ok(())
    }

    /// A checkpoint covers the records up to `covered`: they are durable, and the segments that hold no others are
    /// forgotten. Says which number the oldest remaining one has.
    pub fn covered(&self, covered: u64) -> u64 {
        let mut committing = self.committing.lock().expect("no holder panics");
        self.recovered.lock().expect("no holder panics").clear();
        let mut segments = self.segments.lock().expect("no holder panics");
        // Records of a segment end where the next one begins.
        while segments.len() > 1 && segments[1].header.first_seq <= covered + 1 {
            segments.remove(0);
        }
        let oldest = segments[0].header.number;
        if committing.failed.is_some_and(|(_, newest)| newest < oldest) {
            committing.failed = None; // J8
            self.failed_sync.forget_if(|| true);
        }
        self.committed.fetch_max(covered, Ordering::Release);
        oldest
    }

    fn newest_number(&self) -> u64 {
        let segments = self.segments.lock().expect("no holder panics");
        segments.last().expect("a journal has a segment").header.number
    }

    /// Whether the newest segment was there when a sync failed.
    fn newest_has_failed(&self) -> bool {
        let failed = self.committing.lock().expect("no holder panics").failed;
        failed.is_some_and(|(_, number)| self.newest_number() <= number)
    }

    fn push(&self, segment: Arc<Segment>) {
        self.segments.lock().expect("no holder panics").push(segment);
    }
}

/// The processor's end of a journal.
#[derive(Debug)]
pub struct Journal {
    identity: Identity,
    current: Arc<Segment>,
    at: usize,
    next_seq: u64,
    next_number: u64,
    shared: Arc<Shared>,
    next: Next,
    /// Bytes appended since the last checkpoint began.
    pub bytes_since_checkpoint: u64,
}

/// The segment that follows the newest one.
#[derive(Debug)]
enum Next {
    Wanted,
    Asked,
    /// It could not be made. Should it be needed all the same, the processor tries itself.
    Failed,
    Ready(Prepared),
}

/// What a record says, before it has its sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// See [`Record`].
    pub kind: RecordKind,
    /// The epoch in which the write was started.
    pub epoch: Epoch,
    /// Partition within the volume.
    pub partition: u32,
    /// First block.
    pub first: u32,
    /// Blocks.
    pub count: u32,
    /// Raw place.
    pub place: u64,
    /// Checksums, for slots.
    pub checksums: &'a [u32],
}

impl Entry<'static> {
    /// A cut has ended `epoch`, at this instant, nanoseconds since 1970.
    pub fn cut(epoch: Epoch, instant_ns: u64) -> Entry<'static> {
        let (kind, place) = (RecordKind::Cut, instant_ns);
        Entry { kind, epoch, partition: 0, first: 0, count: 0, place, checksums: &[] }
    }

    /// The volume, of so many blocks, was rolled back.
    pub fn rollback(rollback: Rollback, blocks: u64) -> Entry<'static> {
        Entry {
            kind: RecordKind::Rollback,
            epoch: rollback.at,
            partition: blocks as u32,
            first: (blocks >> 32) as u32,
            count: 0,
            place: rollback.to,
            checksums: &[],
        }
    }
}

impl Journal {
    /// Begins a new segment whose first record will be `next_seq`. Records up to `committed` are known to be durable;
    /// those between, if any, are once a commit has succeeded.
    ///
    /// `recovered` are the segments that were read back: they are synced before the first commit mark.
    pub fn begin(
        identity: Identity,
        number: u64,
        next_seq: u64,
        committed: u64,
        recovered: Vec<Arc<dyn File>>,
    ) -> Result<Journal> {
        let failed = |e: Errno| {
            let what =
                format!("journal {} cannot be begun", identity.segment_path(number).display());
            Error::io(what, e)
        };
        let prepared = Prepared::make(&identity, number).map_err(failed)?;
        let segment = Arc::new(prepared.begin(&identity, next_seq));
        let failed_sync = FailedSync::of_journal(&identity);
        // What was read back may be in the page cache alone, and be called clean there (J8).
        let failed = failed_sync.is_set().then_some((Errno::EIO, number - 1));
        let shared = Shared {
            reached: Reached::new(next_seq - 1),
            committed: AtomicU64::new(committed),
            expecting: AtomicBool::new(false),
            segments: Mutex::new(vec![Arc::clone(&segment)]),
            committing: Mutex::new(Committing { turn: 0, failed }),
            failed_sync,
            recovered: Mutex::new(recovered),
        };
        Ok(Journal {
            identity,
            current: segment,
            at: HEADER_BYTES,
            next_seq,
            next_number: number + 1,
            shared: Arc::new(shared),
            next: Next::Wanted,
            bytes_since_checkpoint: 0,
        })
    }

    /// What flushes need of it.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Who writes it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The number that the next segment or checkpoint takes.
    pub fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Appends a record and returns its sequence number. From here on it survives SIGKILL.
    pub fn append(&mut self, entry: Entry<'_>) -> std::result::Result<u64, Errno> {
        let length = record_bytes(entry.checksums.len());
        if length > self.current.length - self.at {
            self.roll()?;
        }
        let seq = self.next_seq;
        let record = Record {
            kind: entry.kind,
            seq,
            epoch: entry.epoch,
            partition: entry.partition,
            first: entry.first,
            count: entry.count,
            place: entry.place,
        };
        // SAFETY: the records' bytes belong to the processor, which `&mut self` is.
        let out = unsafe { self.current.map.slice_mut(self.at, length) };
        record.encode(entry.checksums, self.current.header.incarnation, out);
        self.at += length;
        self.next_seq += 1;
        self.bytes_since_checkpoint += length as u64;
        self.shared.reached.append(seq);
        Ok(seq)
    }

    /// Begins a new segment if the newest one is of those that could not be synced.
    pub fn begin_anew(&mut self) -> std::result::Result<(), Errno> {
        if self.shared.newest_has_failed() { self.roll() } else { Ok(()) }
    }

    fn roll(&mut self) -> std::result::Result<(), Errno> {
        self.at = self.current.length;
        let prepared = match std::mem::replace(&mut self.next, Next::Wanted) {
            Next::Ready(prepared) => prepared,
            next => {
                if matches!(next, Next::Asked) {
                    self.next = next; // what comes now is too late
                }
                let number = self.take_number();
                Prepared::make(&self.identity, number)?
            }
        };
        let segment = Arc::new(prepared.begin(&self.identity, self.next_seq));
        self.current = Arc::clone(&segment);
        self.at = HEADER_BYTES;
        self.shared.push(segment);
        Ok(())
    }

    /// The number of the segment that is to be prepared, if it is time for that. [`Journal::prepared`] ends it.
    pub fn ask_next(&mut self) -> Option<u64> {
        let half_full = self.at > self.current.length / 2;
        if !half_full || !matches!(self.next, Next::Wanted) {
            return None;
        }
        self.next = Next::Asked;
        Some(self.take_number())
    }

    /// A segment that was asked for has been prepared, or could not be.
    pub fn prepared(&mut self, prepared: Option<Prepared>) {
        self.next = match prepared {
            Some(prepared) if prepared.number > self.current.header.number => Next::Ready(prepared),
            Some(late) => {
                self.remove(&late);
                Next::Wanted
            }
            None => Next::Failed,
        };
    }

    /// Whether one was asked for and has not come yet.
    pub fn is_preparing(&self) -> bool {
        matches!(self.next, Next::Asked)
    }

    /// Removes what was prepared and is not needed: the volume is being let go.
    pub fn close(&mut self) {
        if let Next::Ready(prepared) = std::mem::replace(&mut self.next, Next::Wanted) {
            self.remove(&prepared);
        }
    }

    fn remove(&self, prepared: &Prepared) {
        // Where it stays, it is removed when it is found without a header.
        let _ = self.identity.system.remove(&self.identity.segment_path(prepared.number));
    }
}
