//! Geometry: the extents of a volume's partitions, and which processor owns each; the [`origin`] of a clone, and the blocks
//! that are [bad](bad_blocks).
//!
//! Owner and locks   immutable; shared by all threads.

pub mod bad_blocks;
pub mod origin;
pub mod pins;

use std::sync::Arc;

use crate::io::device::Device;
use crate::io::extent::Extent;
use crate::units::{LocalIndex, PartitionIndex, ProcessorIndex};

/// One partition of a volume.
#[derive(Clone, Debug)]
pub struct Partition {
    /// The processor that owns it.
    pub processor: ProcessorIndex,
    /// Its number among the volume's partitions on that processor.
    pub local: LocalIndex,
    /// Its extents, in order.
    pub extents: Vec<Extent>,
}

impl Partition {
    /// Calls `f(device, device offset, length, offset within the range)` for each piece of a range of the
    /// partition's base place.
    pub fn pieces<E>(
        &self,
        offset: u64,
        length: u64,
        mut f: impl FnMut(&Arc<Device>, u64, u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut skip, mut left) = (offset, length);
        for extent in &self.extents {
            if left == 0 {
                break;
            }
            if skip >= extent.length {
                skip -= extent.length;
                continue;
            }
            let here = left.min(extent.length - skip);
            f(&extent.device, extent.offset + skip, here, length - left)?;
            skip = 0;
            left -= here;
        }
        assert_eq!(left, 0, "a range is inside its partition");
        Ok(())
    }
}

/// A volume's shape.
#[derive(Debug)]
pub struct Geometry {
    /// Size in bytes, a multiple of the block size.
    pub size: u64,
    /// log2 of the partition size.
    pub partition_shift: u32,
    /// Every partition, in order.
    pub partitions: Vec<Partition>,
}

impl Geometry {
    /// The devices of its partitions, some several times.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.partitions.iter().flat_map(|partition| &partition.extents).map(|extent| &extent.device)
    }

    /// Bytes in a partition; the last one may be shorter.
    pub fn partition_bytes(&self, partition: PartitionIndex) -> u64 {
        let start = u64::from(partition) << self.partition_shift;
        (self.size - start).min(1 << self.partition_shift)
    }
}
