//! Fault: the known fault of a device, for users.
//!
//! How it works      Every failed call is noted. The first one marks the device as faulty until it is reopened; every
//!                   call is still made, because one bad sector must not disable a whole disk. A lack of space is not a
//!                   fault, because it ends without a repair, unless it made a sync fail. That a device has become
//!                   shorter stays in the fault, whatever fails later.
//! Owner and locks   one lock over the fault, taken only for a failed call or a query.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::error::Errno;

/// A call on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    Read,
    Write,
    Clear,
    Sync,
    Size,
}

impl Call {
    /// Its name in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Call::Read => "reading",
            Call::Write => "writing",
            Call::Clear => "clearing",
            Call::Sync => "syncing",
            Call::Size => "asking for its size",
        }
    }
}

/// Why a device is faulty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The last call that failed.
    pub call: Call,
    /// Its errno.
    pub errno: Errno,
    /// Its offset, bytes; meaningless for a sync.
    pub offset: u64,
    /// Time of the first failure, nanoseconds since 1970.
    pub first_ns: u64,
    /// Time of the last failure, nanoseconds since 1970.
    pub last_ns: u64,
    /// Number of failed calls.
    pub times: u64,
    /// If the device has become too short: the length that was found, and the required one, bytes.
    pub short: Option<(u64, u64)>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Faults {
    errors: AtomicU64,
    last_errno: AtomicI32,
    mark: Mutex<Option<Fault>>,
}

impl Faults {
    /// Notes a call that failed at `now_ns`.
    pub fn note(&self, call: Call, offset: u64, errno: Errno, now_ns: u64) {
        self.count(errno);
        if call != Call::Sync && is_lack_of_space(errno) {
            return;
        }
        let mut mark = self.mark.lock().expect("no holder panics");
        let first_ns = mark.map_or(now_ns, |fault| fault.first_ns);
        let times = mark.map_or(0, |fault| fault.times) + 1;
        let short = mark.and_then(|fault| fault.short);
        *mark = Some(Fault { call, errno, offset, first_ns, last_ns: now_ns, times, short });
    }

    /// Notes that the device was found to be `found` bytes long at `now_ns`, and needs `needed`.
    pub fn note_short(&self, found: u64, needed: u64, now_ns: u64) {
        self.note(Call::Size, found, Errno::EIO, now_ns);
        let mut mark = self.mark.lock().expect("no holder panics");
        if let Some(fault) = mark.as_mut() {
            fault.short = Some((found, needed));
        }
    }

    /// Counts a failed call without a change of the fault.
    pub fn count(&self, errno: Errno) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.last_errno.store(errno.raw(), Ordering::Relaxed);
    }

    /// Number of failed calls since the start, and the last errno (0: none).
    pub fn counted(&self) -> (u64, i32) {
        (self.errors.load(Ordering::Relaxed), self.last_errno.load(Ordering::Relaxed))
    }

    /// The fault, if there is one.
    pub fn mark(&self) -> Option<Fault> {
        *self.mark.lock().expect("no holder panics")
    }

    /// Clears the fault; returns what it was.
    pub fn clear(&self) -> Option<Fault> {
        self.mark.lock().expect("no holder panics").take()
    }
}

/// Whether a call failed only because the disk under a sparse file is full.
pub fn is_lack_of_space(errno: Errno) -> bool {
    errno == Errno::ENOSPC || errno.raw() == libc::EDQUOT
}
