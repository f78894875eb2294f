//! Rollbacks: invalid calls, and catalogs that contradict the journals, which the engine refuses.
//!
//! Strategy          A volume with a partition on each of two processors. A kill is a copy of the journals that is
//!                   restored. Each test states what would be lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::copied;
use crate::faulty::{Faulty, Rules};
use polyvol_engine::block_map::history::Rollback;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::{Error, ErrorKind};
use polyvol_engine::io::device::Mode;
use polyvol_engine::limits::SEGMENT_BYTES;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const V: u64 = 1;
/// About ninety records.
const SEGMENT: usize = 12 << 10;

/// A state directory with its catalog, and the engine that serves it.
struct World {
    directory: PathBuf,
    rules: Rules,
    snapshots: Vec<u64>,
    rollbacks: Vec<Rollback>,
    next_epoch: u64,
    engine: Option<Engine>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.rules.lock().unwrap().clear();
        drop(self.engine.take().map(|engine| engine.stop()));
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl World {
    fn new() -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SEGMENT_BYTES.store(SEGMENT, Ordering::Relaxed);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-rollbacks-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        for (name, size) in [("base", 3 * MIB), ("log", 16 * MIB)] {
            std::fs::File::create(directory.join(name)).unwrap().set_len(size).unwrap();
        }
        let (snapshots, rollbacks) = (Vec::new(), Vec::new());
        let rules = Rules::default();
        let mut world =
            World { directory, rules, snapshots, rollbacks, next_epoch: 1, engine: None };
        world.start().unwrap();
        world
    }

    fn spec(&self) -> VolumeSpec {
        let extent = |device, offset, length| ExtentSpec { device, offset, length };
        let part = |n: u64| ((n % 2) as u32, vec![extent(1, n * MIB, MIB)]);
        VolumeSpec {
            id: V,
            uuid: [1; 16],
            name: "v".to_owned(),
            size: 2 * MIB,
            partition_size: MIB,
            partitions: (0..2).map(part).collect(),
            logs: vec![(1, vec![extent(2, 0, 16 * MIB)])],
            log_rules: Default::default(),
            directory: self.volume(),
            manifests: Manifests::new(self.volume()),
            snapshots: self.snapshots.iter().map(|epoch| (*epoch, Default::default())).collect(),
            next_epoch: self.next_epoch,
            bounds: Vec::new(),
            rollbacks: self.rollbacks.iter().map(|one| (*one, 2 * MIB)).collect(),
            origin: None,
        }
    }

    fn volume(&self) -> PathBuf {
        self.directory.join("volume")
    }

    fn start(&mut self) -> Result<(), Error> {
        let engine =
            Engine::with_system(Arc::new(Faulty { rules: Arc::clone(&self.rules) }), 4).unwrap();
        for (id, name) in [(1, "base"), (2, "log")] {
            engine.open_device(id, &self.directory.join(name), Mode::SPARSE).unwrap();
        }
        engine.add_volume(self.spec())?;
        self.engine = Some(engine);
        Ok(())
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// The process ends as after SIGKILL: journals and checkpoints stay as they are now.
    fn kill(&mut self) {
        let saved = self.directory.join("saved");
        copied::copy_directory(&self.volume(), &saved);
        self.put_back(&saved);
    }

    /// The process ends, and `saved` replaces the volume's directory.
    fn put_back(&mut self, saved: &Path) {
        self.engine.take().unwrap().stop().unwrap();
        std::fs::remove_dir_all(self.volume()).unwrap();
        std::fs::rename(saved, self.volume()).unwrap();
    }

    /// The error of the next start, which must refuse.
    fn refused(&mut self) -> String {
        let error = self.start().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        error.what
    }

    /// Writes this byte to some blocks of both partitions.
    fn write(&self, byte: u8) {
        let engine = self.engine();
        engine.export("v", "", V, None).unwrap();
        let client = LocalClient::new(engine.exports.attach("v").unwrap());
        for block in [3, 256 + 3] {
            client.write(block * BLOCK, &[byte; 2 * BLOCK as usize], false).unwrap();
        }
        drop(client);
        engine.exports.remove("v").unwrap();
    }

    /// The byte in both partitions, live or in a snapshot.
    fn read(&self, epoch: Option<u64>) -> u8 {
        let engine = self.engine();
        engine.export("r", "", V, epoch).unwrap();
        let client = LocalClient::new(engine.exports.attach("r").unwrap());
        let bytes: Vec<u8> = [3, 256 + 3]
            .into_iter()
            .flat_map(|block| {
                client.read(block * BLOCK, 2 * BLOCK).unwrap().data.as_slice().to_vec()
            })
            .collect();
        drop(client);
        engine.exports.remove("r").unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "partitions differ");
        bytes[0]
    }

    /// A durable cut that the catalog does not have.
    fn cut(&mut self) -> u64 {
        let epoch = self.engine().cut(&[(V, Default::default())]).unwrap().epochs[0].1;
        self.engine().settle(V, epoch).unwrap();
        self.engine().flush(V).unwrap();
        epoch
    }

    fn snapshot(&mut self) -> u64 {
        let epoch = self.cut();
        self.snapshots.push(epoch);
        self.next_epoch = epoch + 1;
        epoch
    }

    /// The catalog's part of a rollback.
    fn commit_rollback(&mut self, to: u64) -> Rollback {
        let rollback = Rollback { at: self.cut() + 1, to };
        self.rollbacks.push(rollback);
        self.next_epoch = rollback.at + 1;
        rollback
    }

    /// A complete rollback, without a snapshot of the line that was left.
    fn roll_back(&mut self, to: u64) -> Rollback {
        let rollback = self.commit_rollback(to);
        self.engine().roll_back(V, rollback).unwrap();
        self.engine().drop_snapshot(V, rollback.at - 1).unwrap();
        rollback
    }

    fn forget_in_catalog(&mut self, at: u64) {
        self.rollbacks.retain(|one| one.at != at);
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind
}

#[test]
fn a_rollback_that_no_checkpoint_covers_is_neither_offered_nor_forgotten() {
    let mut world = World::new();
    world.write(1);
    let s = world.snapshot();
    world.write(2);
    let one = world.roll_back(s);
    let engine = world.engine();
    assert_eq!(engine.unneeded_rollback(V).unwrap(), None);
    assert_eq!(kind(engine.forget_rollback(V, one.at)), ErrorKind::Busy);
    assert_eq!(kind(engine.forget_rollback(V, one.at - 1)), ErrorKind::Busy);
    world.write(3);
    world.kill();
    world.start().unwrap(); // it has not been forgotten
    assert_eq!((world.read(None), world.read(Some(s))), (3, 1));
    world.engine().cover_rollbacks(V).unwrap();
    let two = world.roll_back(s);
    assert_eq!(kind(world.engine().forget_rollback(V, two.at)), ErrorKind::Busy);
    assert_eq!(world.engine().unneeded_rollback(V).unwrap(), Some(one.at));
    world.forget_in_catalog(one.at);
    world.engine().forget_rollback(V, one.at).unwrap();
    assert_eq!(world.engine().unneeded_rollback(V).unwrap(), None);
    world.kill();
    world.start().unwrap();
    assert_eq!((world.read(None), world.read(Some(s))), (1, 1));
}

#[test]
fn a_checkpoint_covers_a_rollback_only_after_its_rename() {
    let mut world = World::new();
    world.write(1);
    let s = world.snapshot();
    world.write(2);
    let one = world.roll_back(s);
    world.rules.lock().unwrap().insert((".checkpoint", "rename"));
    let engine = world.engine.take().unwrap();
    let two = std::thread::scope(|scope| {
        let writing = scope.spawn(|| engine.checkpoint(V));
        let named = |name: &str| {
            let files = std::fs::read_dir(world.volume()).unwrap();
            files
                .filter(|file| file.as_ref().unwrap().path().to_string_lossy().ends_with(name))
                .count()
        };
        while named(".checkpoint.new") < 1 {
            std::thread::yield_now();
        }
        assert_eq!(engine.unneeded_rollback(V).unwrap(), None);
        let epoch = engine.cut(&[(V, Default::default())]).unwrap().epochs[0].1;
        engine.settle(V, epoch).unwrap();
        engine.flush(V).unwrap();
        let two = Rollback { at: epoch + 1, to: s };
        // Shares roll back as soon as their checkpoint is done, before that is reported.
        let shared = &engine;
        let rolling = scope.spawn(move || shared.roll_back(V, two));
        world.rules.lock().unwrap().clear();
        writing.join().unwrap().unwrap();
        rolling.join().unwrap().unwrap();
        engine.drop_snapshot(V, two.at - 1).unwrap();
        two
    });
    world.engine = Some(engine);
    world.rollbacks.push(two);
    world.next_epoch = two.at + 1;
    assert_eq!(world.engine().unneeded_rollback(V).unwrap(), Some(one.at));
    assert_eq!(kind(world.engine().forget_rollback(V, two.at)), ErrorKind::Busy);
}

#[test]
fn a_rollback_that_a_snapshot_needs_is_not_forgotten() {
    let mut world = World::new();
    world.write(1);
    let s = world.snapshot();
    world.write(2);
    let left = world.snapshot();
    let rollback = world.commit_rollback(s);
    world.engine().roll_back(V, rollback).unwrap();
    world.engine().drop_snapshot(V, rollback.at - 1).unwrap();
    world.engine().checkpoint(V).unwrap();
    assert_eq!(world.engine().unneeded_rollback(V).unwrap(), None);
    assert_eq!(kind(world.engine().forget_rollback(V, rollback.at)), ErrorKind::Busy);
    assert_eq!((world.read(None), world.read(Some(left))), (1, 2));
}

#[test]
fn the_preconditions_of_a_call_are_checked() {
    let mut world = World::new();
    world.write(1);
    let s = world.snapshot();
    let rollback = world.commit_rollback(s);
    let engine = world.engine();
    // A volume that is rolled back must not be exported.
    engine.export("other", "", V, None).unwrap();
    assert_eq!(kind(engine.roll_back(V, rollback)), ErrorKind::Busy);
    assert_eq!(kind(engine.remove_volume(V)), ErrorKind::Busy);
    engine.exports.remove("other").unwrap();
    // To a snapshot that does not exist, or in another epoch.
    let wrong = [Rollback { to: s + 5, ..rollback }, Rollback { at: rollback.at - 1, to: s }];
    for wrong in wrong {
        assert_eq!(kind(engine.roll_back(V, wrong)), ErrorKind::Invalid);
    }
    engine.roll_back(V, rollback).unwrap();
    assert_eq!(kind(engine.roll_back(V, rollback)), ErrorKind::Invalid, "it is done");
    // An epoch that has not ended; a snapshot that does not exist.
    assert_eq!(kind(engine.settle(V, rollback.at + 1)), ErrorKind::Invalid);
    assert_eq!(kind(engine.export("x", "", V, Some(s + 7))), ErrorKind::NotFound);
    assert_eq!(kind(engine.partition_snapshots(V, s + 7, 0..u32::MAX)), ErrorKind::NotFound);
    // An exported snapshot is not dropped.
    engine.export("x", "", V, Some(s)).unwrap();
    assert_eq!(kind(engine.drop_snapshots(V, &[s - 1, s])), ErrorKind::Busy);
    assert_eq!(kind(engine.remove_volume(V)), ErrorKind::Busy);
    engine.exports.remove("x").unwrap();
    // A volume grows only with its own history.
    let mut larger = world.spec();
    let extent = ExtentSpec { device: 1, offset: 2 * MIB, length: MIB };
    (larger.size, larger.next_epoch) = (3 * MIB, larger.next_epoch + 5);
    larger.partitions.push((2, vec![extent]));
    let mut others = [larger.clone(), larger.clone(), larger.clone()];
    others[0].snapshots.push((rollback.at + 1, Default::default()));
    others[1].rollbacks.push((Rollback { at: rollback.at + 2, to: s }, 2 * MIB));
    others[2].rollbacks.clear();
    for other in others {
        assert_eq!(kind(engine.grow_volume(other)), ErrorKind::Invalid);
    }
    engine.grow_volume(larger).unwrap();
    assert_eq!(world.read(None), 1);
}

#[test]
fn a_catalog_that_does_not_have_a_rollback_of_the_journal_is_refused() {
    let mut world = World::new();
    world.write(1);
    let older = world.snapshot();
    let s = world.snapshot();
    world.write(2);
    let rollback = world.roll_back(s);
    world.kill();
    let right = std::mem::take(&mut world.rollbacks);
    let said = world.refused();
    assert!(said.contains("does not have this rollback"), "{said}");
    assert!(said.contains("p000-0000000001.journal") || said.contains("p001-0000000001.journal"));
    // Another target, another size.
    world.rollbacks = vec![Rollback { to: older, ..rollback }];
    assert!(world.refused().contains("has this rollback differently"));
    // One more rollback, where the journal has a cut.
    world.rollbacks = vec![Rollback { at: s, to: older }, rollback];
    assert!(world.refused().contains("but the catalog says that a rollback did"));
    world.rollbacks = right;
    world.start().unwrap();
    assert_eq!((world.read(None), world.read(Some(s))), (1, 1));
}

#[test]
fn a_rollback_that_only_the_catalog_has_is_done_once_and_recorded() {
    let mut world = World::new();
    world.write(1);
    let s = world.snapshot();
    world.write(2);
    let rollback = world.commit_rollback(s);
    for byte in [3, 4] {
        world.kill(); // before the engine was told; then before any checkpoint
        world.start().unwrap();
        assert_eq!(world.read(Some(s)), 1);
        world.write(byte);
        assert_eq!((world.read(None), world.read(Some(s))), (byte, 1));
    }
    world.kill();
    world.forget_in_catalog(rollback.at);
    assert!(world.refused().contains("does not have this rollback"));
    // A rollback before later records of the journal is invalid.
    world.rollbacks = vec![rollback, Rollback { at: rollback.at + 1, to: s }];
    world.next_epoch = rollback.at + 2;
    world.start().unwrap(); // it may be done now
    world.write(5);
    world.kill();
    world.rollbacks = vec![rollback];
    world.next_epoch = rollback.at + 1;
    assert!(world.refused().contains("does not have this rollback"));
}

#[test]
fn a_directory_from_before_the_last_snapshot_is_refused() {
    let mut world = World::new();
    world.write(1);
    let s = world.snapshot();
    let old = world.directory.join("old");
    copied::copy_directory(&world.volume(), &old);
    world.write(2);
    let t = world.snapshot();
    let newer = world.directory.join("newer");
    copied::copy_directory(&world.volume(), &newer);
    world.put_back(&old);
    let said = world.refused();
    assert!(said.contains("older than the catalog"), "{said}");
    std::fs::remove_dir_all(world.volume()).unwrap();
    std::fs::rename(&newer, world.volume()).unwrap();
    world.start().unwrap();
    assert_eq!((world.read(None), world.read(Some(t)), world.read(Some(s))), (2, 2, 1));
}

/// Fills the journals' segments; no further ones can be made.
fn fill(world: &World) {
    world.rules.lock().unwrap().insert((".journal", "create"));
    let engine = world.engine();
    engine.export("v", "", V, None).unwrap();
    let client = LocalClient::new(engine.exports.attach("v").unwrap());
    for start in [0, 256] {
        let one = |n: u64| client.write((start + n % 200 + 20) * BLOCK, &[9; 4096], false);
        assert!((0..3000).any(|n| one(n).is_err()), "the segment is not full");
    }
    drop(client);
    engine.exports.remove("v").unwrap();
}

/// Repeats a call until it succeeds: a journal that had no space tries again only after a while.
fn once_there_is_space<T>(ask: impl Fn() -> polyvol_engine::error::Result<T>) -> T {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match ask() {
            Ok(done) => return done,
            Err(error) => assert!(std::time::Instant::now() < until, "{error:?}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_cut_without_its_record_does_not_settle() {
    let mut world = World::new();
    world.write(1);
    world.snapshot();
    fill(&world);
    let epoch = world.engine().cut(&[(V, Default::default())]).unwrap().epochs[0].1;
    assert_eq!(kind(world.engine().settle(V, epoch)), ErrorKind::Io);
    world.rules.lock().unwrap().clear();
    once_there_is_space(|| world.engine().settle(V, epoch));
    world.engine().flush(V).unwrap();
    world.snapshots.push(epoch);
    world.next_epoch = epoch + 1;
    world.kill();
    world.start().unwrap();
    assert_eq!((world.read(None), world.read(Some(epoch))), (1, 1));
}

#[test]
fn a_rollback_without_its_record_is_not_done_and_can_be_tried_again() {
    for killed in [false, true] {
        let mut world = World::new();
        world.write(1);
        let s = world.snapshot();
        world.write(2);
        let left = world.cut();
        fill(&world);
        let rollback = Rollback { at: left + 1, to: s };
        world.rollbacks.push(rollback);
        world.next_epoch = rollback.at + 1;
        assert_eq!(kind(world.engine().roll_back(V, rollback)), ErrorKind::Io);
        // It is not exported, and no epoch ends.
        assert_eq!(kind(world.engine().export("v", "", V, None)), ErrorKind::Busy);
        assert_eq!(kind(world.engine().cut(&[(V, Default::default())])), ErrorKind::Busy);
        assert_eq!(kind(world.engine().unneeded_rollback(V)), ErrorKind::Busy);
        world.rules.lock().unwrap().clear();
        if killed {
            world.kill();
            world.start().unwrap();
        } else {
            once_there_is_space(|| world.engine().roll_back(V, rollback));
        }
        assert_eq!((world.read(None), world.read(Some(s))), (1, 1));
        world.write(7);
        world.kill();
        world.start().unwrap();
        assert_eq!((world.read(None), world.read(Some(s))), (7, 1));
    }
}

#[cfg(feature = "simulator")]
#[test]
fn a_rollback_that_was_forgotten_too_early_is_refused_and_not_served() {
    use polyvol_engine::mutants::{Bug, set};
    let mut world = World::new();
    world.write(1);
    let s = world.snapshot();
    world.write(2);
    let rollback = world.roll_back(s);
    set(Some(Bug::EarlyForget));
    let offered = world.engine().unneeded_rollback(V).unwrap();
    world.forget_in_catalog(rollback.at);
    let forgotten = world.engine().forget_rollback(V, rollback.at);
    set(None);
    assert_eq!(offered, Some(rollback.at));
    forgotten.unwrap();
    world.kill();
    assert!(world.refused().contains("does not have this rollback"));
}
