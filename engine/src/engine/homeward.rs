//! Homeward: how many of a volume's live blocks relocation could bring back to their base places now.
//!
//! How it works      As [usage](super::usage): processors send clones of their partitions' versions, the caller's thread
//!                   counts, and the volume stores the results. It takes longer than usage, because all live blocks in
//!                   slots are looked at in partitions that were written since, so it is a call of its own.
//! Owner and locks   as there.

use crate::block_map::homeward::Homeward;
use crate::engine::Engine;
use crate::error::Result;
use crate::processor::share::compare::VersionsPage;
use crate::units::{PartitionIndex, VolumeId};

impl Engine {
    /// Counts the live blocks of a volume that can go home, and those that clones pin. A clone has no base places.
    pub fn homeward(&self, volume: VolumeId) -> Result<Homeward> {
        let volume = self.volume(volume)?;
        let mut found = Homeward::default();
        if volume.origin.is_some() {
            return Ok(found);
        }
        let pinned = volume.pins.epochs();
        for share in &volume.shares {
            for page in self.versions_pages(&volume, share, 0..PartitionIndex::MAX) {
                let VersionsPage { versions, .. } = page?;
                let mut memory = volume.usage.lock().expect("no holder panics");
                for (partition, versions) in &versions {
                    found.add(memory.of(*partition).homeward(versions, &pinned));
                }
            }
        }
        Ok(found)
    }
}
