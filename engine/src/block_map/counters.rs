//! Counters: how often and how much of a partition was written, and when last; part of each version of it.
//!
//! How it works      The live ones are atomics, because several threads may write in place at the same time. They are
//!                   frozen together with the map, and a rollback restores both. On one line they only grow, so of two
//!                   states of one line the one with more writes is the later one.
//! What is counted   writes, zeroes and trims that were done, also those in place: a request once for each partition, one
//!                   with data once for each 2 MiB.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes.
    pub writes: u64,
    /// The bytes that they covered.
    pub written_bytes: u64,
    /// When the last one ended, nanoseconds since 1970; 0: there was none.
    pub last_write_ns: u64,
}

impl Counters {
    /// Adds what was counted.
    pub fn add(&mut self, counted: Counters) {
        self.writes += counted.writes;
        self.written_bytes += counted.written_bytes;
        self.last_write_ns = self.last_write_ns.max(counted.last_write_ns);
    }

    /// Whether these can be of a partition: no sum of such ever overflows.
    pub fn are_possible(&self) -> bool {
        let least = 1 << 62;
        self.writes < least && self.written_bytes < least && self.last_write_ns < least
    }

    /// Writes and bytes since an earlier version of the same line.
    pub fn since(&self, earlier: &Counters) -> (u64, u64) {
        let bytes = self.written_bytes.saturating_sub(earlier.written_bytes);
        (self.writes.saturating_sub(earlier.writes), bytes)
    }
}

/// The counters of a live map.
#[derive(Debug, Default)]
pub struct LiveCounters {
    writes: AtomicU64,
    written_bytes: AtomicU64,
    last_write_ns: AtomicU64,
}

impl LiveCounters {
    /// Their values now.
    pub fn get(&self) -> Counters {
        Counters {
            writes: self.writes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            last_write_ns: self.last_write_ns.load(Ordering::Relaxed),
        }
    }

    /// Adds what was counted, while other threads may do so too.
    pub fn add_shared(&self, counted: Counters) {
        self.writes.fetch_add(counted.writes, Ordering::Relaxed);
        self.written_bytes.fetch_add(counted.written_bytes, Ordering::Relaxed);
        // Of threads that write at the same time, any may be the last one.
        self.last_write_ns.store(counted.last_write_ns, Ordering::Relaxed);
    }

    /// Replaces them.
    pub fn set(&mut self, counters: Counters) {
        *self.writes.get_mut() = counters.writes;
        *self.written_bytes.get_mut() = counters.written_bytes;
        *self.last_write_ns.get_mut() = counters.last_write_ns;
    }
}

impl Clone for LiveCounters {
    fn clone(&self) -> LiveCounters {
        let mut clone = LiveCounters::default();
        clone.set(self.get());
        clone
    }
}
