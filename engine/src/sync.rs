//! Sync: the primitives of those protocols between threads that a model checks: std's, or, in a build with the
//! feature `loom`, loom's, which try every relevant order of steps. See `models/`.
//!
//! Everything that is shared without being part of a protocol (`Arc`, statistics) is std's in both.

#[cfg(feature = "loom")]
pub use loom::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(feature = "loom")]
pub use loom::sync::{Condvar, Mutex, MutexGuard, RwLock};

#[cfg(not(feature = "loom"))]
pub use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(feature = "loom"))]
pub use std::sync::{Condvar, Mutex, MutexGuard, RwLock};
