//! System: what the engine asks of the operating system: files, time, random numbers, threads.
//!
//! How it works      Everything that could differ from one run to the next goes through a [`System`]: [`linux`] is the real
//!                   one; the simulator's has a disk in memory, a clock and a scheduler of its own, all from one seed.
//!                   Work runs in three ways: jobs on a [`pool`], processors ([`Task`]), and the threads that call the
//!                   engine; [`wait`] is how any of them waits for another.
//! Errors            calls on files give the system's errno; who called says which file.

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

/// What a call on a file gives.
pub type Result<T> = std::result::Result<T, Errno>;

/// Makes an eventfd readable, which wakes its waiters.
pub fn signal(file: &OwnedFd) {
    // It fails only when the counter is full, and then it is readable as well.
    let _ = rustix::io::write(file, &[1, 0, 0, 0, 0, 0, 0, 0]);
}

/// How a read that must not wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The buffer is full.
    Done,
    /// It would have had to wait.
    WouldWait,
    /// This file can never tell.
    Unsupported,
}

/// Which file a path names, and how it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
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
    /// Fills `buffer` from `offset`; EIO where the file ends before.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
    /// Whether [`File::write_cached`] is worth a try, and asking for the length never blocks.
    fn tells_of_writes(&self) -> bool {
        false
    }
    /// Stores `bytes` at `offset` if that needs no waiting; if it would, some of them may be stored.
    fn write_cached(&self, _bytes: &[u8], _offset: u64) -> Result<Cached> {
        Ok(Cached::Unsupported)
    }
    /// Whether no call on it ever waits for a disk, or for anybody.
    fn never_waits(&self) -> bool {
        false
    }
    /// Stores `bytes` at `offset`.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes the range read as zeroes and gives its space back; EOPNOTSUPP where that cannot be done.
    fn punch(&self, offset: u64, length: u64) -> Result<()>;
    /// Makes the range read as zeroes and keeps its space; EOPNOTSUPP where that cannot be done.
    fn zero_range(&self, offset: u64, length: u64) -> Result<()>;
    /// Makes everything written so far durable, what was stored in mappings included.
    fn sync(&self) -> Result<()>;
    /// Asks for the range to be read ahead.
    fn will_need(&self, offset: u64, length: u64);
    /// How many bytes from `offset`, at most `limit`, are all data or all hole, and whether they are a hole. None of them lies
    /// beyond the end: EIO if `offset` does. Where holes cannot be distinguished from data, all is data.
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

/// Work that a thread of its own does for as long as there is any: a processor.
pub trait Task: Send + Sync {
    /// Does everything that comes, until it is asked to stop.
    fn run(&self);
    /// Does what is there now, perhaps not all of it; `false` if that was nothing.
    fn step(&self) -> bool;
}

/// See the module's head.
pub trait System: Send + Sync + Debug {
    /// Opens a file or disk.
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>>;
    /// Opens a file or disk whose complete blocks are read and written past the page cache, where there is one.
    fn open_direct(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>> {
        self.open(path, writable)
    }
    /// Makes a file, or empties the one that is there.
    fn create(&self, path: &Path) -> Result<Arc<dyn File>>;
    /// Gives a file another name; one that has it already is gone.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Keeps these bytes under a name, whole or not at all, for as long as the machine runs: longer than this process, and
    /// perhaps not as long as the disk.
    fn remember(&self, path: &Path, bytes: &[u8]) -> Result<()>;
    /// What is kept under a name; `None` for nothing.
    fn recall(&self, path: &Path) -> Result<Option<Vec<u8>>>;
    /// Keeps nothing under a name any more.
    fn forget(&self, path: &Path);
    /// The file that a path names; `None` if there is none. Where files cannot be distinguished, they are all the same.
    fn look(&self, _path: &Path) -> Result<Option<Seen>> {
        Ok(Some(Seen::default()))
    }
    /// How much room the file system of a directory has, bytes; `u64::MAX` where it does not say.
    fn room(&self, _directory: &Path) -> u64 {
        u64::MAX
    }
    /// Everything in a directory, in no order.
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>>;
    /// Makes a directory, and those above it.
    fn make_directory(&self, path: &Path) -> Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, directory: &Path) -> Result<()>;

    /// Another one after each start of the machine: what was not synced before may be lost.
    fn boot_id(&self) -> Result<[u8; 16]>;
    /// A random number.
    fn random(&self) -> Result<u64>;
    /// Nanoseconds since some instant.
    fn monotonic_ns(&self) -> u64;
    /// Nanoseconds since 1970.
    fn wall_ns(&self) -> u64;

    /// A pool of at most so many threads, whose names begin with `name`.
    fn pool(&self, name: &str, threads_max: usize, urgency: Urgency) -> Result<Pool>;
    /// Has `driven` run until it stops. The caller that tells it to stop drops the handle, which waits for the end.
    fn drive(&self, name: &str, driven: Arc<dyn Task>) -> Result<Box<dyn TaskHandle>>;
    /// Whether there are threads. Where there are none, who waits for others' work has to see to it.
    fn threaded(&self) -> bool;
    /// Does some work that is there to be done, where there are no threads; `false` if there is none.
    fn run_others(&self) -> bool;
    /// A place where another thread may come between: where there are none, another thread may have a turn here.
    fn yield_point(&self) {}
}

/// Whether hosts wait for what a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// They do.
    Prompt,
    /// They do not: where cores are scarce it gets little of them.
    Background,
}

/// A [`Task`] that runs.
pub trait TaskHandle: Send {
    /// Waits until it has stopped, as it was asked to.
    fn join(self: Box<Self>);
}

/// Waits for an answer of another thread.
pub fn wait<T>(system: &dyn System, answer: &Receiver<T>) -> std::result::Result<T, RecvError> {
    if system.threaded() {
        return answer.recv();
    }
    loop {
        match answer.try_recv() {
            Ok(found) => return Ok(found),
            // Where nothing is left to be done, nobody will answer: the system has crashed.
            Err(TryRecvError::Empty) if system.run_others() => {}
            Err(_) => return Err(RecvError),
        }
    }
}
