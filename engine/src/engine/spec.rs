//! Specification: a volume as the catalog describes it, and checks of its consistency.

use std::path::PathBuf;
use std::sync::Arc;

use crate::block_map::history::{History, Rollback};
use crate::change_log::agreement::CatalogState;
use crate::change_log::expected::Expect;
use crate::change_log::files::Identity;
use crate::change_log::format::possible;
use crate::change_log::log_rules::{LogRules, VolumeRules};
use crate::change_log::partition_shape::Shape;
use crate::change_log::past::Stale;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{PARTITION_BYTES_MAX, PARTITION_BYTES_MIN};
use crate::system::System;
use crate::units::{BLOCK_SIZE, DeviceId, Epoch, PartitionIndex, VolumeId};

/// A run of bytes on a device, as the catalog describes it.
#[derive(Clone, Debug)]
pub struct ExtentSpec {
    /// The device's number.
    pub device: DeviceId,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The manifests of a volume's journals: their directory, and which of them must exist.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// The volume's directory of manifests.
    pub directory: PathBuf,
    /// The processors of the first `partitions` partitions have a manifest.
    pub partitions: usize,
    /// The volume was served by a version without manifests: each processor has a journal or a checkpoint at least.
    pub older: bool,
}

impl Manifests {
    /// Manifests in this directory; none has to exist yet.
    pub fn new(directory: PathBuf) -> Manifests {
        Manifests { directory, partitions: 0, older: false }
    }
}

/// A volume, as the catalog describes it.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// The catalog's number.
    pub id: VolumeId,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes in a partition.
    pub partition_size: u64,
    /// Processor and extents of each partition.
    pub partitions: Vec<(u32, Vec<ExtentSpec>)>,
    /// Log areas: number and extents.
    pub logs: Vec<(u16, Vec<ExtentSpec>)>,
    /// Which of them its partitions use, where the newest snapshot has no rules.
    pub log_rules: LogRules,
    /// Directory of journals and checkpoints.
    pub directory: PathBuf,
    /// Their manifests.
    pub manifests: Manifests,
    /// Snapshots: epoch, and the log rules for what is written after it; if there are none, the volume's count.
    pub snapshots: Vec<(Epoch, LogRules)>,
    /// No smaller epoch may be used.
    pub next_epoch: Epoch,
    /// Snapshots of epochs below the first number have at most the second number of bytes: the volume has grown since.
    pub bounds: Vec<(Epoch, u64)>,
    /// Rollbacks, in order, each with the volume's size when it was made.
    pub rollbacks: Vec<(Rollback, u64)>,
    /// The volume and the epoch of the snapshot from which it was made, if it is a clone: then its partitions have no
    /// extents.
    pub origin: Option<(VolumeId, Epoch)>,
}

impl VolumeSpec {
    /// Its snapshots and rollbacks, after [`check`].
    pub(super) fn history(&self) -> History {
        let snapshots = self.snapshots.iter().map(|(epoch, _)| *epoch).collect();
        let rollbacks = self.rollbacks.iter().map(|(rollback, _)| *rollback).collect();
        History::new(snapshots, rollbacks).expect("they were checked")
    }

    /// The catalog's state that the journal of a processor must agree with.
    pub(super) fn catalog_state(&self, processor: u32) -> CatalogState {
        let first = self.partitions.iter().position(|(owner, _)| *owner == processor);
        let start = first.map_or(u64::MAX, |first| first as u64 * self.partition_size);
        // A cut is recorded in the journals of all processors that have partitions at that time.
        let snapshots = self.snapshots.iter().map(|(epoch, _)| (*epoch + 1, self.size_at(*epoch)));
        let rollbacks = self.rollbacks.iter().map(|(rollback, size)| (rollback.at, *size));
        let reached = snapshots.chain(rollbacks).filter(|(_, size)| start < *size);
        CatalogState {
            history: self.history(),
            blocks: self.size / BLOCK_SIZE,
            sizes: self.rollbacks.iter().map(|(_, size)| size / BLOCK_SIZE).collect(),
            expect: self.expect(processor),
            reached: reached.map(|(epoch, _)| epoch).max().unwrap_or(0),
        }
    }

    /// Forgets what only an older copy of the catalog has.
    pub(super) fn forget(&mut self, stale: &Stale) {
        self.snapshots.retain(|(epoch, _)| !stale.snapshots.contains(epoch));
        self.rollbacks.retain(|(rollback, _)| !stale.rollbacks.contains(&rollback.at));
    }

    /// Size of the snapshot of this epoch, bytes.
    fn size_at(&self, epoch: Epoch) -> u64 {
        let bounds = self.bounds.iter().filter(|(bound, _)| epoch < *bound);
        bounds.map(|(_, size)| *size).fold(self.size, u64::min)
    }

    /// Its log rules, and its snapshots'.
    pub(super) fn rules(&self) -> VolumeRules {
        let own = self.snapshots.iter().filter(|(_, rules)| !rules.is_empty());
        VolumeRules { volume: self.log_rules.clone(), snapshots: own.cloned().collect() }
    }

    /// Bytes in a partition; 0 if there is none of this number.
    pub(super) fn partition_bytes(&self, partition: PartitionIndex) -> u64 {
        let start = u64::from(partition) * self.partition_size;
        self.size.saturating_sub(start).min(self.partition_size)
    }

    /// What must exist of a processor's journal.
    fn expect(&self, processor: u32) -> Expect {
        let mut known = self.partitions.iter().take(self.manifests.partitions);
        if known.any(|(owner, _)| *owner == processor) {
            Expect::Manifest
        } else if self.manifests.older {
            Expect::Files
        } else {
            Expect::Nothing
        }
    }

    /// The identity of a processor's journal.
    pub(super) fn identity(
        &self,
        system: &Arc<dyn System>,
        processor: u32,
        boot_id: [u8; 16],
    ) -> Identity {
        Identity {
            system: Arc::clone(system),
            directory: self.directory.clone(),
            manifest: self.manifests.directory.join(format!("p{processor:03}.manifest")),
            volume_uuid: self.uuid,
            processor,
            boot_id,
        }
    }

    /// The shape of a partition of so many blocks, with which of them snapshots do not have.
    pub(super) fn shape(&self, partition: PartitionIndex, blocks: u32) -> Shape {
        let start = u64::from(partition) * self.partition_size;
        let seen =
            |size: u64| (size.saturating_sub(start) / BLOCK_SIZE).min(u64::from(blocks)) as u32;
        let hidden = self.bounds.iter().map(|(epoch, size)| (*epoch, seen(*size)));
        let at_rollbacks = self.rollbacks.iter().map(|(_, size)| seen(*size)).collect();
        let hidden = hidden.filter(|(_, from)| *from < blocks).collect();
        Shape { blocks, hidden, at_rollbacks }
    }
}

/// Refuses an inconsistent specification.
pub fn check(spec: &VolumeSpec) -> Result<()> {
    let name = &spec.name;
    let wrong =
        |what: String| Err(Error::new(ErrorKind::Invalid, format!("volume {name}: {what}")));
    if spec.size == 0 || !spec.size.is_multiple_of(BLOCK_SIZE) {
        return wrong(format!("size {} is not a multiple of 4096 above 0", spec.size));
    }
    let size = spec.partition_size;
    if !size.is_power_of_two() || !(PARTITION_BYTES_MIN..=PARTITION_BYTES_MAX).contains(&size) {
        return wrong(format!("partition size {size} is not a power of two from 1 MiB to 1 GiB"));
    }
    if spec.partitions.len() as u64 != spec.size.div_ceil(size) {
        return wrong(format!("{} partitions do not make up its size", spec.partitions.len()));
    }
    for (number, (_, extents)) in spec.partitions.iter().enumerate() {
        let wanted = match spec.origin {
            None => spec.partition_bytes(number as u32),
            Some(_) => 0,
        };
        let aligned = extents.iter().all(|e| (e.offset | e.length).is_multiple_of(BLOCK_SIZE));
        if !aligned || extents.iter().map(|extent| extent.length).sum::<u64>() != wanted {
            return wrong(format!("the extents of partition {number} do not make up its size"));
        }
    }
    if spec.origin.is_some_and(|(volume, epoch)| volume >= spec.id || epoch == 0) {
        return wrong("its origin has a higher number than it".to_owned());
    }
    if let Some(what) = wrong_history(spec) {
        return wrong(what.to_owned());
    }
    let known = |number| spec.logs.iter().any(|(other, _)| *other == number);
    let mut rules = spec.snapshots.iter().map(|(_, rules)| rules).chain([&spec.log_rules]);
    rules.find_map(|rules| rules.wrong(known)).map_or(Ok(()), wrong)
}

/// Why its snapshots and rollbacks are inconsistent, if they are.
fn wrong_history(spec: &VolumeSpec) -> Option<&'static str> {
    let larger = |one: &(Epoch, u64), other: &(Epoch, u64)| one.0 < other.0 && one.1 > other.1;
    if spec.bounds.iter().any(|one| spec.bounds.iter().any(|other| larger(one, other))) {
        return Some("an older snapshot is larger than a later one");
    }
    if spec.bounds.iter().any(|(epoch, bytes)| {
        *epoch == 0 || *bytes > spec.size || !bytes.is_multiple_of(BLOCK_SIZE)
    }) {
        return Some("its snapshots have impossible sizes");
    }
    if spec.snapshots.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        return Some("its snapshots are not in order of epoch");
    }
    if !possible(spec.next_epoch) || spec.snapshots.first().is_some_and(|(epoch, _)| *epoch == 0) {
        return Some("its epochs are impossible");
    }
    if spec.snapshots.last().is_some_and(|(epoch, _)| *epoch >= spec.next_epoch) {
        return Some("its next epoch is not above its snapshots'");
    }
    let epochs = spec.snapshots.iter().map(|(epoch, _)| *epoch).collect();
    let rollbacks: Vec<Rollback> = spec.rollbacks.iter().map(|(rollback, _)| *rollback).collect();
    let ahead = rollbacks.last().is_some_and(|last| last.at >= spec.next_epoch);
    let history = History::new(epochs, rollbacks);
    let back = spec.rollbacks.iter().all(|(one, _)| (1..one.at).contains(&one.to));
    if history.is_none() || ahead || !back {
        return Some("its rollbacks are not in order");
    }
    let sizes: Vec<u64> = spec.rollbacks.iter().map(|(_, size)| *size).chain([spec.size]).collect();
    let whole = sizes.iter().all(|size| *size > 0 && size.is_multiple_of(BLOCK_SIZE));
    if !whole || !sizes.is_sorted() {
        return Some("its sizes at rollbacks are impossible");
    }
    None
}
