//! A write that waits for slots that need a sync, when that sync fails: it gets that error, not ENOSPC.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::system::linux::Linux;
use polyvol_engine::system::mapping::Mapping;
use polyvol_engine::system::pool::Pool;
use polyvol_engine::system::{Cached, File, Result, System, Task, TaskHandle, Urgency};
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;

/// The real system, whose syncs fail on demand.
#[derive(Debug)]
struct Failing {
    fails: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FailingFile {
    file: Arc<dyn File>,
    fails: Arc<AtomicBool>,
}

impl File for FailingFile {
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<Cached> {
        self.file.read_cached(buffer, offset)
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read(buffer, offset)
    }
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write(bytes, offset)
    }
    fn punch(&self, offset: u64, length: u64) -> Result<()> {
        self.file.punch(offset, length)
    }
    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.file.zero_range(offset, length)
    }
    fn sync(&self) -> Result<()> {
        if self.fails.load(Ordering::Acquire) { Err(Errno::EIO) } else { self.file.sync() }
    }
    fn will_need(&self, offset: u64, length: u64) {
        self.file.will_need(offset, length);
    }
    fn allocation(&self, offset: u64, limit: u64) -> Result<(u64, bool)> {
        self.file.allocation(offset, limit)
    }
    fn length(&self) -> Result<u64> {
        self.file.length()
    }
    fn map(&self, length: usize) -> Result<Mapping> {
        self.file.map(length)
    }
}

impl System for Failing {
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn File>> {
        let file = Linux.open(path, writable)?;
        Ok(Arc::new(FailingFile { file, fails: Arc::clone(&self.fails) }))
    }
    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        Linux.create(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
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

#[test]
fn a_write_that_waits_for_a_sync_gets_the_errno_of_the_sync() {
    let directory = std::env::temp_dir().join(format!("polyvol-sync-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let engine = Engine::with_system(Arc::new(Failing { fails: Arc::clone(&fails) }), 1).unwrap();
    for (id, name, size) in [(1, "base", 8 * MIB), (2, "log", 4 * MIB)] {
        let path = directory.join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        engine.open_device(id, &path, Mode::SPARSE).unwrap();
    }
    let extent = |device, length| ExtentSpec { device, offset: 0, length };
    engine
        .add_volume(VolumeSpec {
            id: 1,
            uuid: [1; 16],
            name: "v".to_owned(),
            size: 8 * MIB,
            partition_size: 8 * MIB,
            partitions: vec![(0, vec![extent(1, 8 * MIB)])],
            logs: vec![(1, vec![extent(2, 4 * MIB)])],
            log_rules: Default::default(),
            directory: directory.join("volume"),
            manifests: Manifests::new(directory.join("volume")),
            snapshots: Vec::new(),
            next_epoch: 1,
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin: None,
        })
        .unwrap();
    engine.ask_when_full(1, true).unwrap();
    engine.export("v", "", 1, None).unwrap();
    let client = LocalClient::new(engine.exports.attach("v").unwrap());
    let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
    engine.settle(1, epoch).unwrap();
    engine.flush(1).unwrap();
    client.write(0, &vec![1; 3 * MIB as usize], false).unwrap();
    client.flush().unwrap(); // otherwise slots freed of these could be reused at once
    client.write(3 * MIB, &vec![1; MIB as usize], false).unwrap();
    // A hundred slots wait for a sync, which will fail.
    client.range(Verb::Trim, 0, 100 * 4096, false).unwrap();
    fails.store(true, Ordering::Release);
    assert_eq!(client.write(6 * MIB, &[2; 4096], false), Err(Errno::EIO));
    assert_eq!(
        engine.events.next(std::time::Duration::ZERO),
        None,
        "there is no event for more space"
    );
    assert_eq!(client.read(MIB, 4096).unwrap().data.as_slice(), [1; 4096]);
    drop(client);
    let _ = engine.stop();
    std::fs::remove_dir_all(&directory).unwrap();
}
