//! Read back: what is done with a volume's maps that were read back, before it is served.
//!
//! How it works      What was read back is made durable, as slots that no map refers to are free, and not before the records
//!                   that say so are durable (J4). Where a device is missing or fails, that cannot be; then the volume
//!                   is served as far as it goes, and the slots that such records have freed wait for a later commit.

use crate::block_map::place::Place;
use crate::change_log::slots::Slots;
use crate::change_log::space::Space;
use crate::deliberate::{Bug, bug};
use crate::error::{Error, Result};
use crate::volume::flusher::Durable;
use crate::volume::geometry::Geometry;

/// What has to be synced of a volume, but for its journals.
pub fn all_devices(geometry: &Geometry, space: &Space) -> Durable {
    let durable = Durable::default();
    for partition in &geometry.partitions {
        partition.extents.iter().for_each(|extent| durable.add_device(&extent.device));
    }
    for log in space.logs() {
        log.devices().for_each(|device| durable.add_device(device));
    }
    durable
}

/// Makes durable what was read back, as slots that no map refers to are free, and not before the records that say so are
/// durable (J4). `false` if a device does not let it: then it is served all the same.
pub fn made_durable(durable: &Durable, volume: &str) -> Result<bool> {
    if bug(Bug::NoRecoverySync) {
        return Ok(true);
    }
    if durable.sync_devices().is_err() {
        return Ok(false);
    }
    durable
        .sync()
        .map(|()| true)
        .map_err(|e| Error::io(format!("what volume {volume} read back cannot be made durable"), e))
}

/// Keeps slots from being used that were freed by records which cannot be made durable now, as a device is missing
/// or fails: they wait for the first commit that succeeds (J4).
pub fn hold_freed(freed: &[(u64, Place, u32)], space: &Space, slots: &mut Slots) {
    for (seq, place, count) in freed {
        let Some(log) = space.log(place.log()) else { continue };
        for block in 0..*count {
            // What was used again since, as it may be if it was freed twice, is used and needs no wait.
            if slots.take_exactly(&log, place.step(block), 1) {
                slots.give_later(*seq, place.step(block), 1);
            }
        }
    }
}
