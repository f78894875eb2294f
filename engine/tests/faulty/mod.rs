//! A system whose files fail on demand: Linux's, except for the calls that a test forbids.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use polyvol_engine::error::Errno;
use polyvol_engine::system::linux::Linux;
use polyvol_engine::system::mapping::Mapping;
use polyvol_engine::system::pool::Pool;
use polyvol_engine::system::{Cached, File, Result, System, Task, TaskHandle, Urgency};

/// What fails: the end of a file's name, and the call. Some rules do something else: a `rename` waits as long as its
/// rule exists, and so does every call on a file with the rule `hang`, and with `hang processor` also a read that must not
/// wait; `fragments` makes a file slow, in pieces of
/// [`FRAGMENT`] bytes: all are holes, and clearing one takes 2 ms.
pub type Rules = Arc<Mutex<BTreeSet<(&'static str, &'static str)>>>;

/// Less than a block, as on a file system with small blocks.
pub const FRAGMENT: u64 = 1024;

/// See the module's head.
#[derive(Debug)]
pub struct Faulty {
    /// What fails now.
    pub rules: Rules,
}

impl Faulty {
    fn ruled(&self, path: &Path, call: &str) -> bool {
        let rules = self.rules.lock().unwrap();
        let path = path.to_string_lossy();
        rules.iter().any(|(name, forbidden)| *forbidden == call && path.ends_with(name))
    }

    fn wrap(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile { path: path.to_owned(), file, rules: Arc::clone(&self.rules) })
    }
}

#[derive(Debug)]
struct FaultyFile {
    path: PathBuf,
    file: Arc<dyn File>,
    rules: Rules,
}

impl FaultyFile {
    fn may(&self, call: &str) -> Result<()> {
        let rules = self.rules.lock().unwrap();
        let hangs = |(name, call): &(&str, &str)| {
            *call == "hang" && self.path.to_string_lossy().ends_with(name)
        };
        let mut rules = rules;
        while rules.iter().any(hangs) {
            drop(rules);
            std::thread::sleep(std::time::Duration::from_millis(1));
            rules = self.rules.lock().unwrap();
        }
        let hit = |(name, forbidden): &(&str, &str)| {
            *forbidden == call && self.path.to_string_lossy().ends_with(name)
        };
        if rules.iter().any(hit) { Err(Errno::EIO) } else { Ok(()) }
    }
}

impl File for FaultyFile {
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<Cached> {
        let hangs = |(name, call): &(&str, &str)| {
            *call == "hang" && self.path.to_string_lossy().ends_with(name)
        };
        let hold = |(name, call): &(&str, &str)| {
            *call == "hang processor" && self.path.to_string_lossy().ends_with(name)
        };
        while self.rules.lock().unwrap().iter().any(hold) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if self.rules.lock().unwrap().iter().any(hangs) {
            return Ok(Cached::WouldWait);
        }
        self.may("read")?;
        self.file.read_cached(buffer, offset)
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.may("read")?;
        self.file.read(buffer, offset)
    }
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.may("write")?;
        if offset == 0 {
            self.may("write at 0")?;
        }
        self.file.write(bytes, offset)
    }
    fn punch(&self, offset: u64, length: u64) -> Result<()> {
        self.may("write")?;
        if self.may("fragments").is_err() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        self.file.punch(offset, length)
    }
    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.may("write")?;
        self.file.zero_range(offset, length)
    }
    fn sync(&self) -> Result<()> {
        self.may("sync")?;
        self.file.sync()
    }
    fn will_need(&self, offset: u64, length: u64) {
        let _ = self.may("cache");
        self.file.will_need(offset, length);
    }
    fn allocation(&self, offset: u64, limit: u64) -> Result<(u64, bool)> {
        self.may("status")?;
        if self.may("fragments").is_err() {
            return Ok((limit.min(FRAGMENT - offset % FRAGMENT), true));
        }
        self.file.allocation(offset, limit)
    }
    fn length(&self) -> Result<u64> {
        self.may("length")?;
        self.file.length()
    }
    fn map(&self, length: usize) -> Result<Mapping> {
        self.file.map(length)
    }
}

impl System for Faulty {
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>> {
        Ok(self.wrap(path, Linux.open(path, writable)?))
    }
    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        if self.ruled(path, "create") {
            return Err(Errno::ENOSPC);
        }
        Ok(self.wrap(path, Linux.create(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        while self.ruled(to, "rename") {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Linux.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        Linux.remove(path)
    }
    fn remember(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        Linux.remember(path, bytes)
    }
    fn recall(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        Linux.recall(path)
    }
    fn forget(&self, path: &Path) {
        Linux.forget(path);
    }
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        Linux.list(directory)
    }
    fn make_directory(&self, path: &Path) -> Result<()> {
        Linux.make_directory(path)
    }
    fn sync_directory(&self, directory: &Path) -> Result<()> {
        Linux.sync_directory(directory)
    }
    fn boot_id(&self) -> Result<[u8; 16]> {
        Linux.boot_id()
    }
    fn random(&self) -> Result<u64> {
        Linux.random()
    }
    fn monotonic_ns(&self) -> u64 {
        Linux.monotonic_ns()
    }
    fn wall_ns(&self) -> u64 {
        Linux.wall_ns()
    }
    fn pool(&self, name: &str, threads_max: usize, urgency: Urgency) -> Result<Pool> {
        Linux.pool(name, threads_max, urgency)
    }
    fn drive(&self, name: &str, driven: Arc<dyn Task>) -> Result<Box<dyn TaskHandle>> {
        Linux.drive(name, driven)
    }
    fn threaded(&self) -> bool {
        true
    }
    fn run_others(&self) -> bool {
        false
    }
}
