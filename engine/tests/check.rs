//! Check: slots that are used twice, are outside their log, or do not match their checksums.
//!
//! Strategy          The test writes checkpoints, with maps that no engine would write.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use polyvol_engine::block_map::history::History;
use polyvol_engine::block_map::place::Place;
use polyvol_engine::block_map::versions::{Change, Versions};
use polyvol_engine::change_log::checkpoint::{self, Contents};
use polyvol_engine::change_log::files::Identity;
use polyvol_engine::checksum;
use polyvol_engine::engine::check::{CheckReport, check_volume};
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::system::System;
use polyvol_engine::system::linux::Linux;
use polyvol_engine::units::SlotIndex;

const MIB: u64 = 1 << 20;

struct World {
    path: PathBuf,
    system: Arc<dyn System>,
}

impl World {
    fn new() -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-check-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("volume")).unwrap();
        std::fs::File::create(path.join("log")).unwrap().set_len(4 * MIB).unwrap();
        World { path, system: Arc::new(Linux) }
    }

    /// Two partitions of 1 MiB on two processors, one log area of 1024 slots.
    fn spec(&self) -> VolumeSpec {
        let extent = |offset, length| vec![ExtentSpec { device: 1, offset, length }];
        VolumeSpec {
            id: 1,
            uuid: [1; 16],
            name: "v".to_owned(),
            size: 2 * MIB,
            partition_size: MIB,
            partitions: vec![(0, extent(0, MIB)), (1, extent(MIB, MIB))],
            logs: vec![(1, vec![ExtentSpec { device: 2, offset: 0, length: 4 * MIB }])],
            log_rules: Default::default(),
            directory: self.path.join("volume"),
            manifests: Manifests::new(self.path.join("volume")),
            snapshots: vec![(1, Default::default())],
            next_epoch: 2,
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin: None,
        }
    }

    /// Writes a processor's checkpoint: its partition has these blocks in these slots, of zeroes by their checksums.
    fn checkpoint(&self, processor: u32, places: &[(u32, Place)]) {
        let mut versions = Versions::new(256);
        versions.freeze_before(2, &[1]);
        let zeroes = checksum::crc32c(&[0; 4096]);
        for (block, place) in places {
            let sums = [zeroes];
            let change = Change {
                epoch: 2,
                first: *block,
                count: 1,
                place: *place,
                checksums: &sums,
                seq: 1,
            };
            versions.apply(change, &History::default(), |_, _, _| {});
        }
        let identity = Identity {
            system: Arc::clone(&self.system),
            directory: self.path.join("volume"),
            manifest: self.path.join("volume").join(format!("p{processor:03}.manifest")),
            volume_uuid: [1; 16],
            processor,
            boot_id: [0; 16],
        };
        let contents = Contents {
            first_seq: 2,
            epoch: 2,
            partitions: vec![(processor, versions)],
            ..Contents::first()
        };
        checkpoint::write(&identity.checkpoint_path(1), &identity, 1, contents).unwrap();
    }

    fn check(&self, data: bool) -> CheckReport {
        let devices = BTreeMap::from([(2, self.path.join("log"))]);
        check_volume(&self.system, &self.spec(), &devices, data).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[test]
fn a_slot_that_two_processors_use_is_detected() {
    let world = World::new();
    world.checkpoint(0, &[(0, Place::slot(1, SlotIndex(7))), (9, Place::slot(1, SlotIndex(8)))]);
    world.checkpoint(1, &[(3, Place::slot(1, SlotIndex(8)))]);
    let report = world.check(true);
    assert_eq!(report.problems, ["partition 1 block 3 is in slot 8 of log area 1, used twice"]);
    assert_eq!((report.slots, report.checked_bytes), (3, 3 * 4096));
}

#[test]
fn nonexistent_slots_are_detected_and_not_read() {
    let world = World::new();
    world.checkpoint(0, &[(0, Place::slot(1, SlotIndex(1023))), (1, Place::slot(2, SlotIndex(0)))]);
    world.checkpoint(1, &[(3, Place::slot(1, SlotIndex(1024)))]);
    let report = world.check(true);
    let expected = [
        "partition 0 block 1 is in log area 2, which does not exist",
        "partition 1 block 3 is in slot 1024, beyond log area 1",
    ];
    assert_eq!(report.problems, expected);
    assert_eq!(report.checked_bytes, 4096);
}

#[test]
fn contents_are_checked_when_asked_for_and_a_missing_device_is_left_out() {
    let world = World::new();
    world.checkpoint(0, &[(5, Place::slot(1, SlotIndex(2)))]);
    std::fs::write(world.path.join("log"), vec![1; 4 * MIB as usize]).unwrap();
    assert!(world.check(false).problems.is_empty());
    let report = world.check(true);
    let expected = "partition 0 block 5, slot 2 of log area 1: its checksum does not match";
    assert_eq!(report.problems, [expected]);
    // A caller that omits the path has reported why; a device that cannot be opened is reported here.
    let report = check_volume(&world.system, &world.spec(), &BTreeMap::new(), true).unwrap();
    assert_eq!((report.problems.len(), report.checked_bytes), (0, 0));
    std::fs::remove_file(world.path.join("log")).unwrap();
    let report = world.check(true);
    assert_eq!((report.problems.len(), report.checked_bytes), (1, 0));
    assert!(report.problems[0].contains("cannot be opened: no such file"), "{report:?}");
}

#[test]
fn more_problems_than_are_reported_are_counted() {
    let world = World::new();
    let places: Vec<_> =
        (0..256).map(|block| (block, Place::slot(9, SlotIndex(u64::from(block))))).collect();
    world.checkpoint(0, &places);
    world.checkpoint(1, &places);
    let report = world.check(false);
    assert_eq!((report.problems.len(), report.more_problems), (100, 412));
}
