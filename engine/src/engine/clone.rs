//! Clones: what a volume that is made from a snapshot gets of it, and what is refused as long as there is one.
//!
//! How it works      Each processor hands out the maps that the snapshot sees, as references, some at a time. Nothing is
//!                   copied and nothing is written: how a clone looks things up is described at [`Origin`].
//! Invariants        the C of [`Origin`]; and a volume's number is above its origin's, so that taking over in order, and
//!                   closing them in reverse, has every origin served as long as its clones are.
//! Errors            NotFound if the origin is not served or has no such snapshot; Busy for what would take it away.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::block_map::tree::Map;
use crate::engine::Engine;
use crate::engine::spec::VolumeSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::processor::messages::Control;
use crate::processor::queue::ask;
use crate::units::{Epoch, VolumeId};
use crate::volume::Volume;
use crate::volume::origin::Origin;

/// Partitions whose versions are handed out at a time: the processor has others to serve.
const AT_A_TIME: u32 = 512;

/// A clone is being made: its origin stays meanwhile.
pub(super) struct Claim<'a>(&'a Engine, Option<(VolumeId, Epoch)>);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut origins = self.0.origins.lock().expect("no holder panics");
        let ours = origins.iter().position(|origin| Some(*origin) == self.1);
        ours.map(|ours| origins.swap_remove(ours));
    }
}

impl Engine {
    /// Has a volume's origin stay while the volume is taken over.
    pub(super) fn claim_source(&self, spec: &VolumeSpec) -> Claim<'_> {
        self.origins.lock().expect("no holder panics").extend(spec.origin);
        Claim(self, spec.origin)
    }

    /// What a volume is made from, if it is a clone.
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
        // As soon as a snapshot's writes have landed, its maps stay as they are.
        let cut = epoch < volume.epoch.load(Ordering::Acquire);
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
        })))
    }

    /// The maps that a snapshot sees, by partition; `None` if it does not exist.
    fn maps_at(&self, volume: &Volume, epoch: Epoch) -> Result<Option<Vec<Map>>> {
        let mut maps = vec![Map::new(0); volume.geometry.partitions.len()];
        for share in &volume.shares {
            let mut first = 0;
            loop {
                let handed_out = ask(&*self.system, &share.queue, |answer| {
                    Control::Versions(volume.share, first..first + AT_A_TIME, answer)
                })?;
                if !handed_out.history.has(epoch) {
                    return Ok(None);
                }
                if handed_out.versions.is_empty() {
                    break;
                }
                first += AT_A_TIME;
                for (partition, versions) in handed_out.versions {
                    maps[partition as usize] = versions.at(epoch).0.clone();
                }
            }
        }
        Ok(Some(maps))
    }

    /// Refuses to take away what clones were made from, or are being made from: the snapshots of a volume of those epochs.
    /// The caller holds `origins` until all processors have been told.
    pub(super) fn refuse_sources(
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
