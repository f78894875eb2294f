//! Compare: what changed between a snapshot and a later one, or the live volume.
//!
//! How it works      A block has changed if the two maps have another place for it ([`differing`]). That never misses a
//!                   change, whatever happened between the two, as both would read the same place now; it may name a
//!                   block whose contents are equal. Maps are handed out as clones, so that whoever asks walks them
//!                   on its own thread; for BLOCK_STATUS the processor looks at the part that is asked for.
//! Owner and locks   the share's processor; clones belong to who asked.

use std::ops::Range;

use crate::block_map::diff::differing;
use crate::block_map::history::History;
use crate::block_map::tree::Map;
use crate::block_map::versions::Versions;
use crate::processor::queue::Part;
use crate::processor::share::{Share, blocks_of};
use crate::units::{BLOCK_SIZE, Epoch, PartitionIndex};
use crate::volume::request::{ChangedRun, Contexts};

/// A partition's maps at two instants.
pub struct Pair {
    /// The partition within the volume.
    pub partition: PartitionIndex,
    /// The map at the earlier instant.
    pub since: Map,
    /// The map at the later one.
    pub until: Map,
}

/// Partitions with clones of their versions, and the volume's snapshots.
pub struct HandedOut {
    /// The volume's snapshots.
    pub history: History,
    /// Partitions within the volume, with their versions; none behind the last one.
    pub versions: Vec<(PartitionIndex, Versions)>,
}

impl Share {
    /// Hands out partitions' versions, by their numbers on the share.
    pub fn hand_out(&self, numbers: Range<u32>) -> HandedOut {
        let taken = self.locals.iter().skip(numbers.start as usize).take(numbers.len());
        let versions = taken.map(|local| (local.partition, local.versions.clone())).collect();
        HandedOut { history: self.history.clone(), versions }
    }

    /// The volume's snapshots and rollbacks, and the epoch of the newest durable checkpoint.
    pub fn lineage(&self) -> (History, Epoch) {
        (self.history.clone(), self.checkpoint_epoch)
    }

    /// Whether there is a snapshot of this epoch.
    pub fn has_snapshot(&self, epoch: Epoch) -> bool {
        self.history.has(epoch)
    }

    /// The maps of the partitions that have changed between two snapshots, or one and now (0); `None` if one of them
    /// does not exist.
    pub fn pairs(&self, since: Epoch, until: Epoch) -> Option<Vec<Pair>> {
        if !self.has_snapshot(since) || (until != 0 && !self.has_snapshot(until)) {
            return None;
        }
        let pair = |(number, partition): (usize, PartitionIndex)| {
            let (since, until) =
                (self.map_of(number as u32, since), self.map_of(number as u32, until));
            let same = since.same(until) && since.blocks() == until.blocks();
            (!same).then(|| Pair { partition, since: since.clone(), until: until.clone() })
        };
        let numbers = self.locals.iter().map(|local| local.partition);
        Some(numbers.enumerate().filter_map(pair).collect())
    }

    /// Tells a part's request what has changed, for each snapshot that it asks about.
    pub(super) fn find_changes(&self, part: &Part, contexts: &Contexts) {
        let mut found = Vec::new();
        let (first, last) = blocks_of(part);
        let part_start = u64::from(part.offset);
        let (start, end) = (part.request.offset + part.at, part_start + u64::from(part.length));
        for (context, since) in contexts.since.iter().enumerate() {
            let mut push = |from: u64, to: u64| {
                let (from, to) = (from.max(part_start), to.min(end));
                let offset = start + (from - part_start);
                found.push(ChangedRun { context: context as u16, offset, length: to - from });
            };
            if !self.has_snapshot(*since) {
                push(part_start, end); // nothing to compare with: all of it, for all one knows
                continue;
            }
            let map = self.map_of(part.local, part.view);
            differing(self.map_of(part.local, *since), map, first..last + 1, |block, count| {
                let from = u64::from(block) * BLOCK_SIZE;
                push(from, from + u64::from(count) * BLOCK_SIZE);
            });
        }
        part.request.add_changes(&found);
    }
}
