//! Origin: the snapshot that a clone was made from, read for all blocks that the clone has not written.
//!
//! How it works      A clone is a volume without base places: its writes go to slots of its own change logs, and a base
//!                   entry in its maps means what its origin shows there. For each partition the clone holds a
//!                   reference to the map that the snapshot sees, so the cost of making a clone is proportional to the
//!                   number of partitions, and takes no memory. An origin may be a snapshot of a clone: then the
//!                   look-up continues in the origin of that clone.
//! Invariants        OR1 what an origin shows never changes: its snapshot is complete, its volume redirects all that
//!                      the snapshot sees, and the engine refuses to drop the snapshot, or to close its volume, before
//!                      the clone;
//!                   OR2 a clone has the partition size of its origin, and may be longer: the range after the origin's
//!                       end reads as zeroes (a map has zero for blocks that were added by growth after its snapshot);
//!                   OR3 a clone never changes what its origin shows: it neither writes, punches nor frees a place of
//!                       it.
//! Owner and locks   immutable; shared by the clone's shares and by jobs on pool threads.

use std::fmt;
use std::sync::Arc;

use crate::block_map::leaf::Found;
use crate::block_map::place::Place;
use crate::block_map::tree::Map;
use crate::change_log::space::Space;
use crate::geometry::Geometry;
use crate::geometry::bad_blocks::BadBlocks;
use crate::geometry::pins::Pin;
use crate::units::{BlockIndex, Epoch, PartitionIndex, VolumeId};

/// See the module's head.
pub struct Origin {
    /// The volume of the snapshot.
    pub volume: VolumeId,
    /// The snapshot's epoch.
    pub epoch: Epoch,
    /// The extents of its base places.
    pub geometry: Arc<Geometry>,
    /// The logs of its slots.
    pub space: Arc<Space>,
    /// The list of its bad blocks.
    pub bad: Arc<BadBlocks>,
    /// The maps of the snapshot, by partition.
    pub maps: Vec<Map>,
    /// The origin of its volume, if that is a clone.
    pub origin: Option<Arc<Origin>>,
    /// Has the snapshot's blocks stay where these maps have them.
    pub pin: Pin,
}

impl Origin {
    /// The run that contains `block` of a clone's partition, at most `limit` blocks, as the snapshot's volume has it.
    pub fn find(&self, partition: PartitionIndex, block: BlockIndex, limit: u32) -> Found<'_> {
        let nothing = Found { count: limit, place: Place::ZERO, checksums: &[] };
        let Some(map) = self.maps.get(partition as usize) else { return nothing };
        if block < map.blocks() { map.find(block, limit) } else { nothing }
    }
}

/// Where a run of blocks is, after a look-up through all origins: in the origin that has it, or in the volume itself.
pub fn resolve<'a>(
    own: Found<'a>,
    origin: Option<&'a Arc<Origin>>,
    partition: PartitionIndex,
    block: BlockIndex,
) -> (Option<&'a Arc<Origin>>, Found<'a>) {
    let (mut of, mut found, mut next) = (None, own, origin);
    while found.place == Place::BASE
        && let Some(origin) = next
    {
        found = origin.find(partition, block, found.count);
        (of, next) = (next, origin.origin.as_ref());
    }
    (of, found)
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {} at epoch {}", self.volume, self.epoch)
    }
}
