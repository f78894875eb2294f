//! Request: one request of a host on its way from a connection through processors and back.
//!
//! How it works      A sink (a connection, or a caller that waits) makes a request and submits it to a
//!                   [`Target`]. The target splits it into parts, one for each partition that it touches;
//!                   whoever ends the last part gives the request back to its sink.
//! Invariants        R1 a request reaches its sink exactly once;
//!                   R2 it was validated before it was submitted: in range, not empty, allowed;
//!                   R3 an error is an errno, and the first one stays.
//! Owner and locks   `remaining` counts the parts that are still out; the thread that takes it to 0 owns the
//!                   request. Parts touch disjoint ranges of the buffer (B3).

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::error::Errno;
use crate::sync::{AtomicI32, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::units::{Epoch, VolumeId};
use crate::volume::Volume;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Fill the buffer.
    Read,
    /// Store the buffer.
    Write,
    /// Make the range read as zeroes.
    Zero {
        /// Keep the space allocated.
        no_hole: bool,
        /// Fail with ENOTSUP rather than write zeroes one by one.
        fast: bool,
    },
    /// The range's contents are no longer needed.
    Trim,
    /// Make every write that was acknowledged before durable.
    Flush,
    /// Bring the range into memory, if that is cheap.
    Cache,
    /// Say which of the range is allocated, and which reads as zeroes.
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

/// What a BLOCK_STATUS is to find out, beside or instead of the allocation.
#[derive(Clone, Debug, Default)]
pub struct Contexts {
    /// Whether the allocation is asked for.
    pub allocation: bool,
    /// The snapshots since which changes are asked for.
    pub since: Vec<Epoch>,
}

impl Contexts {
    /// How many they are, at least 1.
    pub fn times(&self) -> u64 {
        (u64::from(self.allocation) + self.since.len() as u64).max(1)
    }
}

/// A run of bytes that has changed, as the `context`-th snapshot of [`Contexts::since`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRun {
    /// Which of the snapshots.
    pub context: u16,
    /// Volume offset of its first byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Where a finished request goes. Called on processor threads: it must neither block nor panic.
pub trait Sink: Send + Sync {
    /// Takes a request that is done; [`Request::result`] says how it ended.
    fn complete(&self, request: Arc<Request>);
    /// Called once after one or more calls of `complete`: the time to send what was gathered.
    fn kick(&self);
}

/// What a request can be submitted to: a volume or a snapshot.
pub trait Target: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// What shows this volume instead, now that it has grown; `None` if this shows something else.
    fn grown(&self, _volume: &Arc<Volume>) -> Option<Arc<dyn Target>> {
        None
    }
    /// The volume that it is, and the snapshot's epoch, if changes since older snapshots can be asked for.
    fn instant(&self) -> Option<(VolumeId, Option<Epoch>)> {
        None
    }
    /// Starts every request of `batch` and leaves it empty. Each request comes back through its sink,
    /// perhaps before this returns. A full batch costs each processor one push and one wake.
    fn submit(&self, batch: &mut Vec<Arc<Request>>);
}

/// One request. Length 0 is for FLUSH alone (R2).
pub struct Request {
    /// The sink's own name for it (NBD's cookie).
    pub cookie: u64,
    /// The sink's own marks (NBD command flags).
    pub flags: u16,
    /// What is asked.
    pub verb: Verb,
    /// Answer only when the write is durable.
    pub fua: bool,
    /// First byte, volume offset.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// A write's payload, or a read's destination.
    pub data: Buffer,
    /// What a BLOCK_STATUS is to find out; `None`: the allocation.
    pub contexts: Option<Arc<Contexts>>,
    sink: Arc<dyn Sink>,
    remaining: AtomicU32,
    errno: AtomicI32,
    /// The most extents that a BLOCK_STATUS is answered with, for each context: no more need be looked for.
    pub extents_max: usize,
    status: Mutex<Vec<StatusExtent>>,
    changes: Mutex<Vec<ChangedRun>>,
    /// Where the answer to a BLOCK_STATUS ends, volume offset.
    answered_to: AtomicU64,
}

/// The most extents in the answer to a BLOCK_STATUS.
pub const EXTENTS_MAX: usize = 4096;

impl Request {
    /// A request without marks.
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

    /// How it ended. Final once the sink has it.
    pub fn result(&self) -> Result<(), Errno> {
        match self.errno.load(Ordering::Acquire) {
            0 => Ok(()),
            raw => Err(Errno::new(raw)),
        }
    }

    /// The statuses found, in order of offset, without gaps from `offset` on; perhaps fewer than asked.
    pub fn take_status(&self) -> Vec<StatusExtent> {
        let mut found = std::mem::take(&mut *self.status.lock().expect("no holder panics"));
        found.sort_unstable_by_key(|extent| extent.offset);
        let mut merged: Vec<StatusExtent> = Vec::with_capacity(found.len());
        let (mut at, end) = (self.offset, self.answered_to());
        for mut extent in found {
            extent.length = extent.length.min(end.saturating_sub(extent.offset));
            if extent.offset != at || extent.length == 0 {
                break; // what lies between was not looked at
            }
            at += extent.length;
            match merged.last_mut() {
                Some(last) if last.hole == extent.hole && last.zero == extent.zero => {
                    last.length += extent.length;
                }
                _ => merged.push(extent),
            }
        }
        merged
    }

    /// Adds statuses that a part has found.
    pub fn add_status(&self, found: &[StatusExtent]) {
        self.status.lock().expect("no holder panics").extend_from_slice(found);
    }

    /// Has the answer end at `offset`, if it does not end before: what lies behind was not looked at.
    pub fn answer_up_to(&self, offset: u64) {
        self.answered_to.fetch_min(offset, Ordering::AcqRel);
    }

    /// Where the answer ends, volume offset.
    pub fn answered_to(&self) -> u64 {
        self.answered_to.load(Ordering::Acquire)
    }

    /// Whether the answer goes on at `offset`, where something new is to be looked at; if enough was found, it ends there.
    /// What was found may all lie behind, so the answer never ends where the request begins.
    pub fn goes_on_at(&self, offset: u64) -> bool {
        let found = self.status.lock().expect("no holder panics").len();
        if found > 2 * self.extents_max && offset > self.offset {
            self.answer_up_to(offset);
        }
        offset < self.answered_to()
    }

    /// The runs that have changed since each snapshot asked about, by snapshot and in order of offset.
    pub fn take_changes(&self) -> Vec<ChangedRun> {
        let mut found = std::mem::take(&mut *self.changes.lock().expect("no holder panics"));
        found.sort_unstable_by_key(|run| (run.context, run.offset));
        found.dedup_by(|next, last| {
            let joins = last.context == next.context && last.offset + last.length == next.offset;
            last.length += if joins { next.length } else { 0 };
            joins
        });
        found
    }

    /// Adds changes that a part has found.
    pub fn add_changes(&self, found: &[ChangedRun]) {
        self.changes.lock().expect("no holder panics").extend_from_slice(found);
    }

    /// Says how many parts there will be, before the first is handed over.
    pub fn expect_parts(&self, parts: u32) {
        assert!(parts > 0, "R1: a request without parts would never end");
        self.remaining.store(parts, Ordering::Release);
    }

    /// Keeps `errno` as the request's result, if it is the first (R3).
    pub fn fail(&self, errno: Errno) {
        let _ = self.errno.compare_exchange(0, errno.raw(), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Ends one part; says whether it was the last, which makes the caller the request's owner.
    pub fn end_part(&self) -> bool {
        let before = self.remaining.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "R1: more parts ended than were handed out");
        before == 1
    }

    /// Where it goes when it is done.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Gives the request to its sink. The caller owns it: it was never split, or its last part has ended.
    pub fn complete(self: Arc<Self>) {
        let sink = Arc::clone(&self.sink);
        sink.complete(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl Sink for Nowhere {
        fn complete(&self, _: Arc<Request>) {}
        fn kick(&self) {}
    }

    #[test]
    fn an_answer_never_ends_where_the_request_begins() {
        let mut request = Request::new(Verb::BlockStatus, 8, 8, Buffer::empty(), Arc::new(Nowhere));
        request.extents_max = 1;
        let behind =
            [12, 13, 14].map(|offset| StatusExtent { offset, length: 1, hole: true, zero: true });
        request.add_status(&behind);
        assert!(request.goes_on_at(8), "nothing of it was answered yet");
        assert!(!request.goes_on_at(10));
        assert_eq!(request.answered_to(), 10);
    }
}
