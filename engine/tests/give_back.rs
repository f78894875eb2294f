//! Giving back: what is freed in log areas goes back to the disk, down to the block, and without a flush.
//!
//! Strategy          A volume of 16 MiB on 2 processors over sparse files, whose blocks all went to slots. Then nothing
//!                   is flushed, and the tests wait until the log's file takes about as much of the disk as there are live
//!                   blocks in it. Each wait is bounded.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const SIZE: u64 = 16 * MIB;
const BLOCKS: u64 = SIZE / BLOCK;
const LOG_SIZE: u64 = 128 * MIB;
/// Of so many blocks one stays in a slot.
const KEPT: u64 = 16;
const PROMPT_MAX: Duration = Duration::from_secs(30);

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-give-back-{}-{number}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(name));
        std::fs::create_dir(&scratch.0).unwrap();
        scratch
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    fn engine(&self, log_is_sparse: bool, snapshots: Vec<u64>) -> (Engine, LocalClient) {
        let engine = Engine::new(2).unwrap();
        let devices = [(1, "base", SIZE, true), (2, "log", LOG_SIZE, log_is_sparse)];
        for (id, name, size, sparse) in devices {
            let path = self.0.join(name);
            let made = std::fs::File::options().create(true).append(true).open(&path).unwrap();
            made.set_len(size).unwrap();
            engine.open_device(id, &path, Mode { sparse, ..Mode::default() }).unwrap();
        }
        let extent = |device, offset, length| ExtentSpec { device, offset, length };
        let part = |n: u64| (n as u32 % 2, vec![extent(1, n * MIB, MIB)]);
        let volume = VolumeSpec {
            id: 1,
            uuid: [1; 16],
            name: "v".to_owned(),
            size: SIZE,
            partition_size: MIB,
            partitions: (0..SIZE / MIB).map(part).collect(),
            logs: vec![(1, vec![extent(2, 0, LOG_SIZE)])],
            log_rules: Default::default(),
            directory: self.0.join("volume"),
            manifests: Manifests::new(self.0.join("volume")),
            snapshots: snapshots.iter().map(|epoch| (*epoch, Default::default())).collect(),
            next_epoch: 1 + snapshots.len() as u64,
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin: None,
        };
        engine.add_volume(volume).unwrap();
        engine.export("v", "", 1, None).unwrap();
        let client = LocalClient::new(engine.exports.attach("v").unwrap());
        (engine, client)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn data(seed: u64) -> Vec<u8> {
    (0..SIZE).map(|at| (at / BLOCK * 7 + at % 251 + seed) as u8 | 1).collect()
}

/// Bytes for which the disk has space.
fn stored(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PROMPT_MAX, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes all blocks, takes a snapshot, writes them again, to slots, then trims all but every 16th one.
fn scatter(engine: &Engine, client: &LocalClient) -> Vec<u8> {
    client.write(0, &data(1), false).unwrap();
    let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
    engine.settle(1, epoch).unwrap();
    engine.flush(1).unwrap();
    let mut live = data(2);
    client.write(0, &live, false).unwrap();
    client.flush().unwrap();
    for first in (0..BLOCKS).step_by(KEPT as usize) {
        let (from, to) = ((first + 1) * BLOCK, (first + KEPT) * BLOCK);
        client.range(Verb::Trim, from, to - from, false).unwrap();
        live[from as usize..to as usize].fill(0);
    }
    live
}

fn is_near_live(path: &Path) -> bool {
    stored(path) <= SIZE / KEPT + MIB / 4
}

#[test]
fn scattered_slots_go_back_to_the_disk_without_a_flush() {
    let scratch = Scratch::new();
    let (engine, client) = scratch.engine(true, Vec::new());
    let live = scatter(&engine, &client);
    assert!(stored(&scratch.log()) >= SIZE, "the log's file is sparse");
    wait_until("they stay", || is_near_live(&scratch.log()));
    let read = client.read(0, SIZE).unwrap();
    assert!(read.data.as_slice() == live, "what is live was punched");
    engine.stop().unwrap();
}

#[test]
fn what_a_stop_left_is_punched_after_the_next_start() {
    let scratch = Scratch::new();
    let (engine, client) = scratch.engine(true, Vec::new());
    let live = scatter(&engine, &client);
    drop(client);
    engine.stop().unwrap();
    drop(engine);
    assert!(stored(&scratch.log()) >= SIZE / 2);
    let (engine, client) = scratch.engine(true, vec![1]);
    wait_until("they stay", || is_near_live(&scratch.log()));
    assert!(client.read(0, SIZE).unwrap().data.as_slice() == live, "what is live was punched");
    engine.stop().unwrap();
}

#[test]
fn a_log_that_is_not_sparse_keeps_its_space() {
    let scratch = Scratch::new();
    let (engine, client) = scratch.engine(false, Vec::new());
    let live = scatter(&engine, &client);
    let space = Arc::clone(&engine.volume(1).unwrap().space);
    wait_until("slots are not released", || space.usage().used == BLOCKS / KEPT);
    std::thread::sleep(Duration::from_secs(4)); // longer than a sweep of a sparse one waits
    assert!(stored(&scratch.log()) >= SIZE);
    assert!(client.read(0, SIZE).unwrap().data.as_slice() == live);
    engine.stop().unwrap();
}

#[test]
fn a_writer_that_uses_what_it_frees_meets_no_punch() {
    let scratch = Scratch::new();
    let (engine, client) = scratch.engine(true, Vec::new());
    let mut live = scatter(&engine, &client);
    let began = Instant::now();
    let mut round: u64 = 0;
    while began.elapsed() < Duration::from_secs(6) {
        round += 1;
        for block in (round % 5..BLOCKS).step_by(97) {
            let bytes = vec![(round + block) as u8 | 1; BLOCK as usize];
            client.write(block * BLOCK, &bytes, false).unwrap();
            live[(block * BLOCK) as usize..][..BLOCK as usize].copy_from_slice(&bytes);
        }
        if round.is_multiple_of(8) {
            client.flush().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(client.read(0, SIZE).unwrap().data.as_slice() == live, "a block was punched");
    engine.stop().unwrap();
}
