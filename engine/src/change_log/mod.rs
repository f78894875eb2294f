//! Change logs: the slots of redirected blocks, and the records of where each block is.
//!
//! How it works      Two halves. The slots are in log areas on devices: [`space`] manages those of a volume, in
//!                   chunks of 1024 slots; [`slots`] are those of one processor. The records are in the state
//!                   directory: each processor appends them to its [`journal`], and periodic [`checkpoint`]s make the
//!                   older part of the journal unnecessary; [`recover`] reads both. A [`manifest`] in another directory
//!                   says which of these files must exist.
//! Invariants        J1 a slot is written once between being allocated and being freed;
//!                   J2 a record is appended after the data that it refers to was written, and before the host gets the
//!                      reply;
//!                   J3 a commit mark covers only records whose data was synced before;
//!                   J4 a freed place is not reused until the record or the catalog transaction that freed it is
//!                      durable; a [`young`] slot, to which nothing durable refers, is reused at once.
//! Durability        SIGKILL: everything appended. Power loss: what the last commit mark covers; a flush is
//!                   answered after its mark is durable.

pub mod agreement;
pub mod checkpoint;
mod chunk;
mod chunk_set;
pub mod chunks;
pub mod claim;
mod entry;
pub mod expected;
pub mod failed_sync;
pub mod files;
pub mod format;
pub mod journal;
mod known_file;
pub mod leaf_bytes;
pub mod log_rules;
pub mod manifest;
mod old_segments;
pub mod partition_shape;
pub mod past;
pub mod punching;
pub mod recover;
pub mod segment;
mod shared_journal;
mod slot_set;
pub mod slots;
pub mod space;
pub mod used_slots;
pub mod watermark;
pub mod windows;
pub mod young;

#[cfg(test)]
mod tests;
