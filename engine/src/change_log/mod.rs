//! Change logs: where blocks go that a snapshot must not lose, and the records that say so.
//!
//! How it works      Two halves. The slots are on the change-log devices: [`space`] is what a volume has of
//!                   them, in chunks of 1024 slots; [`slots`] is one processor's share. The records are in the
//!                   state directory: each processor appends them to its [`journal`], and a [`checkpoint`] now
//!                   and then makes the older part of the journal unnecessary; [`recover`] reads both. A [`manifest`]
//!                   elsewhere says which of these files must be there.
//! Invariants        J1 a slot is written once between being handed out and being given back;
//!                   J2 a record is appended after the data that it speaks of was written, and before the
//!                      host hears of it;
//!                   J3 a commit mark covers only records whose data was synced before;
//!                   J4 a place that was given back is not used again until the record or the catalog
//!                      transaction that gave it back is durable; a [`young`] slot, which nothing durable refers to, at
//!                      once.
//! Durability        SIGKILL: everything appended. Power loss: what the last commit mark covers; a flush is
//!                   answered after its mark is durable.

pub mod agreement;
pub mod checkpoint;
pub mod chunks;
mod entry;
pub mod expected;
pub mod failed_sync;
pub mod files;
pub mod format;
pub mod journal;
mod known;
pub mod leaf_bytes;
pub mod manifest;
mod old_segments;
pub mod recover;
pub mod segment;
mod shared;
mod slot_set;
pub mod slots;
pub mod space;
pub mod used_slots;
pub mod watermark;
pub mod young;

#[cfg(test)]
mod tests;
