//! Limits: every bound of the engine in one place, with the relations between them asserted.

use std::sync::atomic::AtomicU64;

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
/// Processors in one engine.
pub const PROCESSORS_MAX: u32 = 256;

const _: () = assert!(REQUEST_BYTES_MAX.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(PARTITION_BYTES_MIN.is_power_of_two());
const _: () = assert!(PARTITION_BYTES_MAX.is_power_of_two());
const _: () = assert!(PARTITION_BYTES_MAX / BLOCK_SIZE <= u32::MAX as u64);
