//! polyvol's data plane. Python decides (volumes, devices, snapshots, schedules); this crate moves bytes.
//!
//! In the order in which a request meets them: [`nbd`] (connections), [`volume`] (exports, splitting).

pub mod buffer;
pub mod error;
pub mod limits;
pub mod nbd;
pub mod units;
pub mod volume;
