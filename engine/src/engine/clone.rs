//! Clones: how a volume is made from a snapshot, and what is refused while there is a clone.
//!
//! How it works      Each processor sends the maps that the snapshot sees, as references, some at a time. Nothing is
//!                   copied and nothing is written. [`Origin`] describes how a clone looks blocks up.
//! Invariants        the C of [`Origin`]; and a volume's number is above its origin's. So if volumes are opened in
//!                   order, and closed in reverse, every origin is served while its clones are.
//! Errors            NotFound if the origin is not served or has no such snapshot; Busy for a call that would remove
//!                   it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::block_map::tree::Map;
use crate::engine::Engine;
use crate::engine::spec::VolumeSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::origin::Origin;
use crate::geometry::pins::Pin;
use crate::units::{Epoch, PartitionIndex, VolumeId};
use crate::volume::Volume;

/// Keeps the origin of a clone that is being made.
pub(super) struct Claim<'a>(&'a Engine, Option<(VolumeId, Epoch)>);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut origins = self.0.origins.lock().expect("no holder panics");
        let ours = origins.iter().position(|origin| Some(*origin) == self.1);
        ours.map(|ours| origins.swap_remove(ours));
    }
}

impl Engine {
    /// Keeps a volume's origin while the volume is being opened.
    pub(super) fn claim_origin(&self, spec: &VolumeSpec) -> Claim<'_> {
        self.origins.lock().expect("no holder panics").extend(spec.origin);
        Claim(self, spec.origin)
    }

    /// The origin of a volume, if it is a clone.
    pub(super) fn origin(&self, spec: &VolumeSpec) -> Result<Option<Arc<Origin>>> {
        let Some((id, epoch)) = spec.origin else { return Ok(None) };
        let volume = self.volume(id).map_err(|_| {
            let what = format!("volume {}: its origin, volume {id}, is not served", spec.name);
            Error::new(ErrorKind::NotFound, what)
        })?;
        let wrong = |kind, what: &str| {
            let what = format!("volume {}: its origin, volume {}, {what}", spec.name, volume.name);
            Error::new(kind, what)
        };
        if 1 << volume.geometry.partition_shift != spec.partition_size {
            return Err(wrong(ErrorKind::Invalid, "has partitions of another size"));
        }
        if volume.size_at(epoch) > spec.size {
            return Err(wrong(ErrorKind::Invalid, "has a larger snapshot of this epoch"));
        }
        // After all writes of a snapshot have ended, its maps do not change.
        let cut = epoch < volume.epoch.load(Ordering::Acquire);
        let pin = Pin::new(&volume.pins, epoch); // PI1
        let maps = if cut { self.maps_at(&volume, epoch)? } else { None };
        let missing = || wrong(ErrorKind::NotFound, "has no snapshot of this epoch");
        Ok(Some(Arc::new(Origin {
            volume: id,
            epoch,
            geometry: Arc::clone(&volume.geometry),
            space: Arc::clone(&volume.space),
            bad: Arc::clone(&volume.bad),
            maps: maps.ok_or_else(missing)?,
            origin: volume.origin.clone(),
            pin,
        })))
    }

    /// The maps that a snapshot sees, by partition; `None` if it does not exist.
    fn maps_at(&self, volume: &Volume, epoch: Epoch) -> Result<Option<Vec<Map>>> {
        let mut maps = vec![Map::new(0); volume.geometry.partitions.len()];
        for share in &volume.shares {
            for page in self.versions_pages(volume, share, 0..PartitionIndex::MAX) {
                let page = page?;
                if !page.history.has(epoch) {
                    return Ok(None);
                }
                for (partition, versions) in page.versions {
                    maps[partition as usize] = versions.at(epoch).0.clone();
                }
            }
        }
        Ok(Some(maps))
    }

    /// Refuses if a removed snapshot, one for whose epoch `gone` returns true, is the origin of a clone, also of one
    /// that is being made. The caller holds `origins` until all processors know of the removal.
    pub(super) fn refuse_origins(
        &self,
        origins: &[(VolumeId, Epoch)],
        volume: &Volume,
        gone: impl Fn(Epoch) -> bool,
    ) -> Result<()> {
        if origins.iter().any(|(origin, epoch)| *origin == volume.id && gone(*epoch)) {
            let what = format!("volume {} is the origin of one that is being made", volume.name);
            return Err(Error::new(ErrorKind::Busy, what));
        }
        let volumes = self.volumes.lock().expect("no holder panics");
        let of_it = |clone: &&Arc<Volume>| {
            clone.origin.as_ref().is_some_and(|one| one.volume == volume.id && gone(one.epoch))
        };
        let Some(clone) = volumes.values().find(of_it) else { return Ok(()) };
        let what = format!("volume {} is the origin of volume {}", volume.name, clone.name);
        Err(Error::new(ErrorKind::Busy, what))
    }
}
