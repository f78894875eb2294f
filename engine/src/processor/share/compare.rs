//! Compare: what changed between a snapshot and a later one, or the live volume.
//!
//! How it works      A block has changed if the two maps have different places for it ([`differing`]). That never
//!                   misses a change, whatever happened between the two, because with the same place both read the same
//!                   data now; it may report a block whose contents are equal. The caller gets clones of maps, so that
//!                   it walks them on its own thread; for BLOCK_STATUS the processor compares the part itself, for a
//!                   limited time: then the answer ends there.
//! Versions          other calls get clones of all versions of some partitions ([`VersionsPage`]), and derive change logs,
//!                   states and usage from these.
//! Owner and locks   the share's processor; clones belong to the caller.

use std::ops::Range;

use crate::block_map::diff::differing;
use crate::block_map::history::History;
use crate::block_map::tree::Map;
use crate::block_map::versions::Versions;
use crate::processor::part::Part;
use crate::processor::share::Share;
use crate::request::{ChangedRun, Contexts};
use crate::system::System;
use crate::units::{BLOCK_SHIFT, BLOCK_SIZE, Epoch, LocalIndex, PartitionIndex};

/// Blocks that are compared between two reads of the clock, for all snapshots together.
const BLOCKS_PER_CHECK: u32 = 2048;
/// How long a BLOCK_STATUS compares, nanoseconds.
const COMPARE_NS: u64 = 200_000;

/// A partition's maps at two instants.
pub struct Pair {
    /// The partition within the volume.
    pub partition: PartitionIndex,
    /// The map at the earlier instant.
    pub since: Map,
    /// The map at the later one.
    pub until: Map,
}

/// Partitions whose versions one call hands out: the processor has other requests to serve.
const PARTITIONS_PER_CALL: usize = 512;

/// Partitions with clones of their versions, and the volume's snapshots.
pub struct VersionsPage {
    /// The volume's snapshots.
    pub history: History,
    /// The epoch of new writes.
    pub epoch: Epoch,
    /// The epoch in which the partitions' counters began to count; 0: with the partitions.
    pub counted_from: Epoch,
    /// Partitions within the volume, in order, with their versions.
    pub versions: Vec<(PartitionIndex, Versions)>,
    /// Where the range continues; `None`: there are no more.
    pub next: Option<PartitionIndex>,
}

impl Share {
    /// Clones the versions of the first of its partitions that are in a range.
    pub fn clone_versions(&self, partitions: Range<PartitionIndex>) -> VersionsPage {
        let first = self.locals.partition_point(|local| local.partition < partitions.start);
        let end = self.locals.partition_point(|local| local.partition < partitions.end);
        let taken = &self.locals[first..end.max(first)];
        let next = taken.get(PARTITIONS_PER_CALL).map(|local| local.partition);
        let taken = taken.iter().take(PARTITIONS_PER_CALL);
        VersionsPage {
            history: self.history.clone(),
            epoch: self.epoch,
            counted_from: self.recorded.counted_from,
            versions: taken.map(|local| (local.partition, local.versions.clone())).collect(),
            next,
        }
    }

    /// The volume's snapshots and rollbacks, and the epoch of the newest durable checkpoint.
    pub fn lineage(&self) -> (History, Epoch) {
        (self.history.clone(), self.checkpoint_epoch)
    }

    /// Whether there is a snapshot of this epoch.
    pub fn has_snapshot(&self, epoch: Epoch) -> bool {
        self.history.has(epoch)
    }

    /// The maps of the partitions that differ between two snapshots, or a snapshot and now (0); `None` if one of them
    /// does not exist.
    pub fn pairs(&self, since: Epoch, until: Epoch) -> Option<Vec<Pair>> {
        if !self.has_snapshot(since) || (until != 0 && !self.has_snapshot(until)) {
            return None;
        }
        let pair = |(number, partition): (usize, PartitionIndex)| {
            let local = LocalIndex(number as u32);
            let (since, until) = (self.map_of(local, since), self.map_of(local, until));
            let same = since.same(until) && since.blocks() == until.blocks();
            (!same).then(|| Pair { partition, since: since.clone(), until: until.clone() })
        };
        let numbers = self.locals.iter().map(|local| local.partition);
        Some(numbers.enumerate().filter_map(pair).collect())
    }

    /// Adds the changes since each queried snapshot to a part's request, for a limited time.
    pub(super) fn find_changes(&self, part: &Part, contexts: &Contexts, system: &dyn System) {
        let request = &*part.request;
        let (start, end) = (part.offset, part.offset + part.length);
        let in_volume = |offset: u64| part.start() + (offset - u64::from(start));
        let window = (BLOCKS_PER_CHECK / contexts.times() as u32).max(1) * BLOCK_SIZE as u32;
        let until = system.monotonic_ns() + COMPARE_NS;
        let mut counts = vec![0; contexts.since.len()];
        let mut from = start;
        while from < end {
            let to = (from - from % window).saturating_add(window).min(end);
            let mut found = Vec::new();
            for (context, since) in contexts.since.iter().enumerate() {
                self.find_changed(part, *since, from..to, |from, to| {
                    counts[context] += 1;
                    let (context, offset) = (context as u16, in_volume(from));
                    found.push(ChangedRun { context, offset, length: to - from });
                });
            }
            request.add_changes(&found);
            from = to;
            let enough = counts.iter().any(|count| *count > request.extents_max);
            if from < end && (enough || system.monotonic_ns() > until) {
                return request.answer_up_to(in_volume(from.into()));
            }
        }
    }

    /// Calls `push(from, to)` with the changed ranges of a part, bytes in the partition.
    fn find_changed(
        &self,
        part: &Part,
        since: Epoch,
        range: Range<u32>,
        mut push: impl FnMut(u64, u64),
    ) {
        let (start, end) = (u64::from(range.start), u64::from(range.end));
        if !self.has_snapshot(since) {
            return push(start, end); // the snapshot does not exist: everything counts as changed
        }
        let (first, last) = (range.start >> BLOCK_SHIFT, (range.end - 1) >> BLOCK_SHIFT);
        let (old, new) = (self.map_of(part.local, since), self.map_of(part.local, part.view));
        differing(old, new, first..last + 1, |block, count| {
            let from = u64::from(block) * BLOCK_SIZE;
            let to = from + u64::from(count) * BLOCK_SIZE;
            push(from.max(start), to.min(end));
        });
    }
}
