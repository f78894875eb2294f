//! polyvol's data plane. Python decides (volumes, devices, snapshots, schedules); this crate moves bytes.
//!
//! In the order in which a request passes them: [`nbd`] (connections), [`volume`] (exports, splitting),
//! [`processor`] (queues, shares, verbs), [`block_map`] (where blocks are), [`change_log`] (where changed blocks
//! go, and the records of that), [`io`] (devices), [`system`] (files, time, threads). [`engine`] connects them.

pub mod block_map;
pub mod buffer;
pub mod change_log;
pub mod checksum;
pub mod engine;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod io;
pub mod limits;
pub mod log;
#[cfg(all(test, loom))]
mod models;
pub mod mutants;
pub mod nbd;
pub mod processor;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "simulator")]
pub mod simulator;
pub mod sync;
pub mod system;
pub mod units;
pub mod volume;
