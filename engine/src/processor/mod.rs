//! Processors: the worker threads that alone touch the mutable state of the partitions that they own.
//!
//! How it works      A processor ([`runner`]) drains its [`queue`] ([`run`]), and for each volume that it owns
//!                   partitions of, a [`share`] serves the parts of requests. Work that would block goes to the pool's
//!                   threads, or to the ring of [`cold`], and returns as an event. Readers do work that changes no
//!                   state of a processor themselves, on the [`fast_path`](share::fast_path). [`cut`] is how all
//!                   processors agree on an instant.
//!
//! Ownership; no other file explains it:
//!
//! | state | owner | other readers | held for |
//! |---|---|---|---|
//! | versions, slots, epoch, parts that wait | the processor | readers, while no thread runs it; a checkpoint reads
//! clones | a small batch |
//! | journal, records' bytes | the processor | flusher: the last record (atomic) | - |
//! | journal, marks' bytes | flusher, under `committing` | - | one sync |
//! | a queue's events | its lock | all threads push, the processor takes all | a push |
//! | a log's chunks | a lock each | processors of the volume | a search in it |
//! | space waiters | its lock | processors of the volume | a read of counters |
//! | geometry | none: immutable; a volume that grows gets a new one | all threads | - |
//! | an export table | its lock | connections look up | a look-up |
//! | a request's buffer | its parts, each its range (B3) | the sink, after the last part | - |
//!
//! Lock order: `committing`, then a journal's list of segments, each held by a flusher. The space waiters' lock, then a chunk's, or
//! that of the events for Python. No other of these is taken while one is held.

pub mod cold;
pub mod cut;
mod drain;
pub mod durable;
pub mod flusher;
pub mod inspect;
pub mod io_job;
pub mod lanes;
pub mod messages;
pub mod part;
pub mod queue;
pub mod run;
pub mod runner;
pub mod share;
pub mod space_waiters;
mod time_slice;
