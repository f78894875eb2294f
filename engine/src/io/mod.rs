//! I/O: devices, and what is wrong with them. The system's files are in [`crate::system`].

pub mod absent;
pub mod device;
pub mod extent;
pub mod fault;
mod opened;
pub mod silence;
