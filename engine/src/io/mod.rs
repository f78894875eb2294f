//! I/O: devices. The system's files are in [`crate::system`].

pub mod device;
