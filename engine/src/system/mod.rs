//! System: what the engine needs from the operating system: files, time, random numbers, threads.
//!
//! How it works      Everything that could differ from one run to the next goes through a [`System`]: [`linux`] is the
//!                   real one; the simulator's has a disk in memory, a clock and a scheduler of its own, all from one
//!                   seed. Work runs in three ways: jobs on a [`pool`], processors ([`Task`]), and the threads that
//!                   call the engine; [`wait`] is how any of them waits for another.
//! Errors            calls on files return the system's errno; the caller adds which file.

mod aio;
mod bus_error;
pub mod credentials;
pub mod direct;
pub mod linux;
mod mapped;
pub mod mapping;
pub mod pool;
pub mod reaper;
pub mod ring;
pub mod ticks;

use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};

use crate::error::Errno;
use mapping::Mapping;
use pool::Pool;

/// The calling thread's number in the kernel.
pub fn thread_id() -> u32 {
    thread_local! {
        static ID: u32 = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    }
    ID.try_with(|id| *id).unwrap_or(0)
}

/// Result of a call on a file.
pub type Result<T> = std::result::Result<T, Errno>;

/// Makes an eventfd readable, which wakes its waiters.
pub fn signal(file: &OwnedFd) {
    // It fails only if the counter is full, and then it is readable too.
    let _ = rustix::io::write(file, &[1, 0, 0, 0, 0, 0, 0, 0]);
}

/// Result of a read or write that must not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The buffer is full.
    Done,
    /// It would have waited.
    WouldWait,
    /// This file does not support it.
    Unsupported,
}

/// The identity of a file, its length and its time of change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStatus {
    /// The file system's device number, and the file's number there.
    pub file: (u64, u64),
    /// Bytes.
    pub length: u64,
    /// When its bytes were last changed: seconds and nanoseconds since 1970.
    pub changed: (i64, i64),
}

/// An open file or disk. Offsets and lengths are bytes.
pub trait File: Send + Sync + Debug {
    /// Fills `buffer` from `offset` if that needs no waiting.
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<Cached>;
    /// Fills `buffer` from `offset`; EIO if the file ends before.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
    /// Whether [`File::write_cached`] is supported, and [`File::length`] never blocks.
    fn can_write_nowait(&self) -> bool {
        false
    }
    /// Writes `bytes` at `offset` if that needs no waiting; if it would wait, some of them may be written.
    fn write_cached(&self, _bytes: &[u8], _offset: u64) -> Result<Cached> {
        Ok(Cached::Unsupported)
    }
    /// Whether no call on it ever waits for a disk or a server.
    fn never_waits(&self) -> bool {
        false
    }
    /// Writes `bytes` at `offset`.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes the range read as zeroes and releases its space; EOPNOTSUPP if that is not supported.
    fn punch(&self, offset: u64, length: u64) -> Result<()>;
    /// Makes the range read as zeroes and keeps its space allocated; EOPNOTSUPP if that is not supported.
    fn zero_range(&self, offset: u64, length: u64) -> Result<()>;
    /// Makes everything written so far durable, including stores to mappings.
    fn sync(&self) -> Result<()>;
    /// Requests read-ahead of the range.
    fn will_need(&self, offset: u64, length: u64);
    /// Length of the run from `offset`, at most `limit` bytes, that is all data or all hole, and whether it is a hole.
    /// The run ends at the end of the file: EIO if `offset` is beyond. If holes cannot be distinguished from data, all
    /// is data.
    fn allocation(&self, offset: u64, limit: u64) -> Result<(u64, bool)>;
    /// Its descriptor, if the kernel has one for it.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Its size; also that of a disk.
    fn length(&self) -> Result<u64>;
    /// Whether a write beyond its end makes it longer.
    fn grows(&self) -> bool {
        true
    }
    /// Allocates its first `length` bytes on the disk and maps them.
    fn map(&self, length: usize) -> Result<Mapping>;
}

/// Work with a thread of its own: a processor.
pub trait Task: Send + Sync {
    /// Does all work that arrives, until it is asked to stop.
    fn run(&self);
    /// Does some of the work that is there now; `false` if there was none.
    fn step(&self) -> bool;
}

/// See the module's head.
pub trait System: Send + Sync + Debug {
    /// Opens a file or disk.
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>>;
    /// Opens a file or disk whose complete blocks are read and written with O_DIRECT, if the system has a page cache.
    fn open_direct(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>> {
        self.open(path, writable)
    }
    /// Creates a file, or truncates an existing one.
    fn create(&self, path: &Path) -> Result<Arc<dyn File>>;
    /// Renames a file; replaces an existing one of the new name.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Stores these bytes under a name, completely or not at all, until the machine stops: longer than this process,
    /// but not necessarily over a reboot.
    fn remember(&self, path: &Path, bytes: &[u8]) -> Result<()>;
    /// What [`System::remember`] stored under a name; `None` for nothing.
    fn recall(&self, path: &Path) -> Result<Option<Vec<u8>>>;
    /// Removes what [`System::remember`] stored under a name.
    fn forget(&self, path: &Path);
    /// The file that a path names; `None` if there is none. A system that cannot distinguish files returns the same for
    /// all.
    fn stat(&self, _path: &Path) -> Result<Option<FileStatus>> {
        Ok(Some(FileStatus::default()))
    }
    /// Free space of the file system of a directory, bytes; `u64::MAX` if it is unknown.
    fn room(&self, _directory: &Path) -> u64 {
        u64::MAX
    }
    /// All entries of a directory, in no particular order.
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>>;
    /// Creates a directory and its parents.
    fn make_directory(&self, path: &Path) -> Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_directory(&self, directory: &Path) -> Result<()>;

    /// An id that differs after each start of the machine: what was not synced before a start may be lost.
    fn boot_id(&self) -> Result<[u8; 16]>;
    /// A random number.
    fn random(&self) -> Result<u64>;
    /// Nanoseconds since some instant.
    fn monotonic_ns(&self) -> u64;
    /// Nanoseconds since 1970.
    fn wall_ns(&self) -> u64;
    /// The same, right to a few milliseconds, for the price of a memory access.
    fn coarse_wall_ns(&self) -> u64 {
        self.wall_ns()
    }

    /// A pool of at most so many threads, whose names begin with `name`.
    fn pool(&self, name: &str, threads_max: usize, urgency: Urgency) -> Result<Pool>;
    /// Runs `driven` until it stops. The caller asks it to stop, and then drops the handle, which waits for the end.
    fn drive(&self, name: &str, driven: Arc<dyn Task>) -> Result<Box<dyn TaskHandle>>;
    /// Whether there are threads. Without threads, a caller that waits for other work must run it
    /// ([`System::run_others`]).
    fn threaded(&self) -> bool;
    /// Does some pending work, if there are no threads; `false` if there is none.
    fn run_others(&self) -> bool;
    /// A point at which a scheduler without threads may run other work.
    fn yield_point(&self) {}
}

/// Whether hosts wait for a thread's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// They do.
    Prompt,
    /// They do not: it gets little CPU time if cores are scarce.
    Background,
}

/// A running [`Task`].
pub trait TaskHandle: Send {
    /// Waits until it has stopped; it was asked to before.
    fn join(self: Box<Self>);
    /// The CPU time that it has used, nanoseconds; 0 if that is not known.
    fn cpu_ns(&self) -> u64 {
        0
    }
}

/// Waits for an answer from another thread.
pub fn wait<T>(system: &dyn System, answer: &Receiver<T>) -> std::result::Result<T, RecvError> {
    if system.threaded() {
        return answer.recv();
    }
    loop {
        match answer.try_recv() {
            Ok(found) => return Ok(found),
            // If no work is left, no answer will come: the system has crashed.
            Err(TryRecvError::Empty) if system.run_others() => {}
            Err(_) => return Err(RecvError),
        }
    }
}
