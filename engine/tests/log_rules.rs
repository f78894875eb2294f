//! Log rules: redirected blocks are only in the log areas that their partition's rule allows, and a write without a free
//! slot there waits or fails although other areas have some.
//!
//! Strategy          A volume of 8 partitions of 1 MiB on 2 processors, with log areas 1 to 3 of 4 MiB on one device.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use polyvol_engine::change_log::log_rules::{LogRule, LogRules, VolumeRules};
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::{Errno, ErrorKind};
use polyvol_engine::events::Event;
use polyvol_engine::io::device::Mode;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const PARTITIONS: u64 = 8;
const AREA_BLOCKS: u64 = 1024;
const PROMPT_MAX: Duration = Duration::from_secs(20);

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Served {
    engine: Arc<Engine>,
    client: Arc<LocalClient>,
    snapshots: Vec<(u64, LogRules)>,
    rules: LogRules,
    areas: u16,
    scratch: Scratch,
}

fn extent(device: u64, offset: u64, length: u64) -> ExtentSpec {
    ExtentSpec { device, offset, length }
}

fn area(number: u16) -> Vec<ExtentSpec> {
    vec![extent(2, u64::from(number) * 4 * MIB, 4 * MIB)]
}

/// These areas only, for some partitions or for all.
fn only(partitions: Option<(u32, u32)>, logs: &[u16]) -> LogRule {
    LogRule { partitions, processors: None, logs: logs.to_vec(), any: false }
}

impl Served {
    fn new(rules: LogRules) -> Served {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-log-rules-{}-{number}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(name));
        std::fs::create_dir(&scratch.0).unwrap();
        for (name, size) in [("base", PARTITIONS * MIB), ("log", 32 * MIB)] {
            std::fs::File::create(scratch.0.join(name)).unwrap().set_len(size).unwrap();
        }
        Served::start(scratch, rules, Vec::new(), 3)
    }

    fn start(
        scratch: Scratch,
        rules: LogRules,
        snapshots: Vec<(u64, LogRules)>,
        areas: u16,
    ) -> Served {
        let engine = Arc::new(Engine::new(2).unwrap());
        for (id, name) in [(1, "base"), (2, "log")] {
            engine.open_device(id, &scratch.0.join(name), Mode::SPARSE).unwrap();
        }
        let part = |n: u64| (n as u32 % 2, vec![extent(1, n * MIB, MIB)]);
        let next_epoch = snapshots.last().map_or(1, |(epoch, _)| epoch + 1);
        let spec = VolumeSpec {
            id: 1,
            uuid: [1; 16],
            name: "v".to_owned(),
            size: PARTITIONS * MIB,
            partition_size: MIB,
            partitions: (0..PARTITIONS).map(part).collect(),
            logs: (1..=areas).map(|number| (number, area(number))).collect(),
            log_rules: rules.clone(),
            directory: scratch.0.join("volume"),
            manifests: Manifests::new(scratch.0.join("volume")),
            snapshots: snapshots.clone(),
            next_epoch,
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin: None,
        };
        engine.add_volume(spec).unwrap();
        engine.export("v", "", 1, None).unwrap();
        let client = Arc::new(LocalClient::new(engine.exports.attach("v").unwrap()));
        Served { engine, client, snapshots, rules, areas, scratch }
    }

    fn restart(self) -> Served {
        let Served { engine, client, snapshots, rules, areas, scratch } = self;
        drop(client);
        engine.stop().unwrap();
        drop(engine);
        Served::start(scratch, rules, snapshots, areas)
    }

    fn cut(&mut self, rules: LogRules) -> u64 {
        let epoch = self.engine.cut(&[(1, rules.clone())]).unwrap().epochs[0].1;
        self.engine.settle(1, epoch).unwrap();
        self.engine.flush(1).unwrap();
        self.snapshots.push((epoch, rules));
        epoch
    }

    fn set_rules(&mut self, rules: Vec<LogRule>) {
        self.rules = LogRules::from(rules);
        self.engine.set_log_rules(1, &self.rules.clone().into()).unwrap();
    }

    /// Writes blocks of a partition, one by one; returns how many found a slot.
    fn write(&self, partition: u64, blocks: std::ops::Range<u64>) -> u64 {
        let write = |block: &u64| {
            let at = partition * MIB + block * BLOCK;
            match self.client.write(at, &[*block as u8; BLOCK as usize], false) {
                Ok(_) => true,
                Err(errno) => {
                    assert_eq!(errno, Errno::ENOSPC);
                    false
                }
            }
        };
        blocks.filter(write).count() as u64
    }

    /// Used slots of each area.
    fn used(&self) -> Vec<u64> {
        let space = &self.engine.volume(1).unwrap().space;
        space.logs().iter().map(|log| log.usage().used).collect()
    }
}

#[test]
fn partitions_use_the_areas_of_their_rule_and_fail_when_these_are_full() {
    let rules = vec![only(Some((0, 1)), &[2]), only(Some((2, 5)), &[3, 1])];
    let mut served = Served::new(rules.into());
    served.cut(LogRules::default());
    assert_eq!(served.write(0, 0..256) + served.write(1, 0..200), 456);
    assert_eq!(served.used(), [0, 456, 0]);
    for partition in 2..6 {
        assert_eq!(served.write(partition, 0..256), 256);
    }
    assert_eq!(served.used(), [0, 456, 1024], "in order: the first one is full");
    let second = served.cut(LogRules::default());
    assert_eq!(served.write(2, 0..100), 100);
    assert_eq!(served.used(), [100, 456, 1024], "then the next one");
    assert_eq!(served.write(1, 0..200), 200);
    assert_eq!(served.write(0, 0..256), 256);
    served.cut(LogRules::default());
    assert_eq!(served.used(), [100, 912, 1024]);
    assert_eq!(served.write(0, 0..256), AREA_BLOCKS - 912, "area 2 is full, area 1 is not");
    assert_eq!(served.write(6, 0..256), 256, "it has no rule");
    assert_eq!(served.used(), [356, 1024, 1024]);
    served.engine.drop_snapshot(1, second).unwrap();
    served.snapshots.remove(1);
    assert!(served.write(0, 112..256) > 0, "freed slots are used again");
    let mut served = served.restart();
    let before = served.used();
    served.cut(LogRules::default());
    let free = AREA_BLOCKS - before[1];
    assert!(free < 512, "two partitions fill it");
    let written = served.write(0, 0..256) + served.write(1, 0..256);
    assert_eq!(written, free, "the same after a restart");
    assert_eq!(served.used()[0], before[0]);
}

#[test]
fn the_rules_of_the_newest_snapshot_count_until_it_is_deleted() {
    let mut served = Served::new(vec![only(None, &[1])].into());
    let first = served.cut(LogRules::from(vec![only(None, &[2])]));
    served.write(0, 0..10);
    assert_eq!(served.used(), [0, 10, 0]);
    served = served.restart();
    served.write(1, 0..10);
    assert_eq!(served.used(), [0, 20, 0]);
    served.set_rules(vec![only(None, &[3])]);
    served.write(2, 0..10);
    assert_eq!(served.used(), [0, 30, 0], "the snapshot's count still");
    let second = served.cut(LogRules::default());
    served.write(3, 0..10);
    assert_eq!(served.used(), [0, 30, 10], "this snapshot has none: the volume's");
    served.engine.drop_snapshot(1, second).unwrap();
    served.write(4, 0..10);
    assert_eq!(served.used(), [0, 40, 10]);
    served.engine.drop_snapshot(1, first).unwrap();
    served.snapshots.clear();
    served.cut(LogRules::default());
    served.write(5, 0..10);
    assert_eq!(served.used()[2], 20);
}

#[test]
fn rules_may_be_for_processors_and_any_begins_with_another_area_on_each() {
    let rule = LogRule { processors: Some(vec![1]), ..only(None, &[3]) };
    let mut served = Served::new(vec![rule].into());
    served.cut(LogRules::default());
    for partition in 0..4 {
        served.write(partition, 0..10);
    }
    assert_eq!(served.used(), [20, 0, 20]);
    served.set_rules(Vec::new());
    for partition in 4..8 {
        served.write(partition, 0..10);
    }
    assert_eq!(served.used(), [40, 20, 20]);
}

#[test]
fn a_write_waits_for_its_own_areas_and_other_areas_neither_end_nor_prolong_that() {
    let mut served = Served::new(vec![only(Some((0, 5)), &[1]), only(None, &[2, 3])].into());
    served.engine.ask_when_full(1, true).unwrap();
    let epoch = served.cut(LogRules::default());
    for partition in 0..4 {
        assert_eq!(served.write(partition, 0..256), 256);
    }
    let client = Arc::clone(&served.client);
    let waiter = std::thread::spawn(move || client.write(4 * MIB, &[9; BLOCK as usize], false));
    assert_eq!(served.engine.events.next(PROMPT_MAX), Some(Event::LogFull(1)));
    assert_eq!(served.write(6, 0..256) + served.write(7, 0..256), 512);
    assert!(!waiter.is_finished());
    // Others go on writing in their areas: the part that waits is refused in spite of that.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (client, ended) = (Arc::clone(&served.client), Arc::clone(&stop));
    let busy = std::thread::spawn(move || {
        while !ended.load(Ordering::Acquire) {
            client.write(6 * MIB, &[7; 64 * BLOCK as usize], false).unwrap();
        }
    });
    served.engine.ask_when_full(1, false).unwrap();
    assert_eq!(waiter.join().unwrap().map(|_| ()), Err(Errno::ENOSPC));
    stop.store(true, Ordering::Release);
    busy.join().unwrap();
    // With other rules, or free slots, it is written.
    served.engine.ask_when_full(1, true).unwrap();
    let client = Arc::clone(&served.client);
    let waiter = std::thread::spawn(move || client.write(4 * MIB, &[9; BLOCK as usize], false));
    assert_eq!(served.engine.events.next(PROMPT_MAX), Some(Event::LogFull(1)));
    served.set_rules(vec![LogRule { any: true, ..only(Some((4, 4)), &[1]) }]);
    waiter.join().unwrap().unwrap();
    served.engine.drop_snapshot(1, epoch).unwrap();
}

#[test]
fn an_area_that_is_added_is_used_as_its_rules_say() {
    let mut served = Served::new(vec![only(None, &[1])].into());
    let rules = LogRules::from(vec![only(Some((0, 0)), &[4]), only(None, &[1])]);
    served.engine.add_log(1, 4, &area(4), &rules.clone().into()).unwrap();
    (served.rules, served.areas) = (rules.clone(), 4);
    let exists = served.engine.add_log(1, 4, &area(4), &rules.clone().into()).unwrap_err();
    assert_eq!(exists.kind, ErrorKind::Exists);
    served.cut(LogRules::default());
    served.write(0, 0..10);
    served.write(1, 0..10);
    assert_eq!(served.used(), [10, 0, 0, 10]);
    let served = served.restart();
    assert_eq!(served.used(), [10, 0, 0, 10]);
}

#[test]
fn rules_of_snapshots_have_a_new_area_at_once() {
    let mut served = Served::new(vec![only(None, &[1])].into());
    let first = served.cut(vec![only(None, &[2])].into());
    let second = served.cut(vec![only(None, &[3])].into());
    served.write(0, 0..10);
    let snapshots = vec![
        (first, LogRules::from(vec![only(None, &[2, 4])])),
        (second, vec![only(None, &[4])].into()),
        (second + 1, vec![only(None, &[1])].into()), // it does not exist
    ];
    let rules = VolumeRules { volume: served.rules.clone(), snapshots };
    served.engine.add_log(1, 4, &area(4), &rules).unwrap();
    (served.areas, served.snapshots) = (4, rules.snapshots[..2].to_vec());
    served.write(1, 0..20);
    assert_eq!(served.used(), [0, 0, 10, 20]);
    // Without the newest one those of the one before it are in force.
    served.engine.drop_snapshot(1, second).unwrap();
    served.snapshots.pop();
    served.write(2, 0..30);
    assert_eq!(served.used(), [0, 30, 10, 20]);
    // The empty list: those of the volume are.
    let none = VolumeRules { snapshots: vec![(first, LogRules::default())], ..rules };
    served.engine.set_log_rules(1, &none).unwrap();
    served.snapshots[0].1 = LogRules::default();
    served.write(3, 0..5);
    assert_eq!(served.used(), [5, 30, 10, 20]);
    assert_eq!(served.restart().used(), [5, 30, 10, 20]);
}

#[test]
fn wrong_rules_are_refused_and_change_nothing() {
    let mut served = Served::new(vec![only(None, &[1])].into());
    let wrong = [only(None, &[9]), only(None, &[]), only(None, &[2, 2]), only(Some((3, 2)), &[2])];
    for rule in wrong {
        let rules = LogRules::from(vec![rule]);
        assert_eq!(
            served.engine.set_log_rules(1, &rules.clone().into()).unwrap_err().kind,
            ErrorKind::NotFound
        );
        let of_snapshot = VolumeRules { snapshots: vec![(1, rules.clone())], ..Default::default() };
        let refused = served.engine.set_log_rules(1, &of_snapshot).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::NotFound);
        let cut = served.engine.cut(&[(1, rules.clone())]).unwrap_err();
        assert_eq!(cut.kind, ErrorKind::NotFound);
        assert!(cut.what.starts_with("volume v: "), "{}", cut.what);
        let added = served.engine.add_log(1, 5, &area(5), &rules.clone().into()).unwrap_err();
        assert_eq!(added.kind, ErrorKind::NotFound);
    }
    let epoch = served.cut(LogRules::default());
    assert_eq!(epoch, 1);
    served.write(0, 0..10);
    assert_eq!(served.used(), [10, 0, 0]);
}
