//! Stats: the states of a share's partitions, and how much is mapped.

use crate::processor::share::{Local, Share};
use crate::units::Epoch;

/// One partition's state, from [`Share::states`].
#[derive(Clone, Copy, Debug)]
pub struct PartitionState {
    /// Partition within the volume.
    pub partition: u32,
    /// The epoch: a snapshot's, or that of new writes.
    pub epoch: Epoch,
    /// Sequence number of the latest mapping change.
    pub write_seq: u64,
    /// Blocks not at their base place.
    pub blocks_mapped: u32,
    /// Whether the snapshot has a map of its own.
    pub frozen: bool,
}

impl Share {
    /// The partitions' states, now (epoch 0) or at a snapshot's epoch.
    pub fn states(&self, epoch: Epoch) -> Vec<PartitionState> {
        let state = |local: &Local| {
            let (map, frozen) = match epoch {
                0 => (&local.versions.live, false),
                _ => local.versions.at(epoch),
            };
            PartitionState {
                partition: local.partition,
                epoch: if epoch == 0 { self.epoch } else { epoch },
                write_seq: map.write_seq,
                blocks_mapped: map.mapped(),
                frozen,
            }
        };
        self.locals.iter().map(state).collect()
    }

    /// Blocks of the live volume that are not at their base place.
    pub fn usage(&self) -> u64 {
        self.locals.iter().map(|local| u64::from(local.versions.live.mapped())).sum()
    }
}
