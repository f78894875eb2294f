//! Device: one file or disk that holds extents or slots.
//!
//! How it works      Buffered I/O at offsets. `read_cached` answers from the page cache or says that it would
//!                   block. `sync` makes what was written durable; callers that wait at the same time share one.
//! Invariants        D1 a write is counted after it was made and before it is acknowledged, so a sync that
//!                   starts after an acknowledgement covers it;
//!                   D2 after a failed sync the kernel may have dropped what it could not write, so no later sync
//!                   of this device succeeds until it is opened anew.
//! Errors            every failed call is counted; the last errno is kept for status.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::deliberate::{Bug, bug};
use crate::error::{Errno, Error, Result};
use crate::system::{Cached, File, System};
use crate::units::DeviceId;

/// See the module's head.
#[derive(Debug)]
pub struct Device {
    /// The catalog's number for it.
    pub id: DeviceId,
    /// Freed space is punched out of it.
    pub sparse: bool,
    file: Arc<dyn File>,
    writes: AtomicU64,
    synced: Mutex<u64>,
    failed_sync: AtomicI32,
    errors: AtomicU64,
    last_errno: AtomicI32,
    no_punch: AtomicBool,
    no_zero: AtomicBool,
    no_nowait: AtomicBool,
}

impl Device {
    /// Opens a device's file or disk.
    pub fn open(
        system: &dyn System,
        id: DeviceId,
        path: &Path,
        read_only: bool,
        sparse: bool,
    ) -> Result<Device> {
        let file = system.open(path, !read_only).map_err(|e| {
            Error::io(format!("device file {} cannot be opened", path.display()), e)
        })?;
        // Reads of hosts are random unless they say otherwise: no read-ahead of what nobody asked for is
        // decided here, the kernel's own heuristics stay on.
        Ok(Device {
            id,
            sparse,
            file,
            writes: AtomicU64::new(1), // what an earlier process wrote may not be durable
            synced: Mutex::new(0),
            failed_sync: AtomicI32::new(0),
            errors: AtomicU64::new(0),
            last_errno: AtomicI32::new(0),
            no_punch: AtomicBool::new(!sparse),
            no_zero: AtomicBool::new(false),
            no_nowait: AtomicBool::new(false),
        })
    }

    /// Failed calls since it was opened, and the last errno (0: none).
    pub fn errors(&self) -> (u64, i32) {
        (self.errors.load(Ordering::Relaxed), self.last_errno.load(Ordering::Relaxed))
    }

    /// Fills `buffer` from `offset` if that needs no waiting; `false` if it would block.
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64) -> std::result::Result<bool, Errno> {
        if self.no_nowait.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.file.read_cached(buffer, offset) {
            Ok(Cached::Done) => Ok(true),
            Ok(Cached::WouldWait) => Ok(false),
            Ok(Cached::Unsupported) => {
                self.no_nowait.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(e) => Err(self.count(e)),
        }
    }

    /// Fills `buffer` from `offset`, waiting for the disk.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> std::result::Result<(), Errno> {
        // A device that ends early reads as an error, not as zeroes.
        self.file.read(buffer, offset).map_err(|e| self.count(e))
    }

    /// Stores `bytes` at `offset`.
    pub fn write(&self, bytes: &[u8], offset: u64) -> std::result::Result<(), Errno> {
        let result = self.file.write(bytes, offset).map_err(|e| self.count(e));
        self.writes.fetch_add(1, Ordering::Release); // D1: even a failed one may have written
        result
    }

    /// Makes the range read as zeroes and gives its space back. `Ok(false)` if this device cannot.
    pub fn punch(&self, offset: u64, length: u64) -> std::result::Result<bool, Errno> {
        self.cleared(self.file.punch(offset, length), &self.no_punch)
    }

    /// Makes the range read as zeroes and keeps its space. `Ok(false)` if this device cannot.
    pub fn zero_range(&self, offset: u64, length: u64) -> std::result::Result<bool, Errno> {
        self.cleared(self.file.zero_range(offset, length), &self.no_zero)
    }

    /// Whether [`Device::punch`] is worth a try.
    pub fn can_punch(&self) -> bool {
        !self.no_punch.load(Ordering::Relaxed)
    }

    /// Whether [`Device::zero_range`] is worth a try.
    pub fn can_zero(&self) -> bool {
        !self.no_zero.load(Ordering::Relaxed)
    }

    fn cleared(
        &self,
        result: std::result::Result<(), Errno>,
        cannot: &AtomicBool,
    ) -> std::result::Result<bool, Errno> {
        self.writes.fetch_add(1, Ordering::Release); // D1
        match result {
            Ok(()) => Ok(true),
            Err(Errno::ENOTSUP) => {
                cannot.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(e) => Err(self.count(e)),
        }
    }

    /// Makes every write counted so far durable.
    pub fn sync(&self) -> std::result::Result<(), Errno> {
        let wanted = self.writes.load(Ordering::Acquire);
        let mut synced = self.synced.lock().expect("no holder panics");
        let failed = self.failed_sync.load(Ordering::Relaxed);
        if failed != 0 {
            return Err(Errno::new(failed)); // D2
        }
        if *synced >= wanted {
            return Ok(());
        }
        let covered = self.writes.load(Ordering::Acquire);
        match self.file.sync() {
            Ok(()) => {
                *synced = covered;
                Ok(())
            }
            Err(e) => {
                let errno = self.count(e);
                if !bug(Bug::ForgetFailedSync) {
                    self.failed_sync.store(errno.raw(), Ordering::Relaxed);
                }
                Err(errno)
            }
        }
    }

    /// Asks the kernel to read ahead.
    pub fn will_need(&self, offset: u64, length: u64) {
        self.file.will_need(offset, length);
    }

    /// How many bytes from `offset`, at most `limit`, are all data or all hole, and whether they are a hole.
    pub fn allocation(&self, offset: u64, limit: u64) -> (u64, bool) {
        self.file.allocation(offset, limit)
    }

    fn count(&self, errno: Errno) -> Errno {
        // That a call is not possible at all is for `cleared` alone to say.
        let errno = if errno == Errno::ENOTSUP { Errno::EIO } else { errno };
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.last_errno.store(errno.raw(), Ordering::Relaxed);
        errno
    }
}
