//! Mapping: a file mapped shared, whose bytes outlive the process without a system call.
//!
//! How it works      The file is allocated before it is mapped. Stored bytes are in the page cache: a killed process
//!                   loses none of them; a power loss loses what was not synced. A store is an assignment, and can fail
//!                   like a write: if the kernel cannot provide the page, a write replaces the store, and its error is
//!                   returned ([why](../../../docs/decisions/0031-stores-that-fail.md)).
//! Invariants        MP1 a failed store has stored some of its first bytes, and changed nothing else.
//! Owner and locks   the ranges given to [`Mapping::store`] are disjoint; its callers document who owns which.
//! Errors            those of a write. EIO: the file is shorter than its mapping, because it was truncated.

use std::fmt::Debug;
use std::sync::atomic::{Ordering, compiler_fence};

use super::Result;

/// The pages behind a mapping.
pub trait Pages: Send + Sync + Debug {
    /// How many bytes they are.
    fn length(&self) -> usize;
    /// Stores bytes from `offset` on, all inside the mapping.
    ///
    /// # Safety
    /// As for [`Mapping::store`].
    unsafe fn store(&self, offset: usize, bytes: &[u8]) -> Result<()>;
    /// Prefaults the pages where possible, so that the first access to them does not wait.
    fn prefault(&self) {}
}

/// A shared mapping of a file's first bytes.
#[derive(Debug)]
pub struct Mapping(Box<dyn Pages>);

impl Mapping {
    /// A mapping of these pages.
    pub fn new(pages: Box<dyn Pages>) -> Mapping {
        Mapping(pages)
    }

    /// Prefaults its pages; none of them changes.
    pub fn prefault(&self) {
        self.0.prefault();
    }

    /// Stores bytes from `offset`.
    ///
    /// # Safety
    /// During the call no other thread touches this range, or stores to a page of 4096 bytes that it is in.
    pub unsafe fn store(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let all = self.0.length();
        assert!(offset <= all && bytes.len() <= all - offset, "inside the mapping");
        // SAFETY: as the caller promises.
        unsafe { self.0.store(offset, bytes) }
    }

    /// Stores a little-endian word. Stores of words happen in the order of the calls: if the process is killed in
    /// between, the earlier ones have been made.
    ///
    /// # Safety
    /// As for [`Mapping::store`].
    pub unsafe fn store_word(&self, offset: usize, word: u64) -> Result<()> {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as the caller promises.
        let stored = unsafe { self.store(offset, &word.to_le_bytes()) };
        compiler_fence(Ordering::SeqCst);
        stored
    }
}
