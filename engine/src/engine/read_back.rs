//! Read back: why a volume is served before all that was read back is synced, and what is synced.
//!
//! How it works      After a kill, what was read back may be in the page cache alone: a power loss then would leave older
//!                   maps on the disk. It is synced while hosts are served already. Until then the slots that such older
//!                   maps may refer to are [held](crate::change_log::space) (SP3): those that the replayed records have
//!                   freed. Where a device is missing or fails, they wait for the first sync that succeeds.
//! Why nothing else waits   The killed process served hosts in the same state. What it knew, and nobody does now, is
//!                   which places waited for a commit:
//!                   - slots: an older map is the checkpoint, which is durable when its directory is (J7), and some of the
//!                     records behind it. What it refers to and the newest does not, one of the replayed records has
//!                     freed;
//!                   - base places that a dropped snapshot freed: they are not punched any more. What is dropped from
//!                     now on waits for a commit as ever, and no mark that was read back counts as one.
//!                   Writes in place, and back to the base place: where an older map shows that place, it is for a
//!                   snapshot, then the newest map shows it too, because a snapshot was flushed before it was reported, and
//!                   it is not written; or for the live volume, then that block is old or new, as after any write.
//!                   Cuts are reported, and flushes answered, after a sync that has brought all of this to the disk.
//!                   The caller has made sure that the catalog, as it was read, is durable.

use std::sync::Arc;

use crate::change_log::files::Identity;
use crate::change_log::space::Space;
use crate::processor::space_waiters::SpaceWaiters;
use crate::volume::flusher::Durable;
use crate::volume::geometry::Geometry;

/// What has to be synced of a volume, but for its journals.
pub fn all_devices(
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
