//! Watermark: the high-water marks of a journal: the last record appended, and the last one that a sync in flight may
//! commit. One processor and the syncs of its volume share them.
//!
//! How it works      See Y1 of [`young`](super::young). Each side stores its own mark, then reads the other one, with a
//!                   fence in between: so at least one of the two sees the other's store.
//! Owner and locks   the processor appends; syncs, one at a time, begin commits.

use crate::sync::{AtomicU64, Ordering, fence};

/// See the module's head.
#[derive(Debug)]
pub struct Watermark {
    appended: AtomicU64,
    /// The latest sync may commit the records up to this one; `u64::MAX` while it begins.
    sync_watermark: AtomicU64,
}

impl Watermark {
    /// A journal whose last record is `seq`.
    pub fn new(seq: u64) -> Watermark {
        Watermark { appended: AtomicU64::new(seq), sync_watermark: AtomicU64::new(seq) }
    }

    /// The last record appended.
    pub fn appended(&self) -> u64 {
        self.appended.load(Ordering::Acquire)
    }

    /// Stores that record `seq` was appended.
    pub fn append(&self, seq: u64) {
        self.appended.store(seq, Ordering::Release);
    }

    /// Begins a sync; returns the last record that it may commit.
    pub fn begin_commit(&self) -> u64 {
        self.sync_watermark.store(u64::MAX, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let reached = self.appended();
        self.sync_watermark.store(reached, Ordering::Release);
        reached
    }

    /// The last record that syncs in flight may commit; read by the processor after it has appended a record.
    pub fn sync_watermark(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.sync_watermark.load(Ordering::Acquire)
    }
}
