//! Checkpoint: when a share's maps are written to a file, and which files that replaces; and when its journal's next
//! segment is prepared.
//!
//! How it works      When enough was appended to the journal since the last one, the processor clones its versions,
//!                   which costs references, and a pool thread does the rest: it writes the file, syncs the devices and
//!                   the file, renames it, tells the journal which records it covers, and removes files that are not
//!                   needed any more. The manifest names it before any record counts as covered, and before any file is
//!                   removed.
//! A failed one      is reported ([`CheckpointFailed`](Told::CheckpointFailed)) and made again after [`RETRY_MIN`], then after
//!                   twice as long each time: until one succeeds, the journal grows, and so does the time of a recovery.
//! No space          if the next segment cannot be prepared, Python gets a [`JournalFull`](Told::JournalFull) event,
//!                   while half of the newest segment is left. Python frees space that it reserves for this, and calls
//!                   `relieve`: a small segment is begun, and a checkpoint makes the segments before it removable.
//! A failed journal  after a failed sync records may be lost (J8), and so they may be if a file is gone (J11). Then the
//!                   journal begins a new segment, and a checkpoint of everything before it is made: when the manifest
//!                   names that, the lost records are not needed, and commits succeed again. Each flush, and each check
//!                   for missing files, that finds the journal failed requests that.
//! Invariants        K1, K2 (see [`crate::change_log::checkpoint`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use crate::change_log::checkpoint::{self, Contents};
use crate::change_log::files::Identity;
use crate::change_log::files::files;
use crate::change_log::journal;
use crate::change_log::past::Past;
use crate::change_log::segment::Prepared;
use crate::error::Errno;
use crate::events::Event as Told;
use crate::limits::CHECKPOINT_BYTES_MIN;
use crate::log::{Level, Line, log};
use crate::mutants::{Bug, bug};
use crate::processor::durable::Durable;
use crate::processor::messages::{Control, Event};
use crate::processor::share::{Context, Local, RecordedCuts, Share, count};
use crate::system::pool::Lane;
use crate::system::ticks::{Tick, Ticks};
use crate::units::{BLOCK_SIZE, Epoch};

/// A checkpoint that failed is made again after so many ticks, 2 s, if no other is due.
const RETRY_MIN: Tick = 8;
/// The longest that it waits for that, ticks: 64 s.
const RETRY_MAX: Tick = 256;

/// That a share's last checkpoint failed: when, and after how many ticks it is made again.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedCheckpoint {
    at: Tick,
    retry_after: Tick,
}

/// A checkpoint to write.
pub struct Checkpoint {
    identity: Identity,
    number: u64,
    contents: Contents,
    journal: Arc<journal::SharedJournal>,
}

impl Checkpoint {
    /// Writes it, and removes the files that it replaces; returns its size in bytes.
    pub fn write(self, durable: &Durable) -> Result<u64, Errno> {
        let Checkpoint { identity, number, contents, journal } = self;
        let path = identity.checkpoint_path(number);
        let new = path.with_extension("checkpoint.new");
        let covered = contents.first_seq - 1;
        if bug(Bug::EarlyRemoval) {
            remove_covered(&identity, number, journal.forget_covered(covered));
        }
        // The contents are dropped before any wait: leaves that change until then are copied.
        let written =
            checkpoint::write(&new, &identity, number, contents).and_then(|(file, bytes, crc)| {
                if !bug(Bug::EarlyCheckpoint) {
                    durable.sync_devices()?; // K1: the data to which they refer was written before they were cloned
                }
                file.sync()?;
                checkpoint::publish(&identity, &new, &path)?;
                durable.syncing(|| journal.name_checkpoint((number, crc), covered))?; // K2
                Ok(bytes)
            });
        match written {
            Ok(_) => remove_covered(&identity, number, journal.forget_covered(covered)),
            Err(_) => {
                let _ = identity.system.remove(&new);
            }
        }
        written
    }
}

impl Share {
    pub(super) fn checkpoint_if_due(&mut self, context: &Context<'_>) {
        let least = CHECKPOINT_BYTES_MIN.load(Ordering::Relaxed);
        if self.journal.bytes_since_checkpoint > self.checkpoint_bytes.max(least) {
            self.begin_checkpoint(context);
        }
    }

    fn begin_checkpoint(&mut self, context: &Context<'_>) {
        if std::mem::replace(&mut self.checkpointing, true) {
            return;
        }
        self.journal.bytes_since_checkpoint = 0;
        let checkpoint = self.checkpoint();
        let epoch = self.epoch;
        let durable = Arc::clone(self.flusher.durable());
        let (share, queue) = (self.number, Arc::clone(context.queue));
        context.checkpoints.run(Lane::Files(share), move || {
            let written = checkpoint.write(&durable);
            queue.push(Event::Control(Box::new(Control::CheckpointDone(share, written, epoch))));
        });
    }

    /// Notes how the last checkpoint ended, and reports it where that is news.
    fn note_checkpoint(&mut self, failed: Option<Errno>, ticks: &Ticks) {
        let errno = failed.map_or(0, Errno::raw);
        let before = self.stats.checkpoint_errno.swap(errno, Ordering::Relaxed);
        let volume = self.ask.volume;
        if failed.is_none() {
            self.failed_checkpoint = None;
            if before != 0 {
                self.ask.events.push(Told::CheckpointWritten(volume));
            }
            return;
        }
        count(&self.stats.checkpoint_failures, 1);
        let doubled = |last: FailedCheckpoint| (2 * last.retry_after).min(RETRY_MAX);
        let retry_after = self.failed_checkpoint.map_or(RETRY_MIN, doubled);
        self.failed_checkpoint = Some(FailedCheckpoint { at: ticks.now(), retry_after });
        if before != errno {
            self.ask.events.push(Told::CheckpointFailed(volume));
        }
    }

    /// Makes a checkpoint again that failed, when it is time for that.
    pub(super) fn retry_checkpoint(&mut self, context: &Context<'_>) {
        if let Some(FailedCheckpoint { at, retry_after }) = self.failed_checkpoint
            && context.ticks.now().wrapping_sub(at) >= retry_after
            && !self.leaving
        {
            self.begin_checkpoint(context);
        }
    }

    /// Queues the preparation of the next segment, when it is time for that.
    pub(super) fn prepare_segment(&mut self, context: &Context<'_>) {
        let asked = if self.leaving { None } else { self.journal.ask_next() };
        if let Some(asked) = asked {
            self.prepare(asked, Prepared::make, context);
        }
    }

    fn prepare(
        &self,
        (number, previous): (u64, u64),
        make: fn(&Identity, u64, u64) -> Result<Prepared, Errno>,
        context: &Context<'_>,
    ) {
        let identity = self.journal.identity().clone();
        let (share, volume, queue) = (self.number, self.ask.volume, Arc::clone(context.queue));
        context.pool.run(Lane::Files(share), move || {
            let made = make(&identity, number, previous);
            if let Err(errno) = made
                && !errno.is_no_space()
            {
                let text = format!("the next journal segment cannot be made: {errno:?}");
                let line = Line::new(Level::Warning, "segment-not-made", text).with(errno.raw());
                log(line.of_volume(volume));
            }
            let prepared = made.ok();
            prepared.iter().for_each(Prepared::prefault);
            queue.push(Event::Control(Box::new(Control::SegmentPrepared(share, prepared))));
        });
    }

    /// Handles the next segment, which was prepared, or could not be.
    pub fn segment_prepared(&mut self, prepared: Option<Prepared>, context: &Context<'_>) {
        let small = std::mem::take(&mut self.preparing_small);
        self.journal.prepared(prepared);
        let lacks = self.journal.lacks_next();
        if lacks && !small {
            self.ask.events.push(Told::JournalFull(self.ask.volume));
        }
        for (since, waiter) in std::mem::take(&mut self.relieving) {
            if small && lacks {
                let _ = waiter.send(false); // the caller may wait no longer
            } else {
                self.relieve_since(since, waiter, context);
            }
        }
    }

    /// Makes the journal's segments removable by a checkpoint, and then answers whether that was done. If there is no
    /// space for a segment of the full size, a small one is begun first: the newest is never removable.
    pub fn relieve(&mut self, answer: Sender<bool>, context: &Context<'_>) {
        self.relieve_since(context.ticks.now(), answer, context);
    }

    fn relieve_since(&mut self, since: Tick, answer: Sender<bool>, context: &Context<'_>) {
        let asked = if self.leaving { None } else { self.journal.ask_again() };
        if let Some(asked) = asked {
            self.preparing_small = true;
            self.prepare(asked, Prepared::make_small, context);
        }
        if self.journal.is_preparing() {
            self.relieving.push((since, answer));
        } else if self.journal.begin_small().is_err() {
            let _ = answer.send(false); // the caller may wait no longer
        } else {
            self.checkpoint_now(answer, context);
        }
    }

    /// Handles a failed journal: it could not be synced, or a file of it is gone.
    pub fn renew_journal(&mut self, context: &Context<'_>) {
        // If no segment can be begun, the next flush or check for missing files requests it again.
        if self.journal.renew().is_ok() {
            self.begin_checkpoint(context);
        }
    }

    /// Handles the end of a checkpoint of `epoch`: its size in bytes, or why it failed.
    pub fn checkpoint_done(
        &mut self,
        written: Result<u64, Errno>,
        epoch: Epoch,
        context: &Context<'_>,
    ) {
        self.checkpointing = false;
        if let Ok(bytes) = written {
            self.checkpoint_bytes = bytes;
            self.checkpoint_epoch = self.checkpoint_epoch.max(epoch);
        }
        self.note_checkpoint(written.err(), context.ticks);
        let next = std::mem::take(&mut self.checkpoint_waiters[1]);
        for (_, waiter) in std::mem::replace(&mut self.checkpoint_waiters[0], next) {
            let _ = waiter.send(written.is_ok()); // the caller may wait no longer
        }
        if !self.checkpoint_waiters[0].is_empty() {
            self.begin_checkpoint(context);
        }
    }

    /// Writes a checkpoint now, and then answers whether that was done.
    pub fn checkpoint_now(&mut self, answer: Sender<bool>, context: &Context<'_>) {
        let later = usize::from(self.checkpointing); // the one in flight began before
        self.checkpoint_waiters[later].push((context.ticks.now(), answer));
        self.begin_checkpoint(context);
    }

    /// Answers callers that have waited too long for a checkpoint.
    pub(super) fn end_checkpoint_waits(&mut self, ticks: &Ticks) {
        let relieving = std::iter::once(&mut self.relieving);
        for waiters in self.checkpoint_waiters.iter_mut().chain(relieving) {
            waiters.retain(|(since, answer)| {
                let over = ticks.is_over(*since);
                if over {
                    let _ = answer.send(false); // the caller may wait no longer
                }
                !over
            });
        }
    }

    /// The last checkpoint, when the volume is closed.
    pub fn close(mut self) -> Checkpoint {
        self.journal.close();
        self.checkpoint()
    }

    fn checkpoint(&mut self) -> Checkpoint {
        self.slots.young.clear();
        Checkpoint {
            identity: self.journal.identity().clone(),
            number: self.journal.take_number(),
            contents: self.contents(),
            journal: Arc::clone(self.journal.shared()),
        }
    }

    /// The contents of a checkpoint now.
    fn contents(&self) -> Contents {
        let (mut partitions, mut in_place) = (Vec::new(), Vec::new());
        for Local { partition, versions, .. } in &self.locals {
            let counters = versions.counters();
            if versions.live.write_seq != 0 || !versions.frozen().is_empty() {
                partitions.push((*partition, versions.clone()));
            } else if counters.written_bytes > 0 {
                in_place.push((*partition, counters));
            }
        }
        let past = Past::of(&self.history, self.epoch, self.geometry.size / BLOCK_SIZE);
        let RecordedCuts { cuts, counted_from } = &self.recorded;
        let cuts = cuts.iter().filter(|cut| self.history.has(cut.epoch)).copied().collect();
        Contents {
            first_seq: self.journal.shared().appended() + 1,
            epoch: self.epoch,
            past: Past { cuts, counted_from: *counted_from, ..past },
            partitions,
            in_place,
        }
    }
}

/// Removes the files that the checkpoint of this number replaces (K2): older checkpoints, and segments older than
/// `oldest_segment`.
fn remove_covered(identity: &Identity, number: u64, oldest_segment: u64) {
    let old = |ending: &str, before: u64| {
        let found = files(identity, ending).unwrap_or_else(|error| {
            let text = format!("files that are not needed any more stay: {}", error.what);
            log(Line::new(Level::Warning, "files-not-removed", text));
            Vec::new()
        });
        found.into_iter().filter(move |(number, _)| *number < before).map(|(_, path)| path)
    };
    // Files that cannot be removed now are removed after the next checkpoint.
    for path in old(".journal", oldest_segment).chain(old(".checkpoint", number)) {
        let _ = identity.system.remove(&path);
    }
    for path in old(".checkpoint.new", number) {
        let _ = identity.system.remove(&path);
    }
}
