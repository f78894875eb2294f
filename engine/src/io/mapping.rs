//! Mapping: a file mapped shared, whose bytes outlive the process without a system call.
//!
//! How it works      The file is fully allocated before it is mapped, so that touching the mapping never raises
//!                   SIGBUS for want of space. What was stored is in the page cache: a killed process loses none of
//!                   it; a power loss loses what was not synced.
//! Owner and locks   [`Mapping::slice_mut`] hands out disjoint ranges; its callers say who owns which.

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::Errno;

/// A shared mapping of a file's first bytes.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: plain memory, valid until drop; exclusive access is the callers' promise at `slice_mut`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Allocates `length` bytes of `file` on its disk, and maps them.
    pub fn allocate(file: &File, length: usize) -> Result<Mapping, Errno> {
        // posix_fallocate writes where the filesystem cannot allocate; rustix has only the former half.
        // SAFETY: a valid descriptor and plain numbers.
        let rc = unsafe {
            libc::posix_fallocate(std::os::fd::AsRawFd::as_raw_fd(file), 0, length as libc::off_t)
        };
        if rc != 0 {
            return Err(Errno::new(rc));
        }
        // SAFETY: a new mapping at an address of the kernel's choice; the file is at least that long.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Mapping { start, length })
    }

    /// `length` bytes from `offset`, to write to.
    ///
    /// # Safety
    /// The caller holds this range alone for as long as the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice_mut(&self, offset: usize, length: usize) -> &mut [u8] {
        assert!(offset <= self.length && length <= self.length - offset, "inside the mapping");
        // SAFETY: in range, just asserted; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(offset), length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `allocate` with this length, and no slice outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
