//! Request: one request of a host on its way from a connection through processors and back.
//!
//! How it works      A sink (a connection, or a local client) makes a request and submits it to a [`Target`]. The
//!                   target splits it into parts, one for each partition that it touches; the thread that ends the last
//!                   part passes the request to its sink.
//! Invariants        R1 a request reaches its sink exactly once;
//!                   R2 it was validated before it was submitted: in range, not empty, permitted;
//!                   R3 an error is an errno; the first one is the result.
//! Owner and locks   `remaining` counts the parts that have not ended; the thread that decrements it to 0 owns the
//!                   request. Parts touch disjoint ranges of the buffer (B3).

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::error::Errno;
use crate::sync::{AtomicI32, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::units::{Epoch, VolumeId};

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Fill the buffer.
    Read,
    /// Write the buffer.
    Write,
    /// Make the range read as zeroes.
    Zero {
        /// Keep the space allocated.
        no_hole: bool,
        /// Fail with ENOTSUP instead of writing zeroes to the disk.
        fast: bool,
    },
    /// The range's contents are no longer needed.
    Trim,
    /// Make every previously acknowledged write durable.
    Flush,
    /// Prefetch the range into memory, if that is cheap.
    Cache,
    /// Report which parts of the range are allocated, and which read as zeroes.
    BlockStatus,
}

impl Verb {
    /// Whether it changes the volume's contents.
    pub fn is_write(self) -> bool {
        matches!(self, Verb::Write | Verb::Zero { .. } | Verb::Trim)
    }
}

/// A run of bytes with one status, as `base:allocation` means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Volume offset of its first byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// No space is allocated for it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// What a BLOCK_STATUS reports, in addition to or instead of the allocation.
#[derive(Clone, Debug, Default)]
pub struct Contexts {
    /// Whether the allocation is reported.
    pub allocation: bool,
    /// The snapshots since which changes are reported.
    pub since: Vec<Epoch>,
}

impl Contexts {
    /// Number of contexts, at least 1.
    pub fn times(&self) -> u64 {
        (u64::from(self.allocation) + self.since.len() as u64).max(1)
    }
}

/// A run of bytes that has changed since the `context`-th snapshot of [`Contexts::since`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRun {
    /// Index of the snapshot.
    pub context: u16,
    /// Volume offset of its first byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Where a finished request goes. Called on processor threads: it must neither block nor panic.
pub trait Sink: Send + Sync {
    /// Receives a finished request; [`Request::result`] is its result.
    fn complete(&self, request: Arc<Request>);
    /// Called once after one or more calls of `complete`, so that the sink sends what it gathered.
    fn kick(&self);
    /// Whether its answers are no longer needed: the rest of a long request need not be done.
    fn is_gone(&self) -> bool {
        false
    }
}

/// What a request can be submitted to: a volume or a snapshot.
pub trait Target: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// The volume that it shows, and the snapshot's epoch, if changes since older snapshots can be queried.
    fn instant(&self) -> Option<(VolumeId, Option<Epoch>)> {
        None
    }
    /// Starts every request of `batch` and leaves it empty. Each request returns through its sink, perhaps before this
    /// returns. A full batch costs each processor one push and one wake.
    fn submit(&self, batch: &mut Vec<Arc<Request>>);
}

/// One request. Length 0 is for FLUSH alone (R2).
pub struct Request {
    /// The sink's identifier for it (NBD's cookie).
    pub cookie: u64,
    /// The sink's flags for it (NBD command flags).
    pub flags: u16,
    /// The operation.
    pub verb: Verb,
    /// Answer only when the write is durable.
    pub fua: bool,
    /// First byte, volume offset.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// A write's payload, or a read's destination.
    pub data: Buffer,
    /// What a BLOCK_STATUS reports; `None`: the allocation.
    pub contexts: Option<Arc<Contexts>>,
    sink: Arc<dyn Sink>,
    remaining: AtomicU32,
    errno: AtomicI32,
    /// Upper bound of the extents in the answer to a BLOCK_STATUS, for each context.
    pub extents_max: usize,
    status: Mutex<Vec<StatusExtent>>,
    changes: Mutex<Vec<ChangedRun>>,
    /// Where the answer to a BLOCK_STATUS ends, volume offset.
    answered_to: AtomicU64,
}

/// Upper bound of the extents in any answer to a BLOCK_STATUS.
pub const EXTENTS_MAX: usize = 4096;

impl Request {
    /// A request without flags.
    pub fn new(verb: Verb, offset: u64, length: u64, data: Buffer, sink: Arc<dyn Sink>) -> Request {
        Request {
            cookie: 0,
            flags: 0,
            verb,
            fua: false,
            offset,
            length,
            data,
            contexts: None,
            sink,
            remaining: AtomicU32::new(0),
            errno: AtomicI32::new(0),
            extents_max: EXTENTS_MAX,
            status: Mutex::new(Vec::new()),
            changes: Mutex::new(Vec::new()),
            answered_to: AtomicU64::new(offset + length),
        }
    }

    /// Its result. Final once the sink has it.
    pub fn result(&self) -> Result<(), Errno> {
        match self.errno.load(Ordering::Acquire) {
            0 => Ok(()),
            raw => Err(Errno::new(raw)),
        }
    }

    /// The statuses found, in order of offset, without gaps from `offset` on; perhaps not of the whole range.
    pub fn take_status(&self) -> Vec<StatusExtent> {
        let mut found = std::mem::take(&mut *self.status.lock().expect("no holder panics"));
        merge_statuses(&mut found);
        let (mut at, end) = (self.offset, self.answered_to());
        let follows = |extent: &mut StatusExtent| {
            extent.length = extent.length.min(end.saturating_sub(extent.offset));
            let follows = extent.offset == at && extent.length > 0;
            at += extent.length;
            follows.then_some(()) // else the range between was not examined
        };
        let kept = found.iter_mut().map_while(follows).count();
        found.truncate(kept);
        found
    }

    /// Adds the statuses of a part. Those that do not fit into the answer are dropped, and the answer ends before them.
    pub fn add_status(&self, found: &[StatusExtent]) {
        let mut status = self.status.lock().expect("no holder panics");
        status.extend_from_slice(found);
        if status.len() <= self.extents_max {
            return;
        }
        merge_statuses(&mut status);
        if let Some(extent) = status.get(self.extents_max) {
            self.answer_up_to(extent.offset);
            status.truncate(self.extents_max);
            status.shrink_to_fit();
        }
    }

    /// Ends the answer at `offset`, if it does not end earlier: the range after it was not examined.
    pub fn answer_up_to(&self, offset: u64) {
        self.answered_to.fetch_min(offset, Ordering::AcqRel);
    }

    /// Where the answer ends, volume offset.
    pub fn answered_to(&self) -> u64 {
        self.answered_to.load(Ordering::Acquire)
    }

    /// Whether the answer still includes `offset`, where the next range is to be examined.
    pub fn continues_at(&self, offset: u64) -> bool {
        offset < self.answered_to()
    }

    /// The runs that have changed since each queried snapshot, by snapshot and in order of offset.
    pub fn take_changes(&self) -> Vec<ChangedRun> {
        let mut found = std::mem::take(&mut *self.changes.lock().expect("no holder panics"));
        merge_changes(&mut found);
        found
    }

    /// Adds the changes of a part. Those that do not fit into the answer are dropped, and the answer ends before them.
    pub fn add_changes(&self, found: &[ChangedRun]) {
        let mut changes = self.changes.lock().expect("no holder panics");
        changes.extend_from_slice(found);
        let contexts = self.contexts.as_ref().map_or(1, |contexts| contexts.times());
        if changes.len() as u64 <= self.extents_max as u64 * contexts {
            return;
        }
        merge_changes(&mut changes);
        let (mut context, mut count) = (None, 0);
        changes.retain(|run| {
            count = if context == Some(run.context) { count + 1 } else { 0 };
            context = Some(run.context);
            if count == self.extents_max {
                self.answer_up_to(run.offset);
            }
            count < self.extents_max
        });
        changes.shrink_to_fit();
    }

    /// Sets the number of parts, before the first is submitted.
    pub fn expect_parts(&self, parts: u32) {
        assert!(parts > 0, "R1: a request without parts would never end");
        self.remaining.store(parts, Ordering::Release);
    }

    /// Sets `errno` as the request's result, if it is the first (R3).
    pub fn fail(&self, errno: Errno) {
        let _ = self.errno.compare_exchange(0, errno.raw(), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Ends one part; returns whether it was the last, which makes the caller the request's owner.
    pub fn end_part(&self) -> bool {
        let before = self.remaining.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "R1: more parts ended than were expected");
        before == 1
    }

    /// The sink that receives it when it is done.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Passes the request to its sink. The caller owns it: it was never split, or its last part has ended.
    pub fn complete(self: Arc<Self>) {
        let sink = Arc::clone(&self.sink);
        sink.complete(self);
    }
}

/// Sorts statuses, and joins neighbours with the same status.
fn merge_statuses(found: &mut Vec<StatusExtent>) {
    found.sort_by_key(|extent| extent.offset); // it consists of a few sorted runs
    found.dedup_by(|next, last| {
        let alike = last.hole == next.hole && last.zero == next.zero;
        let joins = alike && last.offset + last.length == next.offset;
        last.length += if joins { next.length } else { 0 };
        joins
    });
}

/// Sorts changed runs by snapshot and offset, and joins neighbours.
fn merge_changes(found: &mut Vec<ChangedRun>) {
    found.sort_by_key(|run| (run.context, run.offset));
    found.dedup_by(|next, last| {
        let joins = last.context == next.context && last.offset + last.length == next.offset;
        last.length += if joins { next.length } else { 0 };
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl Sink for Nowhere {
        fn complete(&self, _: Arc<Request>) {}
        fn kick(&self) {}
    }

    fn status_of(length: u64, contexts: Option<Contexts>, extents_max: usize) -> Request {
        let sink = Arc::new(Nowhere);
        let mut request = Request::new(Verb::BlockStatus, 8, length, Buffer::empty(), sink);
        request.contexts = contexts.map(Arc::new);
        request.extents_max = extents_max;
        request
    }

    fn hole(offset: u64, length: u64) -> StatusExtent {
        StatusExtent { offset, length, hole: true, zero: true }
    }

    #[test]
    fn an_answer_never_ends_where_the_request_begins() {
        let request = status_of(8, None, 1);
        request.add_status(&[hole(11, 1), hole(13, 1), hole(15, 1)]);
        assert!(request.continues_at(8), "nothing of it was answered yet");
        assert_eq!(request.answered_to(), 13);
        request.add_status(&[hole(8, 3)]);
        assert_eq!(
            request.take_status(),
            [hole(8, 4)],
            "neighbours with the same status are one extent"
        );
    }

    #[test]
    fn what_does_not_fit_into_an_answer_is_dropped() {
        let length = 1 << 20;
        let request = status_of(length, None, EXTENTS_MAX);
        let extent =
            |at| StatusExtent { offset: 8 + at, length: 1, hole: at % 2 == 0, zero: false };
        // Two processors, one of which is slow.
        for begin in (0..length).step_by(2048).filter(|at| at / 1024 % 4 == 0).chain([2048]) {
            let found: Vec<StatusExtent> = (begin..begin + 2048).map(extent).collect();
            request.add_status(&found);
            assert!(request.status.lock().unwrap().capacity() <= 2 * EXTENTS_MAX);
        }
        let statuses = request.take_status();
        assert_eq!(statuses, (0..EXTENTS_MAX as u64).map(extent).collect::<Vec<_>>());
        assert!(!request.continues_at(8 + EXTENTS_MAX as u64));
    }

    #[test]
    fn changes_that_do_not_fit_into_an_answer_are_dropped() {
        let contexts = Contexts { allocation: false, since: vec![1, 2] };
        let request = status_of(1 << 20, Some(contexts), 16);
        for begin in (0..1 << 12).step_by(16) {
            let run =
                |at: u64| ChangedRun { context: (at % 2) as u16, offset: 8 + 2 * at, length: 1 };
            let found: Vec<ChangedRun> = (begin..begin + 16).map(run).collect();
            request.add_changes(&found);
            assert!(request.changes.lock().unwrap().len() <= 32);
        }
        let changes = request.take_changes();
        let first: Vec<u64> =
            changes.iter().filter(|run| run.context == 0).map(|run| run.offset).collect();
        assert_eq!(first, (0..16).map(|run| 8 + 4 * run).collect::<Vec<u64>>());
        assert_eq!(request.answered_to(), 8 + 4 * 16, "the first that was dropped");
    }
}
