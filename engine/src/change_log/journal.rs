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
//!                   J10 a store that fails for want of room loses nothing: it is made again at the next record or commit, in
//!                      the same place. After one that fails otherwise, what was stored before may be lost as well, and the
//!                      journal goes on as after a failed sync (J8).
//! Owner and locks   the records' bytes: the processor. The marks' bytes: whoever holds `committing`. The list of
//!                   segments: one lock, held for a push or a clone.
//! Durability        an appended record survives SIGKILL at once, power loss once `committed` has reached it. A
//!                   mark that reaches the disk before records it covers is harmless: what is read back is the
//!                   unbroken sequence of whole records, and their data was synced.

mod next;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub use super::entry::{Entry, Identity, Start};
use super::failed_sync::FailedSync;
use super::format::{HEADER_BYTES, Mark, Record, record_bytes};
use super::manifest::{self, Manifest};
use super::reached::Reached;
use super::segment::{Prepared, Segment, needless};
use crate::deliberate::{Bug, bug};
use crate::error::{Errno, Error, Result};
use crate::limits::{NO_ROOM_NS, NO_ROOM_NS_MAX};
use crate::system::File;

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

/// Why a commit was not made.
enum Refused {
    /// Its mark could not be stored, for want of room: nothing is lost (J10).
    Unmarked(Errno),
    /// What was to be durable may be lost (J8).
    Unsynced(Errno),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused::Unsynced(errno)
    }
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
    /// A store has failed so that records may be lost, and `committing.failed` does not say so yet (J10).
    lost: AtomicBool,
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
        let mut committing = self.committing();
        if let Some((errno, _)) = committing.failed {
            return Err(errno);
        }
        let committed = match self.commit_now(&mut committing, seq) {
            Ok(committed) => committed,
            Err(Refused::Unmarked(errno)) => return Err(errno),
            Err(Refused::Unsynced(errno)) => {
                if !bug(Bug::ForgetFailedSync) {
                    self.fail(&mut committing, errno);
                }
                return Err(errno);
            }
        };
        self.name_marks(&mut committing, committed)?;
        self.committed.fetch_max(committed, Ordering::Release);
        Ok(())
    }

    /// What commits leave for the next one, with what the processor has lost.
    fn committing(&self) -> MutexGuard<'_, Committing> {
        let mut committing = self.committing.lock().expect("no holder panics");
        if self.lost.swap(false, Ordering::AcqRel) && committing.failed.is_none() {
            self.fail(&mut committing, Errno::EIO);
        }
        committing
    }

    /// Remembers that records may be lost (J8).
    fn fail(&self, committing: &mut Committing, errno: Errno) {
        committing.failed = Some((errno, self.newest_number()));
        self.failed_sync.set();
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
    fn commit_now(
        &self,
        committing: &mut Committing,
        seq: u64,
    ) -> std::result::Result<u64, Refused> {
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
        let first = committing.number != number;
        let turns = if first { 1..=2 } else { committing.turn + 1..=committing.turn + 1 };
        let committed_seq = seq.max(self.committed());
        for turn in turns.clone() {
            // SAFETY: `committing` is held.
            let stored = unsafe { newest.store_mark(Mark { committed_seq, turn }) };
            stored.map_err(|errno| {
                if errno.is_no_space() { Refused::Unmarked(errno) } else { errno.into() }
            })?;
        }
        (committing.number, committing.turn) = (number, *turns.end());
        committing.named &= !first;
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
        let mut committing = self.committing();
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
        self.committing().failed.is_some()
    }

    /// Whether the newest segment was there when a sync failed.
    fn newest_has_failed(&self) -> bool {
        let failed = self.committing().failed;
        failed.is_some_and(|(_, number)| self.newest_number() <= number)
    }

    /// Record `seq` was appended. An error: the manifest does not say so yet.
    fn append(&self, seq: u64) -> std::result::Result<(), Errno> {
        let named = self.manifest.appended(seq);
        self.reached.append(seq);
        named
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
    record: Vec<u8>,
    /// The manifest does not say that the last record was appended: it has to before the next one is (its M2).
    unnamed: bool,
    /// There was no room; nobody tries until this, nanoseconds.
    no_room: Option<(Errno, u64)>,
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

impl Journal {
    /// Begins a run, with a new segment.
    pub fn begin(identity: Identity, start: Start) -> Result<Journal> {
        let failed = |e: Errno| {
            let path = identity.segment_path(start.number);
            Error::io(format!("journal {} cannot be begun", path.display()), e)
        };
        let Start { number, next_seq, covered, .. } = start;
        let prepared = Prepared::make_first(&identity, number, start.previous).map_err(failed)?;
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
        let segment = prepared.begin(next_seq).map_err(|(_, errno)| failed(errno))?;
        let segment = Arc::new(segment);
        let failed_sync = FailedSync::of_journal(&identity);
        // What was read back may be in the page cache alone, and be called clean there (J8).
        let failed = failed_sync.is_set().then_some((Errno::EIO, number - 1));
        let shared = Shared {
            reached: Reached::new(next_seq - 1),
            committed: AtomicU64::new(covered),
            expecting: AtomicBool::new(false),
            segments: Mutex::new(vec![Arc::clone(&segment)]),
            committing: Mutex::new(Committing { failed, ..Committing::default() }),
            lost: AtomicBool::new(false),
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
            record: Vec::new(),
            unnamed: false,
            no_room: None,
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

    /// Appends a record and returns its sequence number. From here on it survives SIGKILL. An error: it was not appended.
    pub fn append(&mut self, entry: Entry<'_>) -> std::result::Result<u64, Errno> {
        let Some((errno, until)) = self.no_room else {
            return self.append_now(entry).inspect_err(|errno| self.had_no_room(*errno, 0));
        };
        let began = self.identity.system.monotonic_ns();
        if began < until {
            return Err(errno);
        }
        self.no_room = None;
        self.append_now(entry).inspect_err(|errno| {
            let took = self.identity.system.monotonic_ns().saturating_sub(began);
            self.had_no_room(*errno, took);
        })
    }

    /// Does not try for a while, where there was no room, which took so long to find out.
    fn had_no_room(&mut self, errno: Errno, took_ns: u64) {
        let least = NO_ROOM_NS.load(Ordering::Relaxed);
        if errno.is_no_space() && least > 0 {
            let pause = (10 * took_ns).clamp(least, NO_ROOM_NS_MAX);
            self.no_room = Some((errno, self.identity.system.monotonic_ns() + pause));
        }
    }

    fn append_now(&mut self, entry: Entry<'_>) -> std::result::Result<u64, Errno> {
        if self.unnamed {
            let named = self.shared.manifest.appended(self.next_seq - 1);
            named.map_err(|errno| self.refuse(errno))?;
            self.unnamed = false;
        }
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
        self.record.resize(length, 0);
        record.encode(entry.checksums, self.current.header.incarnation, &mut self.record);
        // SAFETY: the records' bytes belong to the processor, which `&mut self` is.
        let stored = unsafe { self.current.map.store(self.at, &self.record) };
        stored.map_err(|errno| self.refuse(errno))?;
        self.at += length;
        self.next_seq += 1;
        self.bytes_since_checkpoint += length as u64;
        self.unnamed = self.shared.append(seq).is_err();
        Ok(seq)
    }

    /// A store has failed: where that was not for want of room, a new segment and a checkpoint are due (J10).
    fn refuse(&mut self, errno: Errno) -> Errno {
        if !errno.is_no_space() {
            self.at = self.current.length;
            self.bytes_since_checkpoint = u64::MAX / 2;
            self.shared.lost.store(true, Ordering::Release);
        }
        errno
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
        let segment = match prepared.begin(self.next_seq) {
            Ok(segment) => Arc::new(segment),
            Err((prepared, errno)) => {
                match self.next {
                    Next::Asked => self.remove(&prepared),
                    _ => self.next = Next::Ready(prepared),
                }
                return Err(errno);
            }
        };
        self.current = Arc::clone(&segment);
        self.at = HEADER_BYTES;
        self.shared.push(segment);
        Ok(())
    }
}
