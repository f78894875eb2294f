//! Mapped: the pages of a mapping, for the real system.
//!
//! How it works      A store is made through the mapping. If the kernel cannot provide the page (see
//!                   [`super::bus_error`]), the file's page is mapped again in place of the substitute, and the bytes
//!                   are written with a system call, to the same page cache. If the file cannot be mapped again, or
//!                   pages are so large that two owners share one, all later stores use system calls.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::mapping::Pages;
use super::{Result, bus_error};
use crate::error::Errno;

/// Bytes in a page that has one owner.
const PAGE_BYTES: usize = 4096;

/// See the module's head.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    length: usize,
    file: Arc<fs::File>,
    by_calls: AtomicBool,
}

// SAFETY: plain memory, valid until drop; callers of `Mapping::store` promise exclusive access.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `length` bytes of a file that is at least that long.
    pub fn new(file: &Arc<fs::File>, length: usize) -> Result<Mapped> {
        bus_error::install();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { map_at(file, std::ptr::null_mut(), 0, length, MapFlags::SHARED)? };
        let by_calls = AtomicBool::new(rustix::param::page_size() != PAGE_BYTES);
        Ok(Mapped { start, length, file: Arc::clone(file), by_calls })
    }

    /// Touches bytes; returns `false` if the kernel could not provide them all. In both cases the mapping is the file's
    /// afterwards.
    fn touch(&self, offset: usize, length: usize, touch: impl FnOnce(*mut u8)) -> bool {
        // SAFETY: inside the mapping, as the callers have checked.
        let at = unsafe { self.start.as_ptr().add(offset) };
        let touched = bus_error::guarded(at.addr(), length, || touch(at));
        if !touched {
            let from = offset / PAGE_BYTES * PAGE_BYTES;
            let to = (offset + length).next_multiple_of(PAGE_BYTES).min(self.length);
            // SAFETY: pages of this mapping, which no other thread touches.
            let again = unsafe {
                let place = self.start.as_ptr().add(from);
                map_at(&self.file, place, from, to - from, MapFlags::SHARED | MapFlags::FIXED)
            };
            if again.is_err() {
                self.by_calls.store(true, Ordering::Release);
            }
        }
        touched
    }

    /// Stores bytes with a system call.
    #[cold]
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        if self.file.metadata()?.len() < self.length as u64 {
            return Err(Errno::EIO);
        }
        Ok(self.file.write_all_at(bytes, offset as u64)?)
    }
}

/// Maps a file shared.
///
/// # Safety
/// As for mmap.
unsafe fn map_at(
    file: &fs::File,
    place: *mut u8,
    offset: usize,
    length: usize,
    flags: MapFlags,
) -> Result<NonNull<u8>> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: as the caller promises.
    let start = unsafe { mmap(place.cast(), length, access, flags, file.as_fd(), offset as u64)? };
    NonNull::new(start.cast()).ok_or(Errno::ENOMEM)
}

impl Pages for Mapped {
    fn length(&self) -> usize {
        self.length
    }

    unsafe fn store(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let (mut offset, mut bytes) = (offset, bytes);
        while !bytes.is_empty() {
            let in_page = (PAGE_BYTES - offset % PAGE_BYTES).min(bytes.len()); // MP1
            let (now, later) = bytes.split_at(in_page);
            let stored = !self.by_calls.load(Ordering::Acquire)
                && self.touch(offset, now.len(), |at| {
                    // SAFETY: inside the mapping, and the caller has exclusive access.
                    unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), at, now.len()) }
                });
            if !stored {
                self.write(offset, now)?;
            }
            (offset, bytes) = (offset + in_page, later);
        }
        Ok(())
    }

    fn prefault(&self) {
        // By touching it: `madvise` would block all other memory allocation of the process during the call.
        for at in (0..self.length).step_by(PAGE_BYTES) {
            let read = self.touch(at, 1, |byte| {
                // SAFETY: inside the mapping.
                unsafe { byte.read_volatile() };
            });
            if !read {
                return; // a later store there reports the error
            }
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped with this length by `new`, and no thread touches it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::mapping::Mapping;

    #[test]
    fn a_store_to_a_page_that_the_kernel_cannot_provide_fails_and_the_next_one_does_not() {
        let path = std::env::temp_dir().join(format!("polyvol-mapped-{}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = Arc::new(options.open(&path).unwrap());
        fs::remove_file(&path).unwrap();
        let length = 4 * PAGE_BYTES;
        file.set_len(length as u64).unwrap();
        let mapping = Mapping::new(Box::new(Mapped::new(&file, length).unwrap()));
        // SAFETY: only this thread uses the mapping.
        let store = |offset, bytes: &[u8]| unsafe { mapping.store(offset, bytes) };
        let held = || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, 0).map(|()| bytes)
        };
        store(PAGE_BYTES - 2, b"both").unwrap();
        file.set_len(PAGE_BYTES as u64).unwrap();
        assert_eq!(store(2 * PAGE_BYTES, b"beyond"), Err(Errno::EIO));
        assert_eq!(store(PAGE_BYTES - 2, b"half"), Err(Errno::EIO), "its second page");
        store(0, b"inside").unwrap();
        mapping.prefault();
        file.set_len(length as u64).unwrap();
        store(2 * PAGE_BYTES, b"again").unwrap();
        let bytes = held().unwrap();
        assert_eq!(&bytes[..6], b"inside");
        assert_eq!(&bytes[PAGE_BYTES - 2..PAGE_BYTES + 2], b"ha\0\0", "MP1");
        assert_eq!(&bytes[2 * PAGE_BYTES..2 * PAGE_BYTES + 6], b"again\0");
    }
}
