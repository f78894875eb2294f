//! Origin: the snapshot that a clone was made from, read wherever the clone has no data of its own.
//!
//! How it works      A clone is a volume without base places: all that is written to it goes to slots of its own change
//!                   logs, and what its maps have as base is what its origin shows there. For each partition the clone
//!                   holds a reference to the map that the snapshot sees, so that making one costs as much as there are
//!                   partitions, and no memory. An origin may be a snapshot of a clone: then the search continues in that one's
//!                   origin.
//! Invariants        OR1 what an origin shows never changes: its snapshot is complete, its volume redirects all that the
//!                      snapshot sees, and the engine refuses to drop the snapshot, or to let its volume go, before the clone;
//!                   OR2 a clone has the partition size of its origin, and may be longer: what is behind the origin's end
//!                      reads as zeroes (a map says so of blocks that came by growth after its snapshot);
//!                   OR3 a clone never changes what its origin shows: it neither writes, punches nor frees a place of it.
//! Owner and locks   never changes once made; shared by the clone's shares and by jobs on pool threads.

use std::fmt;
use std::sync::Arc;

use crate::block_map::leaf::Found;
use crate::block_map::place::Place;
use crate::block_map::tree::Map;
use crate::change_log::space::Space;
use crate::units::{BlockIndex, Epoch, PartitionIndex, VolumeId};
use crate::volume::bad_blocks::BadBlocks;
use crate::volume::geometry::Geometry;

/// See the module's head.
pub struct Origin {
    /// The volume whose snapshot it is.
    pub volume: VolumeId,
    /// The snapshot's epoch.
    pub epoch: Epoch,
    /// Where its base places are.
    pub geometry: Arc<Geometry>,
    /// Where its slots are.
    pub space: Arc<Space>,
    /// Where blocks of it are noted that cannot be read back right.
    pub bad: Arc<BadBlocks>,
    /// What the snapshot sees, by partition.
    pub maps: Vec<Map>,
    /// What its volume was made from, if that is a clone.
    pub origin: Option<Arc<Origin>>,
}

impl Origin {
    /// The run that `block` of a clone's partition is in, at most `limit` blocks, as the snapshot's volume has it.
    pub fn find(&self, partition: PartitionIndex, block: BlockIndex, limit: u32) -> Found<'_> {
        let nothing = Found { count: limit, place: Place::ZERO, checksums: &[] };
        let Some(map) = self.maps.get(partition as usize) else { return nothing };
        if block < map.blocks() { map.find(block, limit) } else { nothing }
    }
}

/// Where a run of blocks is, after the search through all origins: of the origin that has it, or of the volume itself.
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
