//! Block maps: for each partition, where each block is, now and at every snapshot.
//!
//! How it works      [`versions::Versions`] holds a partition's live map and the frozen maps that its snapshots
//!                   need; [`tree::Map`] is one map; [`leaf`] and [`place`] are its parts; [`diff`] finds the places to
//!                   which only one map refers, [`usage`] counts them; [`change_logs`] derives which change log each
//!                   block belongs to; [`counters`] count a partition's writes. [`taken_bases`] tells which base places can be
//!                   written again, [`relocation`] moves blocks there, [`homeward`] counts those that it can move.
//! Owner and locks   a partition's processor alone touches its versions.

pub mod change_logs;
pub mod counters;
pub mod diff;
pub mod history;
pub mod homeward;
pub mod leaf;
pub mod place;
pub mod relocation;
mod taken_bases;
pub mod tree;
pub mod usage;
pub mod versions;

#[cfg(test)]
mod tests;
