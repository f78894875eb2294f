//! Relocation: blocks come back from slots to their base places, and nothing of it can be seen but where they are.
//!
//! Strategy          A volume over sparse files, on a system whose files can hang. The model (model.rs) and the simulator
//!                   relocate too; here is what they do not reach: clones, bad slots, and readers that take long.

mod faulty;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use faulty::{Faulty, Rules};
use polyvol_engine::block_map::homeward::Homeward;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::inspect::ProcessorLook;
use polyvol_engine::engine::relocate::{Bounds, Relocation};
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
        let bounds = Bounds { bytes: u64::MAX, time: Duration::from_secs(20), urgent: true };
        let mut all = Relocation::default();
        loop {
            let done = self.engine().relocate(1, bounds).unwrap();
            (all.bytes, all.failed) = (all.bytes + done.bytes, all.failed + done.failed);
            if done.at_end {
                return all;
            }
        }
    }

    /// Bytes in slots, after a flush.
    fn used(&self) -> u64 {
        self.engine().flush(1).unwrap();
        self.used_now()
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
    assert_eq!((world.used(), world.to_move()), (SIZE, (0, 0)));
    world.drop_snapshot(first);
    assert_eq!(world.to_move(), (SIZE, 0));
    assert_eq!(world.relocate().bytes, SIZE);
    assert_eq!((world.used(), world.to_move()), (0, (0, 0)));
    world.is("v", 2);
    world.restart();
    world.is("v", 2);
    assert_eq!(world.used(), 0);
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
    assert_eq!(world.used(), BLOCK);
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
    assert_eq!(world.used(), BLOCK);
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
    // The reader comes to them after a block of the first extent, whose device hangs.
    world.rules.lock().unwrap().insert(("base-a", "hang"));
    let client = world.client(&format!("v@{second}"));
    let reader = std::thread::spawn(move || client.read(MIB - BLOCK, 3 * BLOCK).unwrap());
    let reads = |world: &World| {
        let shares = |look: ProcessorLook| look.shares.unwrap_or_default().1;
        let mut shares = world.engine().inspect_processors().into_iter().flat_map(shares);
        shares.any(|share| !share.handed.is_empty())
    };
    while !reads(&world) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let bounds = Bounds { bytes: MIB, time: Duration::from_millis(300), urgent: true };
    let done = world.engine().relocate(1, bounds).unwrap();
    assert_eq!((done.bytes, done.at_end), (0, false), "it is tried again, and nothing is freed");
    assert_eq!(world.used_now(), 3 * BLOCK);
    world.rules.lock().unwrap().clear();
    let found = reader.join().unwrap();
    assert_eq!(found.data.as_slice()[BLOCK as usize..], [2; 2 * BLOCK as usize]);
    assert_eq!(world.relocate().bytes, 3 * BLOCK);
    assert_eq!(world.used(), 0);
}
