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
//!                      mark in a later segment is written: so where it was not begun, no record from there on was
//!                      committed; once the first mark in a segment is durable, the manifest says so, before anybody is
//!                      answered;
//!                   J8 after a failed sync the kernel may have dropped records, so no later commit succeeds before a
//!                      checkpoint, together with a segment that was begun after the failure, has made them all unnecessary;
//!                      also if the process is started again in between.
//!                   J9 what a kill may come in the middle of is stored word by word, in an order that shows it: the begin
//!                      of a segment, a commit mark, the number of the last record.
//! Owner and locks   the records' bytes: the processor. The marks' bytes: whoever holds `committing`. The list of
//!                   segments: one lock, held for a push or a clone.
//! Durability        an appended record survives SIGKILL at once, power loss once `committed` has reached it. A
//!                   mark that reaches the disk before records it covers is harmless: what is read back is the
//!                   unbroken sequence of whole records, and their data was synced.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::failed_sync::FailedSync;
use super::format::{HEADER_BYTES, Mark, Record, RecordKind, record_bytes};
use super::manifest::{self, Manifest};
use super::reached::Reached;
use super::segment::{Prepared, Segment, needless};
use crate::block_map::history::Rollback;
use crate::deliberate::{Bug, bug};
use crate::error::{Errno, Error, Result};
use crate::system::{File, System};
use crate::units::Epoch;

/// Who writes a journal, and where.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What has its files.
    pub system: Arc<dyn System>,
    /// The volume's directory.
    pub directory: PathBuf,
    /// The processor's manifest, which is elsewhere.
    pub manifest: PathBuf,
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

/// What commits leave for the next one.
#[derive(Debug, Default)]
struct Committing {
    /// The last mark's in the segment of this number; the first one of a segment takes both places.
    turn: u64,
    number: u64,
    /// The manifest says that this segment has marks.
    named: bool,
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
    manifest: Manifest,
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
        let result = self.commit_now(&mut committing, seq);
        let remembered = result.err().filter(|_| !bug(Bug::ForgetFailedSync));
        committing.failed = remembered.map(|errno| (errno, self.newest_number())); // J8
        if committing.failed.is_some() {
            self.failed_sync.set();
        }
        let committed = result?;
        self.name_marks(&mut committing, committed)?;
        self.committed.fetch_max(committed, Ordering::Release);
        Ok(())
    }

    /// Has the manifest say that the newest segment has commit marks, if it does not yet (J7). Where it cannot, nothing is
    /// lost, and the next commit tries again.
    fn name_marks(
        &self,
        committing: &mut Committing,
        committed: u64,
    ) -> std::result::Result<(), Errno> {
        let segments = self.segments.lock().expect("no holder panics");
        let marked = segments.iter().find(|segment| segment.header.number == committing.number);
        let marked = marked.map(|segment| (committing.number, segment.header.incarnation));
        drop(segments);
        if let Some(segment) = marked.filter(|_| !committing.named) {
            self.manifest.committed_in(segment, committed)?;
            committing.named = true;
        }
        Ok(())
    }

    /// Makes records durable, and says up to which one.
    fn commit_now(&self, committing: &mut Committing, seq: u64) -> std::result::Result<u64, Errno> {
        let mut recovered = self.recovered.lock().expect("no holder panics");
        // A mark that was read back may not be durable, and neither may what it covers: not before they were synced.
        if self.committed() >= seq && recovered.is_empty() {
            return Ok(self.committed());
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
        let number = newest.header.number;
        let first = std::mem::replace(&mut committing.number, number) != number;
        let turns = if first { 1..=2 } else { committing.turn + 1..=committing.turn + 1 };
        committing.turn = *turns.end();
        committing.named &= !first;
        let committed_seq = seq.max(self.committed());
        for turn in turns {
            // SAFETY: `committing` is held.
            unsafe { newest.store_mark(Mark { committed_seq, turn }) };
        }
        newest.file.sync()?;
        Ok(committed_seq)
    }

    /// A checkpoint of this number and CRC-32C has its name, and covers the records up to `covered`: the manifest says so, durably.
    pub fn named(&self, checkpoint: (u64, u32), covered: u64) -> std::result::Result<(), Errno> {
        let segments = self.segments.lock().expect("no holder panics");
        let oldest = segments[needless(&segments, covered)].header.number;
        drop(segments);
        self.manifest.checkpointed(checkpoint, covered, oldest)
    }

    /// The manifest names a checkpoint that covers the records up to `covered`: they are durable, and the segments that hold no others are
    /// forgotten. Says which number the oldest remaining one has.
    pub fn covered(&self, covered: u64) -> u64 {
        let mut committing = self.committing.lock().expect("no holder panics");
        self.recovered.lock().expect("no holder panics").clear();
        let mut segments = self.segments.lock().expect("no holder panics");
        // Records of a segment end where the next one begins.
        let needless = needless(&segments, covered);
        segments.drain(..needless);
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

    /// Whether a sync has failed, and no commit succeeds before a checkpoint (J8).
    pub fn has_failed(&self) -> bool {
        self.committing.lock().expect("no holder panics").failed.is_some()
    }

    /// Whether the newest segment was there when a sync failed.
    fn newest_has_failed(&self) -> bool {
        let failed = self.committing.lock().expect("no holder panics").failed;
        failed.is_some_and(|(_, number)| self.newest_number() <= number)
    }

    /// Record `seq` was appended.
    fn append(&self, seq: u64) {
        self.manifest.appended(seq);
        self.reached.append(seq);
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

/// What a journal goes on from.
#[derive(Debug)]
pub struct Start {
    /// The first segment's number.
    pub number: u64,
    /// The first record's number.
    pub next_seq: u64,
    /// Records up to this one are known to be durable; those between, if any, are once a commit has succeeded.
    pub covered: u64,
    /// The segments that were read back: they are synced before the first commit mark.
    pub segments: Vec<Arc<dyn File>>,
    /// The incarnation of the last one that was begun; 0: none.
    pub previous: u64,
    /// Number and CRC-32C of the checkpoint that was read back; 0: none.
    pub checkpoint: (u64, u32),
    /// What was read of the manifest, if there is one.
    pub manifest: Option<manifest::Found>,
}

impl Start {
    /// From nothing.
    pub fn fresh() -> Start {
        Start {
            number: 1,
            next_seq: 1,
            covered: 0,
            segments: Vec::new(),
            previous: 0,
            checkpoint: (0, 0),
            manifest: None,
        }
    }
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
    /// Begins a run, with a new segment.
    pub fn begin(identity: Identity, start: Start) -> Result<Journal> {
        let failed = |e: Errno| {
            let path = identity.segment_path(start.number);
            Error::io(format!("journal {} cannot be begun", path.display()), e)
        };
        let Start { number, next_seq, covered, .. } = start;
        let prepared = Prepared::make(&identity, number, start.previous).map_err(failed)?;
        let found = start.manifest.as_ref();
        let before = found.map(|found| found.state.clone()).unwrap_or_default();
        let state = manifest::State {
            boot_id: identity.boot_id,
            run: number,
            run_seq: next_seq,
            committed: before.committed.max(covered),
            checkpoint: start.checkpoint,
            ..before
        };
        let manifest = Manifest::begin(&identity, found, state, next_seq - 1).map_err(failed)?;
        // Only now: its boot and its first record are known elsewhere.
        let segment = Arc::new(prepared.begin(next_seq));
        let failed_sync = FailedSync::of_journal(&identity);
        // What was read back may be in the page cache alone, and be called clean there (J8).
        let failed = failed_sync.is_set().then_some((Errno::EIO, number - 1));
        let shared = Shared {
            reached: Reached::new(next_seq - 1),
            committed: AtomicU64::new(covered),
            expecting: AtomicBool::new(false),
            segments: Mutex::new(vec![Arc::clone(&segment)]),
            committing: Mutex::new(Committing { failed, ..Committing::default() }),
            failed_sync,
            manifest,
            recovered: Mutex::new(start.segments),
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
        self.shared.append(seq);
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
                Prepared::make(&self.identity, number, self.current.header.incarnation)?
            }
        };
        debug_assert_eq!(prepared.header.previous, self.current.header.incarnation);
        let segment = Arc::new(prepared.begin(self.next_seq));
        self.current = Arc::clone(&segment);
        self.at = HEADER_BYTES;
        self.shared.push(segment);
        Ok(())
    }

    /// The number of the segment that is to be prepared, and the incarnation of the one before it, if it is time for that.
    /// [`Journal::prepared`] ends it.
    pub fn ask_next(&mut self) -> Option<(u64, u64)> {
        let half_full = self.at > self.current.length / 2;
        if !half_full || !matches!(self.next, Next::Wanted) {
            return None;
        }
        self.next = Next::Asked;
        Some((self.take_number(), self.current.header.incarnation))
    }

    /// A segment that was asked for has been prepared, or could not be.
    pub fn prepared(&mut self, prepared: Option<Prepared>) {
        self.next = match prepared {
            Some(prepared) if prepared.header.number > self.current.header.number => {
                Next::Ready(prepared)
            }
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
        // Where it stays, it is removed when it is found, as it was not begun.
        let _ = self.identity.system.remove(&self.identity.segment_path(prepared.header.number));
    }
}
