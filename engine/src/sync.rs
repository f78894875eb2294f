//! Sync: the primitives that protocols between threads are made of, where a model checks them: std's, or, in a build with
//! `--cfg loom`, loom's, which try every order of steps that matters. See `models/`.
//!
//! What is only shared and never part of a protocol (`Arc`, counters for people) is std's in both.

#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(loom)]
pub use loom::sync::{Condvar, Mutex, MutexGuard, RwLock};

#[cfg(not(loom))]
pub use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(loom))]
pub use std::sync::{Condvar, Mutex, MutexGuard, RwLock};
