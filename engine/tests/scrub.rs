//! Checksums that do not match: the errors for hosts, the reports, and the result of a scrub.
//!
//! Strategy          One volume whose log area is a file that the tests change without the engine. Its slots are
//!                   allocated in order, so that a test knows the slot of a block.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::scrub::ScrubReport;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::io::device::Mode;
use polyvol_engine::processor::share::scrub::{Cursor, SeenBy};
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const EIO: Errno = Errno::EIO;

struct World {
    path: PathBuf,
    engine: Engine,
    host: Option<LocalClient>,
}

impl World {
    /// A volume of this size, in partitions of 4 MiB on two processors.
    fn new(size: u64) -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-scrub-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let engine = Engine::new(2).unwrap();
        for (id, name) in [(1, "base"), (2, "log")] {
            let path = path.join(name);
            std::fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
            engine.open_device(id, &path, Mode::SPARSE).unwrap();
        }
        let extent = |device, offset, length| vec![ExtentSpec { device, offset, length }];
        let partitions = (0..size / (4 * MIB))
            .map(|n| (n as u32 % 2, extent(1, n * 4 * MIB, 4 * MIB)))
            .collect();
        let spec = VolumeSpec {
            id: 1,
            uuid: [1; 16],
            name: "v".to_owned(),
            size,
            partition_size: 4 * MIB,
            partitions,
            logs: vec![(1, extent(2, 0, 64 * MIB))],
            log_rules: Default::default(),
            directory: path.join("volume"),
            manifests: Manifests::new(path.join("volume")),
            snapshots: Vec::new(),
            next_epoch: 1,
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin: None,
        };
        engine.add_volume(spec).unwrap();
        engine.export("v", "", 1, None).unwrap();
        let host = Some(LocalClient::new(engine.exports.attach("v").unwrap()));
        World { path, engine, host }
    }

    fn host(&self) -> &LocalClient {
        self.host.as_ref().unwrap()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.host().write(offset, bytes, false)
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
        self.host().read(offset, length).map(|request| request.data.as_slice().to_vec())
    }

    fn cut(&self) -> u64 {
        let epoch = self.engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
        self.engine.settle(1, epoch).unwrap();
        self.engine.flush(1).unwrap();
        epoch
    }

    /// Changes one byte of a slot.
    fn flip(&self, slot: u64) {
        let log = std::fs::OpenOptions::new().read(true).write(true).open(self.path.join("log"));
        let log = log.unwrap();
        let mut byte = [0];
        log.read_exact_at(&mut byte, slot * 4096 + 77).unwrap();
        log.write_all_at(&[byte[0] ^ 4], slot * 4096 + 77).unwrap();
    }

    /// Scrubs a partition in steps.
    fn scrub(&self, partition: u32) -> ScrubReport {
        let mut all = ScrubReport::default();
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor {
            let report = self.engine.scrub(1, partition, from, 64 << 10).unwrap();
            all.bytes += report.bytes;
            all.skipped_bytes += report.skipped_bytes;
            all.bad.extend(report.bad);
            cursor = report.next;
        }
        all
    }

    fn bad(&self) -> Vec<(u32, u32)> {
        let listed = self.engine.volume(1).unwrap().bad.listed();
        listed.iter().map(|bad| (bad.partition, bad.block)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.host = None;
        let _ = self.engine.stop();
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[test]
fn only_a_block_that_does_not_match_is_eio_and_overwriting_it_completely_repairs_it() {
    let world = World::new(4 * MIB);
    world.cut();
    world.write(0, &[1; 65536]).unwrap();
    world.flip(3);
    assert_eq!(world.read(3 * 4096, 4096), Err(EIO));
    assert_eq!(world.read(0, 2 * MIB), Err(EIO), "by a pool thread");
    assert_eq!(world.read(4 * 4096, 4096).unwrap(), [1; 4096]);
    assert_eq!(world.read(0, 3 * 4096).unwrap(), [1; 3 * 4096]);
    assert_eq!(world.bad(), [(0, 3)]);
    let volume = world.engine.volume(1).unwrap();
    assert_eq!(volume.bad.found(), [(2, 2)]);
    assert_eq!(volume.bad.listed()[0].times, 2);
    assert_eq!(world.write(3 * 4096 + 10, &[2; 10]), Err(EIO), "the rest of it is not available");
    assert_eq!(world.read(3 * 4096, 4096), Err(EIO));
    world.write(3 * 4096, &[2; 4096]).unwrap();
    assert_eq!(world.read(3 * 4096, 4096).unwrap(), [2; 4096]);
    assert_eq!(world.bad(), []);
    assert_eq!(volume.bad.found(), [(2, 4)], "what was found stays counted");
}

#[test]
fn a_scrub_reads_each_slot_once_and_reports_the_versions_that_see_a_bad_one() {
    let world = World::new(8 * MIB);
    let first = world.cut();
    world.write(0, &[1; 65536]).unwrap(); // slots 0 to 15
    let second = world.cut();
    world.write(0, &[2; 4096]).unwrap(); // slot 1024: single slots are allocated in another chunk
    let third = world.cut();
    world.write(4096, &[3; 8192]).unwrap(); // slots 1025 and 1026
    let clean = world.scrub(0);
    assert_eq!((clean.bytes, clean.bad.len()), (19 * 4096, 0));
    assert_eq!(world.scrub(1).bytes, 0);
    for slot in [0, 1, 5, 1024, 1026] {
        world.flip(slot);
    }
    let report = world.scrub(0);
    assert_eq!(report.bytes, 19 * 4096);
    let mut found: Vec<_> =
        report.bad.iter().map(|bad| (bad.block, bad.seen_by.clone(), bad.errno)).collect();
    found.sort_by_key(|(block, seen_by, _)| (*block, seen_by.epochs.clone()));
    let seen = |live, epochs: &[u64]| SeenBy { live, epochs: epochs.to_vec() };
    let expected = [
        (0, seen(false, &[second]), None),
        (0, seen(true, &[third]), None),
        (1, seen(false, &[second, third]), None),
        (2, seen(true, &[]), None),
        (5, seen(true, &[second, third]), None),
    ];
    assert_eq!(found, expected);
    assert_eq!(world.bad().len(), 5);
    // The slots that only a snapshot sees are freed with it.
    world.engine.drop_snapshot(1, second).unwrap();
    world.engine.drop_snapshot(1, first).unwrap();
    assert_eq!(world.bad(), [(0, 0), (0, 1), (0, 2), (0, 5)]);
    for slot in [1, 5, 1024, 1026] {
        world.flip(slot);
    }
    assert_eq!(world.scrub(0).bad.len(), 0);
    assert_eq!(world.bad(), [], "they match again");
    assert!(world.engine.scrub(1, 9, Cursor::default(), 1).is_err());
}

#[test]
fn a_scrub_of_many_small_steps_finds_everything_in_a_large_partition() {
    let world = World::new(4 * MIB);
    for round in 0..6 {
        world.cut();
        world.write(0, &vec![round; 4 * MIB as usize]).unwrap();
    }
    for slot in (0..6 * 1024).step_by(97) {
        world.flip(slot);
    }
    let report = world.scrub(0);
    assert_eq!((report.bytes, report.bad.len()), (24 * MIB, (6 * 1024_usize).div_ceil(97)));
    assert_eq!(world.bad().len(), report.bad.len());
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn slots_that_are_freed_and_reused_during_a_scrub_are_never_reported() {
    let world = World::new(4 * MIB);
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        // Also if an assertion fails: otherwise the other thread would never end.
        let _stop = StopOnDrop(stop);
        let world = &world;
        scope.spawn(move || {
            let mut kept = Vec::new();
            for round in 0u32.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if round % 8 == 0 {
                    kept.push(world.cut());
                }
                if kept.len() > 2 {
                    world.engine.drop_snapshot(1, kept.remove(0)).unwrap();
                }
                for block in 0..64 {
                    let at = u64::from(block * 7 % 64) * 4096;
                    world.write(at, &[(round + block) as u8; 4096]).unwrap();
                }
                world.host().flush().unwrap();
            }
        });
        let mut bytes = 0;
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(3) {
            let report = world.scrub(0);
            assert!(report.bad.is_empty(), "{:?}", report.bad);
            bytes += report.bytes;
        }
        assert!(bytes > MIB);
    });
    assert_eq!(world.bad(), []);
}
