//! Hollow: a system whose log areas take no space, for volumes with millions of redirected blocks.
//!
//! How it works      A file called `log` is never written. Only zeroes may be written to it, and a sparse file reads as
//!                   zeroes, so all reads are right.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyvol_engine::system::linux::Linux;
use polyvol_engine::system::mapping::Mapping;
use polyvol_engine::system::pool::Pool;
use polyvol_engine::system::{Cached, File, Result, System, Task, TaskHandle, Urgency};

/// Linux, except that a file called `log` is never written.
#[derive(Debug)]
pub struct Hollow(pub Linux);

#[derive(Debug)]
struct HollowFile(Arc<dyn File>);

impl File for HollowFile {
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<Cached> {
        self.0.read_cached(buffer, offset)
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.read(buffer, offset)
    }
    fn write(&self, bytes: &[u8], _offset: u64) -> Result<()> {
        // Every byte, without an early end, so that it is vectorized.
        assert!(bytes.iter().fold(0, |all, byte| all | byte) == 0, "only zeroes can be left out");
        Ok(())
    }
    fn punch(&self, offset: u64, length: u64) -> Result<()> {
        self.0.punch(offset, length)
    }
    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.0.zero_range(offset, length)
    }
    fn sync(&self) -> Result<()> {
        self.0.sync()
    }
    fn will_need(&self, offset: u64, length: u64) {
        self.0.will_need(offset, length);
    }
    fn allocation(&self, offset: u64, limit: u64) -> Result<(u64, bool)> {
        self.0.allocation(offset, limit)
    }
    fn length(&self) -> Result<u64> {
        self.0.length()
    }
    fn map(&self, length: usize) -> Result<Mapping> {
        self.0.map(length)
    }
}

impl System for Hollow {
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>> {
        let file = self.0.open(path, writable)?;
        Ok(if path.ends_with("log") { Arc::new(HollowFile(file)) } else { file })
    }
    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        self.0.create(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.0.remove(path)
    }
    fn remember(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.0.remember(path, bytes)
    }
    fn recall(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.0.recall(path)
    }
    fn forget(&self, path: &Path) {
        self.0.forget(path);
    }
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        self.0.list(directory)
    }
    fn make_directory(&self, path: &Path) -> Result<()> {
        self.0.make_directory(path)
    }
    fn sync_directory(&self, directory: &Path) -> Result<()> {
        self.0.sync_directory(directory)
    }
    fn boot_id(&self) -> Result<[u8; 16]> {
        self.0.boot_id()
    }
    fn random(&self) -> Result<u64> {
        self.0.random()
    }
    fn monotonic_ns(&self) -> u64 {
        self.0.monotonic_ns()
    }
    fn wall_ns(&self) -> u64 {
        self.0.wall_ns()
    }
    fn pool(&self, name: &str, threads_max: usize, urgency: Urgency) -> Result<Pool> {
        self.0.pool(name, threads_max, urgency)
    }
    fn drive(&self, name: &str, driven: Arc<dyn Task>) -> Result<Box<dyn TaskHandle>> {
        self.0.drive(name, driven)
    }
    fn threaded(&self) -> bool {
        true
    }
    fn run_others(&self) -> bool {
        false
    }
}

/// The `n`-th of 2^`bits` numbers in an order that looks random.
pub fn shuffled(n: u64, bits: u32) -> u64 {
    let mask = (1 << bits) - 1;
    let mut x = n;
    for odd in [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb_u64] {
        x ^= x >> (bits / 2);
        x = x.wrapping_mul(odd) & mask;
    }
    x ^ (x >> (bits / 2))
}
