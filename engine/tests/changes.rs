//! Changes: reported exactly where a few blocks were written, page by page, and in a time that depends on the amount of
//! change.
//!
//! The use of snapshots is measured in the same way.
//!
//! Strategy          A sparse volume of 64 GiB over a file with only the written blocks. The model test checks that no
//!                   change is ever missed.

use std::path::PathBuf;
use std::time::Instant;

use polyvol_engine::block_map::usage::VersionUse;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::compare::{ChangeTotal, Changes};
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::ErrorKind;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const PARTITION: u64 = 64 * MIB;
const SIZE: u64 = 1024 * PARTITION;

struct Served {
    directory: PathBuf,
    engine: Engine,
    client: Option<LocalClient>,
}

impl Served {
    fn new(name: &str) -> Served {
        let directory =
            std::env::temp_dir().join(format!("polyvol-changes-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let engine = Engine::new(2).unwrap();
        for (id, name, size) in [(1, "base", SIZE), (2, "log", 256 * MIB)] {
            let path = directory.join(name);
            std::fs::File::create(&path).unwrap().set_len(size).unwrap();
            engine.open_device(id, &path, Mode::SPARSE).unwrap();
        }
        let extent = |device, offset, length| ExtentSpec { device, offset, length };
        let partitions = (0..SIZE / PARTITION)
            .map(|n| (n as u32 % 2, vec![extent(1, n * PARTITION, PARTITION)]))
            .collect();
        let spec = VolumeSpec {
            id: 1,
            uuid: [1; 16],
            name: "v".to_owned(),
            size: SIZE,
            partition_size: PARTITION,
            partitions,
            logs: vec![(1, vec![extent(2, 0, 256 * MIB)])],
            log_rules: Default::default(),
            directory: directory.join("volume"),
            manifests: Manifests::new(directory.join("volume")),
            snapshots: Vec::new(),
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin: None,
            next_epoch: 1,
        };
        engine.add_volume(spec).unwrap();
        engine.export("v", "", 1, None).unwrap();
        let client = Some(LocalClient::new(engine.exports.attach("v").unwrap()));
        Served { directory, engine, client }
    }

    fn write(&self, offset: u64, length: u64) {
        self.client.as_ref().unwrap().write(offset, &vec![7; length as usize], false).unwrap();
    }

    fn cut(&self) -> u64 {
        let epoch = self.engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
        self.engine.settle(1, epoch).unwrap();
        self.engine.flush(1).unwrap();
        epoch
    }

    fn changes(&self, since: u64, until: Option<u64>) -> Vec<(u64, u64)> {
        self.engine.changes(1, since, until, 0, usize::MAX).unwrap().extents
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.client = None;
        let _ = self.engine.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn writes_zeroes_and_trims_are_reported_and_nothing_else() {
    let served = Served::new("exact");
    served.write(0, 8 * MIB);
    let first = served.cut();
    assert_eq!(served.changes(first, None), []);
    served.write(PARTITION - 4096, 8192); // over a partition's border
    served.write(5 * PARTITION + 100, 1); // a part of a block
    let client = served.client.as_ref().unwrap();
    client.range(Verb::Zero { no_hole: false, fast: false }, MIB, 8192, false).unwrap();
    let second = served.cut();
    let between = [(MIB, 8192), (PARTITION - 4096, 8192), (5 * PARTITION, 4096)];
    assert_eq!(served.changes(first, Some(second)), between);
    assert_eq!(served.changes(second, None), []);
    client.range(Verb::Trim, 2 * MIB, 4096, false).unwrap();
    served.write(5 * PARTITION, 4096); // redirected before, and redirected again
    assert_eq!(served.changes(second, None), [(2 * MIB, 4096), (5 * PARTITION, 4096)]);
    assert_eq!(served.changes(first, Some(second)), between);
    let since_first = [&[between[0], (2 * MIB, 4096)], &between[1..]].concat();
    assert_eq!(served.changes(first, None), since_first);
    let total = served.engine.change_total(1, first, None).unwrap();
    assert_eq!(total, ChangeTotal { extents: 4, bytes: 8192 + 4096 + 8192 + 4096 });
}

#[test]
fn pages_follow_each_other_without_a_gap() {
    let served = Served::new("pages");
    let since = served.cut();
    for n in 0..50 {
        served.write(n * 7 * MIB, 4096);
    }
    let whole = served.changes(since, None);
    assert_eq!(whole.len(), 50);
    let (mut from, mut found) = (Some(0), Vec::new());
    while let Some(at) = from {
        let page = served.engine.changes(1, since, None, at, 8).unwrap();
        let Changes { extents, next } = page;
        assert!(extents.len() <= 8);
        found.extend(extents);
        from = next;
    }
    assert_eq!(found, whole);
}

#[test]
fn a_deleted_snapshot_is_not_replaced_by_a_later_one_in_a_comparison() {
    let served = Served::new("gone");
    let first = served.cut();
    served.write(0, 4096);
    let second = served.cut();
    served.engine.drop_snapshot(1, first).unwrap();
    for (since, until) in [(first, None), (first, Some(second)), (second, Some(first)), (0, None)] {
        let refused = served.engine.changes(1, since, until, 0, 10).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::NotFound);
    }
}

#[test]
fn the_time_depends_on_the_amount_of_change() {
    let served = Served::new("time");
    // A map in every partition, a change in a few.
    for n in 0..SIZE / PARTITION {
        served.write(n * PARTITION, 4096);
    }
    let first = served.cut();
    for n in 0..SIZE / PARTITION {
        served.write(n * PARTITION, 4096);
    }
    let second = served.cut();
    for n in 0..10 {
        served.write(n * 3 * PARTITION, 4096);
    }
    let measure = |since| {
        let mut best = u128::MAX;
        for _ in 0..60 {
            let began = Instant::now();
            let found = served.changes(since, None).len();
            best = best.min(began.elapsed().as_nanos());
            assert_eq!(found as u64, if since == second { 10 } else { SIZE / PARTITION });
        }
        best
    };
    let (few, many) = (measure(second), measure(first));
    // Both query the processors, whose time depends on the load of the machine.
    assert!(few < many, "10 of 1024 partitions took {few} ns, all took {many} ns");
}

#[test]
fn the_use_of_a_snapshot_is_what_deleting_it_frees() {
    let served = Served::new("usage");
    served.write(0, 40 * 4096);
    let epochs: Vec<u64> = (0..6)
        .map(|n| {
            // Every snapshot has 10 exclusive blocks, and some shared ones.
            served.write(0, 10 * 4096);
            served.write((3 + n) * PARTITION, 4096);
            served.cut()
        })
        .collect();
    served.write(0, 20 * 4096);
    let before = served.engine.snapshot_use(1).unwrap();
    assert_eq!(before.snapshots.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), epochs);
    let again = served.engine.snapshot_use(1).unwrap();
    assert_eq!((&again.snapshots, again.live_slots), (&before.snapshots, before.live_slots));
    assert!(before.measured > 0 && again.measured == 0, "frozen maps are measured once");
    for epoch in [epochs[2], epochs[0], epochs[5], epochs[1]] {
        let found = served.engine.snapshot_use(1).unwrap();
        let VersionUse { only_slots, only_bases, .. } =
            found.snapshots.iter().find(|(one, _)| *one == epoch).unwrap().1;
        assert!(only_slots + only_bases >= 10);
        let used = served.engine.volume(1).unwrap().space.usage().used;
        let freed = served.engine.drop_snapshot(1, epoch).unwrap();
        assert_eq!(freed, (only_slots + only_bases) * 4096);
        assert_eq!(used - served.engine.volume(1).unwrap().space.usage().used, only_slots);
    }
    // The rest at once: then only the live volume refers to slots.
    let live = served.engine.snapshot_use(1).unwrap().live_slots;
    served.engine.drop_snapshots(1, &epochs).unwrap();
    let after = served.engine.snapshot_use(1).unwrap();
    assert_eq!((after.snapshots.len(), after.live_slots), (0, live));
    assert_eq!(served.engine.volume(1).unwrap().space.usage().used, live);
}
