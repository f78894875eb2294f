//! Relocation: blocks come back from slots to their base places, and nothing of it can be seen but where they are.
//!
//! Strategy          A volume over sparse files, on a system whose files can hang. The model (model.rs) and the simulator
//!                   relocate too; here is what they do not reach: clones, bad slots, and readers that take long.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::faulty::{Faulty, Rules};
use polyvol_engine::block_map::homeward::Homeward;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::inspect::ProcessorLook;
use polyvol_engine::engine::relocate::{Bounds, Kind, Relocation, Scattered};
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::io::device::Mode;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
const BLOCK: u64 = 4096;

struct World {
    directory: PathBuf,
    rules: Rules,
    engine: Option<Engine>,
    snapshots: Vec<u64>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.engine.take().map(|engine| engine.stop());
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn extent(device: u64, length: u64) -> ExtentSpec {
    ExtentSpec { device, offset: 0, length }
}

impl World {
    fn new() -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-relocation-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        for (name, size) in
            [("base-a", SIZE), ("base-b", SIZE), ("log", 16 * MIB), ("other-log", 16 * MIB)]
        {
            std::fs::File::create(directory.join(name)).unwrap().set_len(size).unwrap();
        }
        let mut world =
            World { directory, rules: Rules::default(), engine: None, snapshots: Vec::new() };
        world.start();
        world
    }

    fn start(&mut self) {
        let engine =
            Engine::with_system(Arc::new(Faulty { rules: Arc::clone(&self.rules) }), 2).unwrap();
        for (id, name) in [(1, "base-a"), (4, "base-b"), (2, "log"), (3, "other-log")] {
            engine.open_device(id, &self.directory.join(name), Mode::SPARSE).unwrap();
        }
        engine.add_volume(self.spec(1, None)).unwrap();
        engine.export("v", "", 1, None).unwrap();
        self.engine = Some(engine);
    }

    fn restart(&mut self) {
        self.engine.take().unwrap().stop().unwrap();
        self.start();
    }

    fn spec(&self, id: u64, origin: Option<(u64, u64)>) -> VolumeSpec {
        let own = origin.is_none();
        let part = |n: u64| {
            let base = |device| ExtentSpec { device, offset: n * MIB, length: MIB };
            (n as u32 % 2, if own { vec![base(1), base(4)] } else { Vec::new() })
        };
        let directory = self.directory.join(format!("volume{id}"));
        VolumeSpec {
            id,
            uuid: [id as u8; 16],
            name: format!("v{id}"),
            size: SIZE,
            partition_size: 2 * MIB,
            partitions: (0..4).map(part).collect(),
            logs: vec![(1, vec![extent(if own { 2 } else { 3 }, 16 * MIB)])],
            log_rules: Default::default(),
            manifests: Manifests::new(directory.clone()),
            directory,
            snapshots: match own {
                true => self.snapshots.iter().map(|epoch| (*epoch, Default::default())).collect(),
                false => Vec::new(),
            },
            next_epoch: if own { self.snapshots.last().map_or(1, |last| last + 1) } else { 1 },
            bounds: Vec::new(),
            rollbacks: Vec::new(),
            origin,
        }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn client(&self, export: &str) -> LocalClient {
        LocalClient::new(self.engine().exports.attach(export).unwrap())
    }

    fn write(&self, seed: u8) {
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at >> 12) as u8 ^ seed).collect();
        self.client("v").write(0, &bytes, true).unwrap();
    }

    /// Every fourth block.
    fn scatter(&self, seed: u8) {
        for at in (0..SIZE).step_by(4 * BLOCK as usize) {
            let bytes = [(at >> 12) as u8 ^ seed; BLOCK as usize];
            self.client("v").write(at, &bytes, false).unwrap();
        }
    }

    /// `seed`, and every fourth block `scattered`.
    fn is_scattered(&self, export: &str, seed: u8, scattered: u8) {
        let found = self.client(export).read(0, SIZE).unwrap();
        for (at, byte) in found.data.as_slice().iter().enumerate() {
            let seed = if (at >> 12) % 4 == 0 { scattered } else { seed };
            assert_eq!(*byte, (at >> 12) as u8 ^ seed, "byte {at} of {export}");
        }
    }

    fn is(&self, export: &str, seed: u8) {
        let found = self.client(export).read(0, SIZE).unwrap();
        for (at, byte) in found.data.as_slice().iter().enumerate() {
            assert_eq!(*byte, (at >> 12) as u8 ^ seed, "byte {at} of {export}");
        }
    }

    fn cut(&mut self) -> u64 {
        let engine = self.engine();
        let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
        engine.settle(1, epoch).unwrap();
        engine.flush(1).unwrap();
        engine.export(&format!("v@{epoch}"), "", 1, Some(epoch)).unwrap();
        self.snapshots.push(epoch);
        epoch
    }

    fn drop_snapshot(&mut self, epoch: u64) {
        self.engine().exports.remove(&format!("v@{epoch}")).unwrap();
        self.snapshots.retain(|other| *other != epoch);
        self.engine().drop_snapshot(1, epoch).unwrap();
    }

    fn relocate(&self) -> Relocation {
        self.relocate_all(Kind::Home)
    }

    /// Moves away what only snapshots see, where the live volume has at least two runs of slots in a leaf.
    fn relocate_away(&self, cold: bool) -> Relocation {
        self.relocate_all(Kind::Away(Scattered { runs: 2, cold }))
    }

    fn relocate_all(&self, kind: Kind) -> Relocation {
        let bounds = Bounds { bytes: u64::MAX, time: Duration::from_secs(20), urgent: true, kind };
        let mut all = Relocation::default();
        loop {
            let done = self.engine().relocate(1, bounds).unwrap();
            (all.bytes, all.failed) = (all.bytes + done.bytes, all.failed + done.failed);
            if done.at_end {
                return all;
            }
        }
    }

    fn relocate_for(&self, time: Duration, kind: Kind) -> Relocation {
        self.engine().relocate(1, Bounds { bytes: MIB, time, urgent: true, kind }).unwrap()
    }

    /// Begins to read the last block of the first extent of partition 0, whose device hangs, and two of the second one.
    fn begin_reading(&self, snapshot: u64) -> JoinHandle<Vec<u8>> {
        self.rules.lock().unwrap().insert(("base-a", "hang"));
        let client = self.client(&format!("v@{snapshot}"));
        let reader = std::thread::spawn(move || {
            client.read(MIB - BLOCK, 3 * BLOCK).unwrap().data.as_slice().to_vec()
        });
        let reads = || {
            let shares = |look: ProcessorLook| look.shares.unwrap_or_default().1;
            let mut shares = self.engine().inspect_processors().into_iter().flat_map(shares);
            shares.any(|share| !share.handed.is_empty())
        };
        while !reads() {
            std::thread::sleep(Duration::from_millis(1));
        }
        reader
    }

    /// After a flush, so many bytes are in slots soon.
    #[track_caller]
    fn uses(&self, expected: u64) {
        self.engine().flush(1).unwrap();
        let began = Instant::now();
        while self.used_now() != expected && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.used_now(), expected);
    }

    /// Bytes that a relocation would move now, and those that clones pin.
    fn to_move(&self) -> (u64, u64) {
        let found = self.engine().homeward(1).unwrap();
        (found.home * BLOCK, found.pinned * BLOCK)
    }

    fn used_now(&self) -> u64 {
        let logs = self.engine().volume(1).unwrap().space.logs();
        logs.iter().map(|log| log.slots.used() * BLOCK).sum()
    }
}

#[test]
fn what_only_the_live_volume_needs_goes_back_and_the_log_is_empty() {
    let mut world = World::new();
    world.write(1);
    let first = world.cut();
    world.write(2);
    assert_eq!(world.relocate().bytes, 0, "a snapshot sees the base places");
    world.uses(SIZE);
    assert_eq!(world.to_move(), (0, 0));
    world.drop_snapshot(first);
    assert_eq!(world.to_move(), (SIZE, 0));
    assert_eq!(world.relocate().bytes, SIZE);
    world.uses(0);
    assert_eq!(world.to_move(), (0, 0));
    world.is("v", 2);
    world.restart();
    world.is("v", 2);
    world.uses(0);
}

#[test]
fn blocks_move_for_all_snapshots_that_share_them() {
    let mut world = World::new();
    world.write(1);
    let first = world.cut();
    world.write(2);
    let second = world.cut();
    let third = world.cut();
    world.client("v").write(0, &[9; BLOCK as usize], true).unwrap();
    let changed =
        |world: &World, since: u64| world.engine().changes(1, since, None, 0, 99).unwrap();
    assert_eq!(changed(&world, second).extents, [(0, BLOCK)]);
    world.drop_snapshot(first);
    assert_eq!(world.relocate().bytes, SIZE);
    for since in [second, third] {
        assert_eq!(changed(&world, since).extents, [(0, BLOCK)], "moving is no change");
    }
    // The snapshots have block 0 in a slot, which is not the live volume's.
    world.uses(BLOCK);
    for _ in 0..2 {
        world.is(&format!("v@{second}"), 2);
        world.is(&format!("v@{third}"), 2);
        world.restart();
        for epoch in [second, third] {
            world.engine().export(&format!("v@{epoch}"), "", 1, Some(epoch)).unwrap();
        }
    }
}

#[test]
fn a_bad_block_stays_in_its_slot_and_is_told() {
    let mut world = World::new();
    world.write(1);
    let first = world.cut();
    world.write(2);
    world.drop_snapshot(first);
    let path = world.directory.join("log");
    let mut log = std::fs::read(&path).unwrap();
    let at = log.iter().position(|byte| *byte != 0).unwrap();
    log[at] ^= 1;
    std::fs::write(&path, log).unwrap();
    let done = world.relocate();
    assert_eq!((done.bytes, done.failed > 0), (SIZE - BLOCK, true));
    world.uses(BLOCK);
    assert_eq!(world.engine().volume(1).unwrap().bad.listed().len(), 1);
    assert_eq!(world.client("v").read(0, SIZE).err(), Some(Errno::EIO), "it is never given out");
}

#[test]
fn what_a_clone_shows_stays_until_it_is_gone() {
    let mut world = World::new();
    world.write(1);
    let first = world.cut();
    world.write(2);
    let second = world.cut();
    world.engine().add_volume(world.spec(2, Some((1, second)))).unwrap();
    world.engine().export("clone", "", 2, None).unwrap();
    world.drop_snapshot(first);
    assert_eq!(world.relocate().bytes, 0, "the clone's maps have the slots");
    assert_eq!(world.to_move(), (0, SIZE));
    assert_eq!(world.engine().homeward(2).unwrap(), Homeward::default());
    world.is("clone", 2);
    world.engine().exports.remove("clone").unwrap();
    world.engine().remove_volume(2).unwrap();
    assert_eq!(world.to_move(), (SIZE, 0));
    assert_eq!(world.relocate().bytes, SIZE);
    world.is("v", 2);
    world.is(&format!("v@{second}"), 2);
}

#[test]
fn a_slot_that_is_being_read_for_a_snapshot_is_not_freed() {
    let mut world = World::new();
    world.write(1);
    let first = world.cut();
    // The first blocks of the second extent of partition 0 are in slots.
    world.client("v").write(MIB, &[2; 3 * BLOCK as usize], true).unwrap();
    let second = world.cut();
    world.drop_snapshot(first);
    let reader = world.begin_reading(second);
    let done = world.relocate_for(Duration::from_millis(300), Kind::Home);
    assert_eq!((done.bytes, done.at_end), (0, false), "it is tried again, and nothing is freed");
    assert_eq!(world.used_now(), 3 * BLOCK);
    world.rules.lock().unwrap().clear();
    let found = reader.join().unwrap();
    assert_eq!(found[BLOCK as usize..], [2; 2 * BLOCK as usize]);
    assert_eq!(world.relocate().bytes, 3 * BLOCK);
    world.uses(0);
}

#[test]
fn scattered_blocks_go_home_after_what_a_snapshot_sees_there() {
    let mut world = World::new();
    world.write(1);
    let first = world.cut();
    world.scatter(2);
    world.uses(SIZE / 4);
    assert_eq!(world.relocate().bytes, 0, "a snapshot sees the base places");
    assert_eq!(world.relocate_away(true).bytes, 0, "they were written since the snapshot");
    let second = world.cut();
    world.client("v").write(0, &[3; BLOCK as usize], false).unwrap();
    let changes = |world: &World| world.engine().changes(1, first, None, 0, 9999).unwrap().extents;
    let before = changes(&world);
    assert_eq!(world.relocate_away(true).bytes, SIZE / 4 - BLOCK, "one was written since");
    assert_eq!(world.relocate_away(false).bytes, BLOCK);
    world.uses(SIZE / 2 + BLOCK);
    assert_eq!(world.relocate().bytes, SIZE / 4);
    world.uses(SIZE / 4 + BLOCK);
    assert_eq!(changes(&world), before, "moving is no change");
    for _ in 0..2 {
        world.is(&format!("v@{first}"), 1);
        world.is_scattered(&format!("v@{second}"), 1, 2);
        let live = world.client("v").read(0, 5 * BLOCK).unwrap();
        assert_eq!(live.data.as_slice()[..BLOCK as usize], [3; BLOCK as usize]);
        assert_eq!(live.data.as_slice()[4 * BLOCK as usize..], [4 ^ 2; BLOCK as usize]);
        world.restart();
        for epoch in [first, second] {
            world.engine().export(&format!("v@{epoch}"), "", 1, Some(epoch)).unwrap();
        }
    }
    assert_eq!(world.relocate_away(false).bytes, 0, "there is nothing left to move");
}

#[test]
fn what_a_clone_or_a_reader_of_a_snapshot_needs_is_not_moved_away() {
    let mut world = World::new();
    world.write(1);
    let first = world.cut();
    world.scatter(2);
    world.engine().add_volume(world.spec(2, Some((1, first)))).unwrap();
    assert_eq!(world.relocate_away(false).bytes, 0, "the clone's maps have the base places");
    world.engine().remove_volume(2).unwrap();
    world.engine().flush(1).unwrap();

    assert_eq!(world.relocate_away(false).bytes, SIZE / 4);
    world.uses(SIZE / 2);
    assert_eq!(world.relocate().bytes, SIZE / 4);
    world.uses(SIZE / 4);
    let second = world.cut();
    for block in [0, 2, 4] {
        world.client("v").write(MIB + block * BLOCK, &[7; BLOCK as usize], false).unwrap();
    }
    let used = SIZE / 4 + 3 * BLOCK;
    world.uses(used);
    let reader = world.begin_reading(second);
    let away = Kind::Away(Scattered { runs: 2, cold: false });
    let done = world.relocate_for(Duration::from_millis(300), away);
    assert_eq!((done.bytes, done.at_end), (0, false), "it is tried again");
    assert_eq!(world.used_now(), used, "the copies are given up");
    world.rules.lock().unwrap().clear();
    reader.join().unwrap();
    assert_eq!(world.relocate_away(false).bytes, 3 * BLOCK);
    world.uses(used + 3 * BLOCK);
    assert_eq!(world.relocate().bytes, 3 * BLOCK);
    world.is(&format!("v@{first}"), 1);
    world.is_scattered(&format!("v@{second}"), 1, 2);
}
