//! Shared journal: the part of a [journal](super::journal) that its processor, flushes and checkpoints use at the same
//! time.
//!
//! How it works      A flush calls [`SharedJournal::commit`], a checkpoint [`SharedJournal::name_checkpoint`] and then
//!                   [`SharedJournal::forget_covered`]. At its end a commit checks that the files that a start would read
//!                   are still at their paths ([`super::known_file`]). If one is not, the journal continues as after a
//!                   failed sync (J8): the processor rewrites the manifest if that is gone, begins a new segment, and writes a
//!                   checkpoint, so that the lost file is not needed.
//! Invariants        J6, J7, J8, J10, J11 (see the journal).
//! Owner and locks   `committing`, then the list of segments, which is held for a push or a clone. The marks' bytes:
//!                   the thread that holds `committing`. A file that is not needed any more is removed from the lists
//!                   under `committing`, and only then deleted, so a check under `committing` never misses a file that
//!                   this process has deleted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use super::entry::Start;
use super::failed_sync::FailedSync;
use super::files::Identity;
use super::format::Mark;
use super::known_file::KnownFile;
use super::manifest::Manifest;
use super::segment::{Segment, needless};
use super::watermark::Watermark;
use crate::error::Errno;
use crate::mutants::{Bug, bug};
use crate::system::File;

/// Upper bound of stored paths of files that were gone.
const REPLACED_MAX: usize = 64;

/// State from one commit to the next.
#[derive(Debug, Default)]
struct Committing {
    /// The turn of the last mark, in segment `number`; the first mark of a segment is stored in both places.
    turn: u64,
    number: u64,
    /// The manifest says that segment `number` has marks.
    named: bool,
    /// The first sync that failed, and the newest segment's number at that time (J8).
    failed: Option<(Errno, u64)>,
    /// A file that is not at its path, or was not at its path when the journal failed.
    gone: Option<PathBuf>,
    /// Files that were gone and are not needed any more, until the next query.
    replaced: Vec<PathBuf>,
    /// Other files: the last checkpoint, and until this run has made one, segments of earlier runs.
    others: Vec<KnownFile>,
}

/// Missing files of a journal.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// A file that is not at its path, or has another length: no commit succeeds while it is needed.
    pub now: Option<PathBuf>,
    /// Files that were gone and that nothing needs any more, since the last query.
    pub replaced: Vec<PathBuf>,
}

/// Why a commit was not made.
enum Refused {
    /// The mark could not be stored, for lack of space: nothing is lost (J10).
    MarkNotStored(Errno),
    /// The records may be lost (J8).
    SyncFailed(Errno),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused::SyncFailed(errno)
    }
}

/// The part that the processor and flushes share.
#[derive(Debug)]
pub struct SharedJournal {
    /// The last record appended, and the last one that syncs may commit.
    pub watermark: Watermark,
    committed: AtomicU64,
    /// The processor waits for the next commit.
    expecting: AtomicBool,
    segments: Mutex<Vec<Arc<Segment>>>,
    committing: Mutex<Committing>,
    /// A store has failed and records may be lost, and `committing.failed` is not set yet (J10).
    pub(super) lost: AtomicBool,
    /// The persistent record of `committing.failed`.
    failed_sync: FailedSync,
    pub(super) manifest: Manifest,
    /// Segments of earlier runs, until they were synced once.
    recovered: Mutex<Vec<Arc<dyn File>>>,
}

impl SharedJournal {
    /// The shared part of a run that begins with this segment.
    pub(super) fn begin(
        identity: &Identity,
        start: Start,
        manifest: Manifest,
        segment: Arc<Segment>,
    ) -> Result<SharedJournal, Errno> {
        let failed_sync = FailedSync::of_journal(identity);
        // Recovered records may be in the page cache only, and be marked clean there (J8).
        let failed = failed_sync.is_set().then_some((Errno::EIO, start.number - 1));
        let system = &*identity.system;
        let segments = start.paths.into_iter().map(|path| KnownFile::fixed_length(system, path));
        let mut others = segments.collect::<Result<Vec<KnownFile>, Errno>>()?;
        if start.checkpoint.0 != 0 {
            others.push(KnownFile::finished(system, identity.checkpoint_path(start.checkpoint.0))?);
        }
        Ok(SharedJournal {
            watermark: Watermark::new(start.next_seq - 1),
            committed: AtomicU64::new(start.covered),
            expecting: AtomicBool::new(false),
            segments: Mutex::new(vec![segment]),
            committing: Mutex::new(Committing { failed, others, ..Committing::default() }),
            lost: AtomicBool::new(false),
            failed_sync,
            manifest,
            recovered: Mutex::new(start.segments),
        })
    }

    /// The last record appended.
    pub fn appended(&self) -> u64 {
        self.watermark.appended()
    }

    /// The last record that survives a power loss.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Makes the next flush notify the processor.
    pub fn expect_commit(&self) {
        self.expecting.store(true, Ordering::Release);
    }

    /// Whether the processor is to be notified; clears that.
    pub fn take_expecting(&self) -> bool {
        self.expecting.swap(false, Ordering::AcqRel)
    }

    /// Makes the records up to `seq` durable. The caller has synced the data that they refer to (J6).
    pub fn commit(&self, seq: u64) -> Result<(), Errno> {
        let mut committing = self.committing();
        if let Some((errno, _)) = committing.failed {
            let _ = self.check_files(&mut committing); // finds out which file is gone
            return Err(errno);
        }
        let committed = match self.commit_now(&mut committing, seq) {
            Ok(committed) => committed,
            Err(Refused::MarkNotStored(errno)) => return Err(errno),
            Err(Refused::SyncFailed(errno)) => {
                if !bug(Bug::ForgetFailedSync) {
                    self.fail(&mut committing, errno);
                }
                let _ = self.check_files(&mut committing);
                return Err(errno);
            }
        };
        let named = self.name_marks(&mut committing, committed);
        self.check_files(&mut committing)?; // J11
        named?;
        self.committed.fetch_max(committed, Ordering::Release);
        Ok(())
    }

    /// Locks the state of commits, and adds a failed store of the processor.
    fn committing(&self) -> MutexGuard<'_, Committing> {
        let mut committing = self.committing.lock().expect("no holder panics");
        if self.lost.swap(false, Ordering::AcqRel) && committing.failed.is_none() {
            self.fail(&mut committing, Errno::EIO);
        }
        committing
    }

    /// Checks that each file that a start would read is at its path; if not, the journal has failed (J11).
    fn check_files(&self, committing: &mut Committing) -> Result<(), Errno> {
        let Some(path) = self.gone(committing)? else { return Ok(()) };
        if committing.failed.is_none() {
            self.fail(committing, Errno::EIO);
        }
        committing.gone = Some(path);
        Err(Errno::EIO)
    }

    /// The first of the files that a start would read that is not at its path.
    fn gone(&self, committing: &Committing) -> Result<Option<PathBuf>, Errno> {
        let identity = self.manifest.identity();
        if !self.manifest.is_there()? {
            return Ok(Some(identity.manifest.clone()));
        }
        let segments = self.segments.lock().expect("no holder panics").clone();
        let known = segments.iter().map(|segment| &segment.known).chain(&committing.others);
        for known in known {
            if !known.is_there(&*identity.system)? {
                return Ok(Some(known.path.clone()));
            }
        }
        Ok(None)
    }

    /// Looks now, unless a commit is in flight, and says what was found. Where a file is gone, the caller has to tell the
    /// processor that the journal has failed.
    pub fn find_missing_files(&self) -> Gone {
        let mut committing = match self.committing.try_lock() {
            Ok(committing) => committing,
            Err(TryLockError::WouldBlock) => return Gone::default(),
            Err(TryLockError::Poisoned(_)) => unreachable!("no holder panics"),
        };
        let _ = self.check_files(&mut committing);
        Gone { now: committing.gone.clone(), replaced: std::mem::take(&mut committing.replaced) }
    }

    /// Whether the journal has failed because a file is gone.
    pub fn has_missing_file(&self) -> bool {
        self.committing().gone.is_some()
    }

    /// Records that the journal has failed, because records may be lost (J8).
    fn fail(&self, committing: &mut Committing, errno: Errno) {
        committing.failed = Some((errno, self.newest_number()));
        self.failed_sync.set();
    }

    /// Records in the manifest that the newest segment has commit marks, if it does not yet say so (J7). If that fails,
    /// nothing is lost, and the next commit tries again.
    fn name_marks(&self, committing: &mut Committing, committed: u64) -> Result<(), Errno> {
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

    /// Makes records durable; returns up to which one.
    fn commit_now(&self, committing: &mut Committing, seq: u64) -> Result<u64, Refused> {
        let mut recovered = self.recovered.lock().expect("no holder panics");
        // A mark that recovery read, and the records that it covers, may not be durable before these files were synced.
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
                if errno.is_no_space() { Refused::MarkNotStored(errno) } else { errno.into() }
            })?;
        }
        (committing.number, committing.turn) = (number, *turns.end());
        committing.named &= !first;
        newest.file.sync()?;
        Ok(committed_seq)
    }

    /// Records in the manifest, durably, that a checkpoint of this number and CRC-32C has its final name, and covers
    /// the records up to `covered`.
    pub fn name_checkpoint(&self, checkpoint: (u64, u32), covered: u64) -> Result<(), Errno> {
        let segments = self.segments.lock().expect("no holder panics");
        let oldest = segments[needless(&segments, covered)].header.number;
        drop(segments);
        self.manifest.checkpointed(checkpoint, covered, oldest)?;
        let identity = self.manifest.identity();
        let path = identity.checkpoint_path(checkpoint.0);
        self.committing().others = vec![KnownFile::finished(&*identity.system, path)?];
        Ok(())
    }

    /// Notes that the manifest names a checkpoint that covers the records up to `covered`: they are durable, and
    /// segments without later records are forgotten. Returns the number of the oldest remaining one.
    pub fn forget_covered(&self, covered: u64) -> u64 {
        let mut committing = self.committing();
        self.recovered.lock().expect("no holder panics").clear();
        let mut segments = self.segments.lock().expect("no holder panics");
        // The records of a segment end where the next segment begins.
        let needless = needless(&segments, covered);
        segments.drain(..needless);
        let oldest = segments[0].header.number;
        if committing.failed.is_some_and(|(_, newest)| newest < oldest) {
            committing.failed = None; // J8
            self.failed_sync.forget_if(|| true);
            let gone = committing.gone.take().filter(|_| committing.replaced.len() < REPLACED_MAX);
            committing.replaced.extend(gone);
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

    /// Whether the newest segment existed when a sync failed.
    pub(super) fn newest_has_failed(&self) -> bool {
        let failed = self.committing().failed;
        failed.is_some_and(|(_, number)| self.newest_number() <= number)
    }

    pub(super) fn push(&self, segment: Arc<Segment>) {
        self.segments.lock().expect("no holder panics").push(segment);
    }
}
