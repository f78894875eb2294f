//! Usage: what each snapshot of a volume holds, and what deleting it would free.
//!
//! How it works      Processors send clones of their partitions' versions, some at a time; the caller's thread measures
//!                   them, and the volume stores the results ([`crate::block_map::usage`]).
//! Owner and locks   a volume's memory has a lock, held while one caller measures it.

use std::collections::HashMap;

use crate::block_map::usage::{Measured, VersionUse, measure};
use crate::engine::Engine;
use crate::error::Result;
use crate::processor::share::compare::VersionsPage;
use crate::units::{Epoch, PartitionIndex, VolumeId};

/// What a volume and its snapshots refer to, blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeUse {
    /// Slots that the live volume refers to.
    pub live_slots: u64,
    /// What each snapshot refers to, by epoch.
    pub snapshots: Vec<(Epoch, VersionUse)>,
    /// How many maps were measured, rather than found in the memory.
    pub measured: u64,
}

impl Engine {
    /// Measures what a volume and each of its snapshots refer to.
    pub fn snapshot_use(&self, volume: VolumeId) -> Result<VolumeUse> {
        let volume = self.volume(volume)?;
        let mut memory = volume.usage.lock().expect("no holder panics");
        let mut held: HashMap<Epoch, VersionUse> = HashMap::new();
        let mut found = VolumeUse::default();
        let mut measured = Measured::default();
        for share in &volume.shares {
            for page in self.versions_pages(&volume, share, 0..PartitionIndex::MAX) {
                let VersionsPage { versions, history, .. } = page?;
                for (partition, versions) in &versions {
                    let memory = memory.of(*partition);
                    let (mut each, live) = measure(versions, &history, memory, &mut measured);
                    found.live_slots += live;
                    for (epoch, ours) in history.snapshots().iter().zip(&mut each) {
                        if volume.origin.is_some() {
                            ours.only_bases = 0; // they belong to its origin
                        }
                        held.entry(*epoch).or_default().add(ours);
                    }
                }
            }
        }
        found.snapshots = held.into_iter().collect();
        found.snapshots.sort_unstable_by_key(|(epoch, _)| *epoch);
        found.measured = measured.0;
        Ok(found)
    }
}
