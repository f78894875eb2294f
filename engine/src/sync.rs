//! Sync: the primitives of those protocols between threads that a model checks: std's, or, in a build with `--cfg
//! loom`, loom's, which try every relevant order of steps. See `models/`.
//!
//! Everything that is shared without being part of a protocol (`Arc`, statistics) is std's in both.

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
