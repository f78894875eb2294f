//! Counting: what was written of each partition, and the records that say so at each cut.
//!
//! How it works      A change counts when it has ended, for the epoch in which it was started
//!                   ([`Versions::count`](crate::block_map::versions::Versions::count)); on the fast path, for the
//!                   current one. A bit for each partition says whether it was written since its last record. When the
//!                   writes of an epoch have ended, [`Share::record_states`] appends a record for each of these
//!                   partitions, some at a time: no idle partition is visited.
//! Invariants        CO1 if a partition's bit is not set, its live counters are those that recovery would find.
//! Durability        the counters that a snapshot sees are in the journal before its cut counts as settled. After a kill,
//!                   live counters continue from the last cut or checkpoint.
//! Owner and locks   the share's processor; on the fast path several threads set bits.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::block_map::counters::Counters;
use crate::change_log::format::state_words;
use crate::change_log::journal::Entry;
use crate::error::Errno;
use crate::mutants::{Bug, bug};
use crate::processor::part::Part;
use crate::processor::share::Share;
use crate::units::{Epoch, LocalIndex};

/// Records of states that one turn appends.
const STATES_PER_TURN: usize = 2048;

/// The partitions that were written since the last record of their states, a bit for each.
#[derive(Debug, Default)]
pub(super) struct Touched(Vec<AtomicU64>);

impl Touched {
    /// For so many partitions, none of them written.
    pub(super) fn new(partitions: usize) -> Touched {
        let mut touched = Touched::default();
        touched.grow(partitions);
        touched
    }

    /// Makes room for so many partitions.
    pub(super) fn grow(&mut self, partitions: usize) {
        self.0.resize_with(partitions.div_ceil(64), AtomicU64::default);
    }

    fn set(&self, local: LocalIndex) {
        let (word, bit) = (&self.0[local.index() / 64], 1 << (local.index() % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn clear(&mut self, local: usize) {
        *self.0[local / 64].get_mut() &= !(1 << (local % 64));
    }

    /// The first one from `from` on.
    fn next(&self, from: usize) -> Option<usize> {
        let mut bits = u64::MAX << (from % 64);
        for (number, word) in self.0.iter().enumerate().skip(from / 64) {
            let found = word.load(Ordering::Relaxed) & bits;
            if found != 0 {
                return Some(number * 64 + found.trailing_zeros() as usize);
            }
            bits = u64::MAX;
        }
        None
    }
}

impl Share {
    /// What a part counts that ends now: its bytes, and a write if it is the end of the request in the partition. So a
    /// request that is done in several parts or pieces is one write.
    fn counted(&self, part: &Part, now_ns: u64) -> Counters {
        let begin =
            u64::from(self.locals[part.local.index()].partition) << self.geometry.partition_shift;
        let end = begin + u64::from(part.offset) + u64::from(part.length);
        let next = begin + (1 << self.geometry.partition_shift);
        let last = end == next.min(part.request.offset + part.request.length);
        Counters {
            writes: u64::from(last),
            written_bytes: u64::from(part.length),
            last_write_ns: now_ns,
        }
    }

    /// Counts a change of the live volume that has ended, and was started in `epoch`.
    pub(super) fn count_change(&mut self, part: &Part, epoch: Epoch, now_ns: u64) {
        if part.request.verb.is_write() {
            let counted = self.counted(part, now_ns);
            self.locals[part.local.index()].versions.count(epoch, counted);
            self.touched.set(part.local);
        }
    }

    /// Counts a write on the fast path.
    pub(super) fn count_fast(&self, part: &Part, now_ns: u64) {
        self.locals[part.local.index()].versions.count_shared(self.counted(part, now_ns));
        self.touched.set(part.local);
    }

    /// Appends records of what was counted up to the end of an epoch whose writes have ended, as many as one turn
    /// allows; returns whether that was all.
    pub(super) fn record_states(&mut self, epoch: Epoch) -> Result<bool, Errno> {
        let begun = self.recording.take().filter(|(of, _)| *of == epoch);
        if self.history.rollbacks().last().is_some_and(|rollback| rollback.at >= epoch) {
            return Ok(true); // it can have no snapshot any more
        }
        let mut from = begun.map_or(0, |(_, from)| from);
        for _ in 0..STATES_PER_TURN {
            let Some(number) = self.touched.next(from) else { return Ok(true) };
            let local = &self.locals[number];
            let counters = local.versions.counters_at(epoch);
            if counters.written_bytes > 0 && !bug(Bug::NoStateRecord) {
                let words = state_words(&counters);
                let (partition, last) = (local.partition, counters.last_write_ns);
                self.journal.append(Entry::state(epoch, partition, &words, last))?;
            }
            if local.versions.counters() == counters {
                self.touched.clear(number); // CO1
            }
            from = number + 1;
        }
        self.recording = Some((epoch, from));
        Ok(false)
    }
}
