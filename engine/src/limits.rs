//! Limits: the bounds that several modules of the engine depend on, with the relations between them asserted. Bounds of one
//! module are constants in it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::units::BLOCK_SIZE;

/// Largest request length of READ and WRITE, bytes (advertised as the maximum block size).
pub const REQUEST_BYTES_MAX: u64 = 32 << 20;
/// Longest export name, bytes (the protocol's own limit for strings).
pub const NAME_BYTES_MAX: usize = 4096;
/// Smallest and largest partition, bytes; a power of two between them.
pub const PARTITION_BYTES_MIN: u64 = 1 << 20;
/// See [`PARTITION_BYTES_MIN`].
pub const PARTITION_BYTES_MAX: u64 = 1 << 30;
/// Journal bytes at which a checkpoint is due, at least; tests lower it.
pub static CHECKPOINT_BYTES_MIN: AtomicU64 = AtomicU64::new(32 << 20);
/// Bytes of a journal segment, header included; tests lower it, but not below [`SEGMENT_BYTES_MIN`].
pub static SEGMENT_BYTES: AtomicUsize = AtomicUsize::new(8 << 20);
/// Least time between two attempts to extend a journal that had no space, nanoseconds: each write asks for it, and some
/// file systems search for space for long. 0: every write tries, as in the simulator.
pub static NO_SPACE_RETRY_NS: AtomicU64 = AtomicU64::new(10_000_000);
/// Longest time between these attempts, nanoseconds.
pub const NO_SPACE_RETRY_NS_MAX: u64 = 1_000_000_000;
/// Smallest segment that holds the largest record, bytes.
pub const SEGMENT_BYTES_MIN: usize = 64 << 10;
/// Size of a small segment, bytes. It is made if there is no space for one of the full size, so that older ones can be
/// removed.
pub const SEGMENT_BYTES_SMALL: usize = 1 << 20;
/// A run begins with a segment of the full size only if there is space for this many: otherwise the first volumes of a
/// start leave no space for the others.
pub const FULL_SEGMENTS_FREE_MIN: usize = 4;
/// Processors in one engine.
pub const PROCESSORS_MAX: u32 = 256;

/// Applies test overrides from the environment, which only lower limits: `POLYVOL_SEGMENT_BYTES`,
/// `POLYVOL_CHECKPOINT_BYTES`. Values that are not numbers are ignored.
pub fn apply_test_overrides() {
    let setting = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(bytes) = setting("POLYVOL_SEGMENT_BYTES") {
        let bytes = (bytes as usize).next_multiple_of(BLOCK_SIZE as usize);
        SEGMENT_BYTES.fetch_min(bytes.max(SEGMENT_BYTES_MIN), Ordering::Relaxed);
    }
    if let Some(bytes) = setting("POLYVOL_CHECKPOINT_BYTES") {
        CHECKPOINT_BYTES_MIN.fetch_min(bytes, Ordering::Relaxed);
    }
}

const _: () = assert!(REQUEST_BYTES_MAX.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(PARTITION_BYTES_MIN.is_power_of_two());
const _: () = assert!(PARTITION_BYTES_MAX.is_power_of_two());
const _: () = assert!(PARTITION_BYTES_MAX / BLOCK_SIZE <= u32::MAX as u64);
