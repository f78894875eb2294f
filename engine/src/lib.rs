//! polyvol's data plane. Python decides (volumes, devices, snapshots, schedules); this crate moves bytes.
//!
//! In the order in which a [`request`] passes them: [`nbd`] (connections), [`volume`] (exports, splitting),
//! [`processor`] (queues, shares, verbs, the flusher), [`block_map`] and [`geometry`] (where blocks are), [`change_log`]
//! (where changed blocks go, and the records of that), [`io`] (devices), [`system`] (files, time, threads). [`engine`]
//! connects them. No file imports one that imports it, directly or not, but for those that
//! `tests/style/test_engine_rooms.py` names.

pub mod block_map;
pub mod buffer;
pub mod change_log;
pub mod checksum;
pub mod engine;
pub mod error;
pub mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod geometry;
pub mod io;
pub mod limits;
pub mod log;
#[cfg(all(test, feature = "loom"))]
mod models;
pub mod mutants;
pub mod nbd;
pub mod processor;
#[cfg(feature = "python")]
mod python;
pub mod request;
#[cfg(feature = "simulator")]
pub mod simulator;
pub mod sync;
pub mod system;
pub mod units;
pub mod volume;
