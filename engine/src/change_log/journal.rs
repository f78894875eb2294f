//! Journal: one processor's records of one volume, appended through a shared mapping.
//!
//! How it works      Segments `pPPP-NNNNNNNNNN.journal`, fully allocated and mapped, of one size unless there is little
//!                   space. The processor appends; when a segment is full, or the volume is opened, a new one begins
//!                   with the next sequence number, and records from that number on in older ones do not count. A pool
//!                   thread [prepares](Prepared) the next segment when the newest is half full, so that the processor
//!                   does not wait for the disk. A flush ([`SharedJournal::commit`]) syncs segments, oldest first, and
//!                   stores a commit mark in the newest one.
//! Invariants        J2, J3 (see the parent); J5 records of a segment are consecutive in sequence and bytes;
//!                   J6 a mark of sequence number s is written after the data of all records up to s was synced;
//!                   J7 a segment's name and space are durable before its first record, and its header and records
//!                      before a mark in a later segment is written: so if a segment was not begun, no record from its
//!                      start on was committed; once the first mark in a segment is durable, the manifest says so,
//!                      before any flush is answered;
//!                   J8 after a failed sync the kernel may have dropped records, so no later commit succeeds before a
//!                      checkpoint, together with a segment that was begun after the failure, has made them all
//!                      unnecessary; also if the process is restarted in between.
//!                   J9 structures that a kill may tear are stored word by word, in an order that makes a torn one
//!                      visible: the begin of a segment, a commit mark, the number of the last record.
//!                   J10 a store that fails for lack of space loses nothing: it is repeated at the next record or
//!                       commit, in the same place. After a store that fails for another reason, earlier stores may be
//!                       lost too, and the journal continues as after a failed sync (J8).
//!                   J11 a commit succeeds only if, after its sync, each file that a start would read is at its path.
//! Owner and locks   the records' bytes: the processor. The rest is in [`SharedJournal`], with its locks.
//! Durability        an appended record survives SIGKILL at once, power loss once `committed` has reached it. A mark
//!                   that reaches the disk before records it covers is harmless: recovery reads the unbroken sequence
//!                   of complete records, and their data was synced.

mod next;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use super::entry::{Entry, Start};
use super::files::Identity;
use super::format::{HEADER_BYTES, Record, record_bytes};
use super::manifest::{self, Manifest, Page};
use super::segment::{Prepared, Segment};
pub use super::shared_journal::{Gone, SharedJournal};
use crate::error::{Errno, Error, Result};
use crate::limits::{NO_SPACE_RETRY_NS, NO_SPACE_RETRY_NS_MAX};

/// The processor's end of a journal.
#[derive(Debug)]
pub struct Journal {
    identity: Identity,
    current: Arc<Segment>,
    at: usize,
    next_seq: u64,
    next_number: u64,
    shared: Arc<SharedJournal>,
    page: Page,
    next: Next,
    record: Vec<u8>,
    /// The manifest does not have the number of the last record: it must have it before the next record is appended
    /// (its MF2).
    unnamed: bool,
    /// There was no space; the next attempt is not before this time, nanoseconds.
    no_space: Option<(Errno, u64)>,
    /// Bytes appended since the last checkpoint began.
    pub bytes_since_checkpoint: u64,
}

/// The segment that follows the newest one.
#[derive(Debug)]
enum Next {
    Wanted,
    Asked,
    /// It could not be made. If it is still needed, the processor makes it.
    Failed,
    Ready(Prepared),
}

impl Journal {
    /// Starts a run, with a new segment.
    pub fn begin(identity: Identity, start: Start) -> Result<Journal> {
        let path = identity.segment_path(start.number);
        let failed =
            |e: Errno| Error::io(format!("journal {} cannot be started", path.display()), e);
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
        let manifest = Manifest::begin(&identity, found, state, next_seq - 1);
        let (manifest, page) = manifest.map_err(failed)?;
        // Only now: the manifest has its boot and its first record.
        let segment = prepared.begin(next_seq).map_err(|refused| failed(refused.1))?;
        let segment = Arc::new(segment);
        let shared = SharedJournal::begin(&identity, start, manifest, Arc::clone(&segment));
        let shared = Arc::new(shared.map_err(failed)?);
        Ok(Journal {
            identity,
            current: segment,
            at: HEADER_BYTES,
            next_seq,
            next_number: number + 1,
            shared,
            page,
            next: Next::Wanted,
            record: Vec::new(),
            unnamed: false,
            no_space: None,
            bytes_since_checkpoint: 0,
        })
    }

    /// The part that flushes use.
    pub fn shared(&self) -> &Arc<SharedJournal> {
        &self.shared
    }

    /// Its identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Allocates the number of the next segment or checkpoint.
    pub fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Appends a record and returns its sequence number. From then on the record survives SIGKILL. On an error it was
    /// not appended.
    pub fn append(&mut self, entry: Entry<'_>) -> std::result::Result<u64, Errno> {
        let Some((errno, until)) = self.no_space else {
            return self.append_now(entry).inspect_err(|errno| self.had_no_space(*errno, 0));
        };
        let began = self.identity.system.monotonic_ns();
        if began < until {
            return Err(errno);
        }
        self.no_space = None;
        self.append_now(entry).inspect_err(|errno| {
            let took = self.identity.system.monotonic_ns().saturating_sub(began);
            self.had_no_space(*errno, took);
        })
    }

    /// Suspends attempts for a time that depends on how long the failed one took, because there was no space.
    fn had_no_space(&mut self, errno: Errno, took_ns: u64) {
        let least = NO_SPACE_RETRY_NS.load(Ordering::Relaxed);
        if errno.is_no_space() && least > 0 {
            let pause = (10 * took_ns).clamp(least, NO_SPACE_RETRY_NS_MAX);
            self.no_space = Some((errno, self.identity.system.monotonic_ns() + pause));
        }
    }

    fn append_now(&mut self, entry: Entry<'_>) -> std::result::Result<u64, Errno> {
        if self.unnamed {
            self.name_last()?;
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
        // SAFETY: the records' bytes belong to the processor, which holds `&mut self`.
        let stored = unsafe { self.current.map.store(self.at, &self.record) };
        stored.map_err(|errno| self.refuse(errno))?;
        self.at += length;
        self.next_seq += 1;
        self.bytes_since_checkpoint += length as u64;
        self.unnamed = self.page.appended(seq).is_err();
        self.shared.watermark.append(seq);
        Ok(seq)
    }

    /// Stores the number of the last record in the manifest. If that fails for another reason than a lack of space, the
    /// manifest is rewritten as a new file.
    fn name_last(&mut self) -> std::result::Result<(), Errno> {
        let named = self.page.appended(self.next_seq - 1);
        let named = match named {
            Err(errno) if !errno.is_no_space() => self.renew_manifest(true),
            named => named,
        };
        named.map_err(|errno| self.refuse(errno))?;
        self.unnamed = false;
        Ok(())
    }

    /// Rewrites the manifest if its file is gone or was replaced, or `always`.
    fn renew_manifest(&mut self, always: bool) -> std::result::Result<(), Errno> {
        if let Some(page) = self.shared.manifest.renew(self.next_seq - 1, always)? {
            self.page = page;
            self.unnamed = false;
        }
        Ok(())
    }

    /// Handles a failed store: unless the reason was a lack of space, a new segment and a checkpoint are due (J10).
    fn refuse(&mut self, errno: Errno) -> Errno {
        if !errno.is_no_space() {
            self.at = self.current.length;
            self.bytes_since_checkpoint = u64::MAX / 2;
            self.shared.lost.store(true, Ordering::Release);
        }
        errno
    }

    /// After the journal has failed (J8, J11): rewrites the manifest if it is gone, and begins a new segment if the
    /// newest one existed at the failure. A checkpoint has to follow.
    pub fn renew(&mut self) -> std::result::Result<(), Errno> {
        self.renew_manifest(false)?;
        if self.shared.newest_has_failed() { self.roll() } else { Ok(()) }
    }

    fn roll(&mut self) -> std::result::Result<(), Errno> {
        self.at = self.current.length;
        let prepared = match std::mem::replace(&mut self.next, Next::Wanted) {
            Next::Ready(prepared) if prepared.known.is_there(&*self.identity.system)? => prepared,
            next => {
                if matches!(next, Next::Asked) {
                    self.next = next; // a segment that is prepared later is not used
                }
                let number = self.take_number();
                Prepared::make(&self.identity, number, self.current.header.incarnation)?
            }
        };
        debug_assert_eq!(prepared.header.previous, self.current.header.incarnation);
        let segment = match prepared.begin(self.next_seq) {
            Ok(segment) => Arc::new(segment),
            Err(refused) => {
                let (prepared, errno) = *refused;
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
