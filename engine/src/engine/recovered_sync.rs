//! Recovered sync: why a volume is served before its recovered maps are synced, and what is synced. The maps are read
//! by [`crate::change_log::recover`].
//!
//! How it works      After a kill, recovered records may exist in the page cache only: a power loss would then leave
//!                   older maps on the disk. They are synced while hosts are already served. Until then the slots that
//!                   such older maps may refer to are [held](crate::change_log::space) (SP3): those that the replayed
//!                   records have freed. If a device is missing or fails, they are held until the first sync that
//!                   succeeds.
//! Why nothing else waits   The killed process served hosts in the same state. Only one thing that it knew is lost,
//!                   which places waited for a commit:
//!                   - slots: an older map is the checkpoint, which is durable when its directory is (J7), and some of
//!                     the records after it. A slot that it refers to, and the newest map does not, was freed by one of
//!                     the replayed records;
//!                   - base places that a dropped snapshot freed: they are not punched any more. Places freed from now
//!                     on wait for a commit as usual, and no mark that recovery found counts as one.
//!                   Writes in place, and back to the base place: an older map may show that place in two cases. For a
//!                   snapshot: then the newest map shows it too, because a snapshot was flushed before it was reported,
//!                   and the place is not written. For the live volume: then that block is old or new, as after any
//!                   write. Cuts are reported, and flushes answered, after a sync that has made all of this durable.
//!                   The caller has made sure that the catalog, as it was read, is durable.

use std::sync::Arc;

use crate::change_log::files::Identity;
use crate::change_log::space::Space;
use crate::geometry::Geometry;
use crate::processor::durable::Durable;
use crate::processor::space_waiters::SpaceWaiters;

/// What has to be synced of a volume, except its journals.
pub fn devices_to_sync(
    identity: &Identity,
    geometry: &Geometry,
    space: &Arc<Space>,
    space_waiters: &Arc<SpaceWaiters>,
) -> Arc<Durable> {
    let durable = Durable::of(identity, space, space_waiters);
    for partition in &geometry.partitions {
        partition.extents.iter().for_each(|extent| durable.add_device(&extent.device));
    }
    for log in space.logs() {
        log.devices().for_each(|device| durable.add_device(device));
    }
    Arc::new(durable)
}
