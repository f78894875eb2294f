//! Units: the kinds of number that the engine handles. Those that could be mixed up unnoticed are types of their own.
//!
//! A block is [`BLOCK_SIZE`] bytes: the unit of mapping, of copy-on-write and of change tracking.

/// Bytes in a block.
pub const BLOCK_SIZE: u64 = 4096;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 12;

const _: () = assert!(1 << BLOCK_SHIFT == BLOCK_SIZE);

/// A block's number within its partition.
pub type BlockIndex = u32;
/// A partition's number within its volume.
pub type PartitionIndex = u32;
/// A partition's number on the share that has it, which counts only the volume's partitions on that processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct LocalIndex(pub u32);

impl LocalIndex {
    /// Its place in a list of the share's partitions.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A slot's number within its log area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct SlotIndex(pub u64);

impl SlotIndex {
    /// The slot that comes so many after it.
    pub fn plus(self, slots: u64) -> SlotIndex {
        SlotIndex(self.0 + slots)
    }
}

/// A processor's number within the engine.
pub type ProcessorIndex = u32;
/// The number that a cut advances; the first epoch of a volume is 1.
pub type Epoch = u64;
/// A volume's number within the engine, given by the catalog and never used again.
pub type VolumeId = u64;
/// A device's number within the engine, given by the catalog and never used again.
pub type DeviceId = u64;
