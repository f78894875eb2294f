//! Mapping: a file mapped shared, whose bytes outlive the process without a system call.
//!
//! How it works      The file is fully allocated before it is mapped, so that touching the mapping never raises
//!                   SIGBUS for want of space. What was stored is in the page cache: a killed process loses none of
//!                   it; a power loss loses what was not synced.
//! Owner and locks   [`Mapping::slice_mut`] hands out disjoint ranges; its callers say who owns which.

use std::fmt::Debug;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

/// The pages behind a mapping: they stay where they are until they are dropped.
pub trait Pages: Send + Sync + Debug {
    /// Their first byte.
    fn start(&self) -> NonNull<u8>;
    /// How many bytes they are.
    fn length(&self) -> usize;
    /// Has them in memory, as far as that can be done, so that who touches them first does not wait.
    fn warm(&self) {}
}

/// A shared mapping of a file's first bytes.
#[derive(Debug)]
pub struct Mapping(Box<dyn Pages>);

impl Mapping {
    /// A mapping of these pages.
    pub fn new(pages: Box<dyn Pages>) -> Mapping {
        Mapping(pages)
    }

    /// Has its pages in memory, none of them changed.
    pub fn warm(&self) {
        self.0.warm();
    }

    /// `length` bytes from `offset`, to write to.
    ///
    /// # Safety
    /// The caller holds this range alone for as long as the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice_mut(&self, offset: usize, length: usize) -> &mut [u8] {
        let all = self.0.length();
        assert!(offset <= all && length <= all - offset, "inside the mapping");
        // SAFETY: in range, just asserted; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.start().as_ptr().add(offset), length) }
    }

    /// Stores a little-endian word. Stores of words are made in the order of the calls: a process that is killed in between
    /// has made the first of them.
    ///
    /// # Safety
    /// As for [`Mapping::slice_mut`].
    pub unsafe fn store_word(&self, offset: usize, word: u64) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as the caller promises.
        unsafe { self.slice_mut(offset, 8) }.copy_from_slice(&word.to_le_bytes());
        compiler_fence(Ordering::SeqCst);
    }
}
