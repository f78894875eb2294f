//! Extent: a run of bytes on a device.
//!
//! Owner and locks   never changes once made.

use std::sync::Arc;

use crate::io::device::Device;

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The device.
    pub device: Arc<Device>,
    /// First byte on the device.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}
