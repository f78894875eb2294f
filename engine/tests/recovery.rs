//! Recovery of many redirected blocks: how long it takes, and that the journal stays small.
//!
//! Strategy          A volume over sparse files, its log area hollow; hosts' writes in order and at random. After a
//!                   kill the next engine has the files as they were at one instant before the stop. The same with 25
//!                   million blocks: `cargo run --release --no-default-features --example recovery -- DIRECTORY`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::copied;
use crate::hollow::{Hollow, shuffled};
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::io::device::Mode;
use polyvol_engine::limits::{CHECKPOINT_BYTES_MIN, SEGMENT_BYTES};
use polyvol_engine::system::linux::Linux;
use polyvol_engine::volume::local_client::LocalClient;

const BLOCK: u64 = 4096;
const PARTITION: u64 = 4 << 20;
const PROCESSORS: u64 = 2;
/// Lower than in production, so that both are reached many times.
const CHECKPOINT: u64 = 256 << 10;
const SEGMENT: u64 = 128 << 10;

struct World {
    directory: PathBuf,
    volume: u64,
    log: u64,
}

impl World {
    fn new(name: &str, volume: u64, log: u64) -> World {
        CHECKPOINT_BYTES_MIN.store(CHECKPOINT, Ordering::Relaxed);
        SEGMENT_BYTES.store(SEGMENT as usize, Ordering::Relaxed);
        let name = format!("polyvol-recovery-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        for (name, size) in [("base", volume), ("log", log)] {
            std::fs::File::create(directory.join(name)).unwrap().set_len(size).unwrap();
        }
        World { directory, volume, log }
    }

    fn serve(&self, snapshots: &[u64]) -> (Engine, LocalClient) {
        let engine = Engine::with_system(Arc::new(Hollow(Linux)), PROCESSORS as u32).unwrap();
        for (id, name) in [(1, "base"), (2, "log")] {
            engine.open_device(id, &self.directory.join(name), Mode::SPARSE).unwrap();
        }
        let part = |number: u64| {
            let extent = ExtentSpec { device: 1, offset: number * PARTITION, length: PARTITION };
            ((number % PROCESSORS) as u32, vec![extent])
        };
        let spec = VolumeSpec {
            id: 1,
            uuid: [7; 16],
            name: "v".to_owned(),
            size: self.volume,
            partition_size: PARTITION,
            partitions: (0..self.volume / PARTITION).map(part).collect(),
            logs: vec![(1, vec![ExtentSpec { device: 2, offset: 0, length: self.log }])],
            log_rules: Default::default(),
            directory: self.directory.join("volume"),
            manifests: Manifests::new(self.directory.join("volume")),
            next_epoch: snapshots.last().map_or(1, |last| last + 1),
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin: None,
            snapshots: snapshots.iter().map(|epoch| (*epoch, Default::default())).collect(),
        };
        engine.add_volume(spec).unwrap();
        engine.export("v", "", 1, None).unwrap();
        let client = LocalClient::new(engine.exports.attach("v").unwrap());
        (engine, client)
    }

    fn cut(&self, engine: &Engine) {
        let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
        assert_eq!(epoch, 1);
        engine.settle(1, epoch).unwrap();
        engine.flush(1).unwrap();
    }

    fn kill(&self, engine: Engine) {
        let (volume, killed) = (self.directory.join("volume"), self.directory.join("killed"));
        copied::copy_directory(&volume, &killed);
        engine.stop().unwrap();
        std::fs::remove_dir_all(&volume).unwrap();
        std::fs::rename(&killed, &volume).unwrap();
    }

    fn state_bytes(&self) -> u64 {
        bytes_in(&self.directory.join("volume"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().metadata().map_or(0, |found| found.len())).sum()
}

fn mapped(engine: &Engine) -> u64 {
    let partitions = engine.partitions(1, 0..u32::MAX).unwrap();
    partitions.iter().map(|one| u64::from(one.places.slots + one.places.zeroes)).sum()
}

#[test]
fn half_a_million_redirected_blocks_are_served_again_soon_after_a_kill_and_after_a_stop() {
    let blocks = 1 << 19;
    let world = World::new("many", blocks * BLOCK, blocks * BLOCK + (64 << 20));
    let (engine, client) = world.serve(&[]);
    world.cut(&engine);
    for n in 0..blocks {
        client.write(shuffled(n, 19) * BLOCK, &[0; BLOCK as usize], false).unwrap();
    }
    drop(client);
    world.kill(engine);
    for stopped in [false, true] {
        let began = Instant::now();
        let (engine, client) = world.serve(&[1]);
        let read = client.read(77 * BLOCK, BLOCK).unwrap();
        let took = began.elapsed();
        assert!(read.data.as_slice().iter().all(|byte| *byte == 0));
        assert_eq!(mapped(&engine), blocks);
        assert!(took < Duration::from_secs(5), "stopped before: {stopped}: {took:?}");
        client.write(77 * BLOCK, &[0; BLOCK as usize], false).unwrap();
        drop(client);
        engine.stop().unwrap();
    }
}

#[test]
fn the_journal_of_a_busy_volume_with_a_snapshot_stays_small_and_so_does_its_log() {
    let (hot, slots) = (2_000, 8_192);
    let world = World::new("busy", 32 << 20, slots * BLOCK);
    let (engine, client) = world.serve(&[]);
    world.cut(&engine);
    // For each processor: the newest checkpoint and the next one, which are small here; records appended until the next
    // one begins, and while it is written; and the prepared segment.
    let each = 2 * (hot * 16 + (64 << 10)) + 4 * CHECKPOINT + 4 * SEGMENT;
    let most = PROCESSORS * each;
    let mut highest = 0;
    for n in 0..400_000u64 {
        let block = shuffled(n % 8_192, 13) % hot;
        client.write(block * BLOCK, &[0; BLOCK as usize], false).unwrap();
        if n % 1_000 == 0 {
            highest = highest.max(world.state_bytes());
            let space = engine.volume(1).unwrap().space.usage();
            assert!(space.used <= hot + 1, "{space:?}");
        }
    }
    // Each record is 56 bytes: the journal was rewritten many times.
    assert!(400_000 * 56 > 4 * most);
    assert!(highest <= most, "{highest} bytes in the state directory, more than {most}");
    drop(client);
    engine.stop().unwrap();
}
