//! A volume that grows while it is in use: cases that the model of random operations does not cover.
//!
//! Strategy          A volume whose last partition is short, over sparse files. Each test states what would be lost.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::copied;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::ErrorKind;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;
const SMALL: u64 = 3 * MIB + 5 * 4096;
const LARGE: u64 = 8 * MIB;

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch() -> Scratch {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("polyvol-grow-{}-{number}", std::process::id());
    let scratch = Scratch(std::env::temp_dir().join(name));
    std::fs::create_dir(&scratch.0).unwrap();
    for (name, size) in [("base", LARGE), ("log", 16 * MIB), ("more", LARGE)] {
        std::fs::File::create(scratch.0.join(name)).unwrap().set_len(size).unwrap();
    }
    scratch
}

fn engine(scratch: &Scratch) -> Engine {
    let engine = Engine::new(4).unwrap();
    for (id, name) in [(1, "base"), (2, "log"), (3, "more")] {
        engine.open_device(id, &scratch.0.join(name), Mode::SPARSE).unwrap();
    }
    engine
}

fn extent(device: u64, offset: u64, length: u64) -> ExtentSpec {
    ExtentSpec { device, offset, length }
}

/// The volume at a size, with snapshots of these epochs and sizes.
fn spec(scratch: &Scratch, size: u64, snapshots: &[(u64, u64)]) -> VolumeSpec {
    spec_of(scratch, size, snapshots, MIB)
}

fn spec_of(
    scratch: &Scratch,
    size: u64,
    snapshots: &[(u64, u64)],
    partition_size: u64,
) -> VolumeSpec {
    let mut partitions: Vec<(u32, Vec<ExtentSpec>)> = Vec::new();
    for number in 0..size.div_ceil(partition_size) {
        let (from, to) = (number * partition_size, size.min((number + 1) * partition_size));
        let old = to.min(SMALL).saturating_sub(from);
        let mut extents = Vec::new();
        if old > 0 {
            extents.push(extent(1, from, old));
        }
        if to - from > old {
            extents.push(extent(3, from, to - from - old));
        }
        partitions.push((if number < 4 { number as u32 % 2 } else { number as u32 % 4 }, extents));
    }
    VolumeSpec {
        id: 1,
        uuid: [1; 16],
        name: "v".to_owned(),
        size,
        partition_size,
        partitions,
        logs: vec![(1, vec![extent(2, 0, 16 * MIB)])],
        log_rules: Default::default(),
        directory: scratch.0.join("volume"),
        manifests: Manifests::new(scratch.0.join("volume")),
        snapshots: snapshots.iter().map(|(epoch, _)| (*epoch, Default::default())).collect(),
        next_epoch: snapshots.last().map_or(1, |(epoch, _)| epoch + 1),
        bounds: snapshots.iter().map(|(epoch, size)| (epoch + 1, *size)).collect(),
        rollbacks: Vec::new(),
        origin: None,
    }
}

fn attach(engine: &Engine, name: &str) -> LocalClient {
    LocalClient::new(engine.exports.attach(name).unwrap())
}

fn read(client: &LocalClient) -> Vec<u8> {
    client.read(0, client.size()).unwrap().data.as_slice().to_vec()
}

fn cut(engine: &Engine) -> u64 {
    let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
    engine.settle(1, epoch).unwrap();
    engine.flush(1).unwrap();
    engine.export(&format!("v@{epoch}"), "", 1, Some(epoch)).unwrap();
    epoch
}

fn used(engine: &Engine) -> u64 {
    let space = &engine.volume(1).unwrap().space;
    space.logs().iter().map(|log| log.slots.used()).sum()
}

#[test]
fn new_blocks_are_written_in_place_although_there_are_older_snapshots() {
    let scratch = scratch();
    let engine_one = engine(&scratch);
    engine_one.add_volume(spec(&scratch, SMALL, &[])).unwrap();
    engine_one.export("v", "", 1, None).unwrap();
    attach(&engine_one, "v").write(0, &vec![1; SMALL as usize], false).unwrap();
    let epoch = cut(&engine_one);
    engine_one.grow_volume(spec(&scratch, LARGE, &[(epoch, SMALL)])).unwrap();
    let new = vec![2; (LARGE - SMALL) as usize];
    attach(&engine_one, "v").write(SMALL, &new, true).unwrap();
    assert_eq!(used(&engine_one), 0);
    engine_one.stop().unwrap();

    let engine_two = engine(&scratch);
    engine_two.add_volume(spec(&scratch, LARGE, &[(epoch, SMALL)])).unwrap();
    engine_two.export("v", "", 1, None).unwrap();
    engine_two.export("v@1", "", 1, Some(epoch)).unwrap();
    attach(&engine_two, "v").write(SMALL, &new, true).unwrap();
    assert_eq!(used(&engine_two), 0);
    let snapshot = attach(&engine_two, "v@1");
    assert_eq!((snapshot.size(), read(&snapshot) == vec![1; SMALL as usize]), (SMALL, true));
    let later = cut(&engine_two);
    attach(&engine_two, "v").write(SMALL, &new, true).unwrap();
    assert_eq!(used(&engine_two), (LARGE - SMALL) / 4096); // that one shows the new blocks
    drop(snapshot);
    engine_two.exports.remove("v@1").unwrap();
    assert_eq!(engine_two.drop_snapshot(1, epoch).unwrap(), 0);
    assert_eq!(attach(&engine_two, &format!("v@{later}")).size(), LARGE);
    engine_two.stop().unwrap();
}

#[test]
fn a_kill_between_the_catalogs_growth_and_the_engines_loses_nothing() {
    let scratch = scratch();
    let first = engine(&scratch);
    first.add_volume(spec(&scratch, SMALL, &[])).unwrap();
    first.export("v", "", 1, None).unwrap();
    attach(&first, "v").write(0, &vec![1; SMALL as usize], false).unwrap();
    let epoch = cut(&first);
    attach(&first, "v").write(0, &vec![2; SMALL as usize], true).unwrap();
    first.stop().unwrap(); // with a checkpoint of the smaller volume

    let second = engine(&scratch);
    second.add_volume(spec(&scratch, LARGE, &[(epoch, SMALL)])).unwrap();
    second.export("v", "", 1, None).unwrap();
    second.export("v@1", "", 1, Some(epoch)).unwrap();
    let mut wanted = vec![2; SMALL as usize];
    wanted.resize(LARGE as usize, 0);
    assert!(read(&attach(&second, "v")) == wanted);
    assert!(read(&attach(&second, "v@1")) == vec![1; SMALL as usize]);
    second.stop().unwrap();
}

/// A partition of 8 MiB has four nodes; its part before the growth has two.
#[test]
fn a_checkpoint_of_a_shorter_partition_is_read_as_it_was() {
    let scratch = scratch();
    let old = spec_of(&scratch, SMALL, &[], 8 * MIB);
    let short = old.size;
    let whole = |engine: &Engine| LocalClient::new(engine.exports.attach("v").unwrap());
    let first = engine(&scratch);
    first.add_volume(old.clone()).unwrap();
    first.export("v", "", 1, None).unwrap();
    whole(&first).write(0, &vec![1; short as usize], true).unwrap();
    whole(&first).range(Verb::Trim, 0, short, false).unwrap(); // the whole map is zero
    let epoch = cut(&first);
    whole(&first).write(5 * 4096, &[2; 4096], true).unwrap();
    first.stop().unwrap(); // with a checkpoint

    let second = engine(&scratch);
    let mut before = spec_of(&scratch, short, &[(epoch, short)], 8 * MIB);
    second.add_volume(before.clone()).unwrap();
    second.export("v", "", 1, None).unwrap();
    before = spec_of(&scratch, LARGE, &[(epoch, short)], 8 * MIB);
    second.grow_volume(before.clone()).unwrap();
    let new = vec![3; (LARGE - short) as usize];
    whole(&second).write(short, &new, true).unwrap(); // in place: there is no record of it
    let (volume, saved) = (scratch.0.join("volume"), scratch.0.join("saved"));
    copied::copy_directory(&volume, &saved);
    second.stop().unwrap();
    std::fs::remove_dir_all(&volume).unwrap();
    std::fs::rename(&saved, &volume).unwrap(); // as a kill leaves it

    let third = engine(&scratch);
    third.add_volume(before).unwrap();
    third.export("v", "", 1, None).unwrap();
    third.export("v@1", "", 1, Some(epoch)).unwrap();
    let mut wanted = vec![0; short as usize];
    assert!(read(&attach(&third, "v@1")) == wanted);
    wanted[5 * 4096..6 * 4096].fill(2);
    wanted.extend(new);
    assert!(read(&attach(&third, "v")) == wanted);
    third.stop().unwrap();
}

#[test]
fn hosts_write_and_cuts_are_made_while_it_grows() {
    let scratch = scratch();
    let engine = Arc::new(engine(&scratch));
    engine.add_volume(spec(&scratch, SMALL, &[])).unwrap();
    engine.export("v", "", 1, None).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3u64)
        .map(|writer| {
            let (client, done) = (attach(&engine, "v"), Arc::clone(&done)); // before it grows
            std::thread::spawn(move || {
                let mut turn = 0u64;
                while !done.load(Ordering::Relaxed) {
                    turn += 1;
                    let block = (turn * 3 + writer) % (SMALL / 4096 / 3 * 3);
                    client.write(block * 4096, &[turn as u8; 4096], false).unwrap();
                    let read = client.read(block * 4096, 4096).unwrap();
                    assert!(read.data.as_slice() == [turn as u8; 4096]);
                }
                assert_eq!(client.size(), SMALL);
            })
        })
        .collect();
    let mut snapshots = Vec::new();
    let mut size = SMALL;
    while size < LARGE {
        snapshots.push((cut(&engine), size));
        let before = read(&attach(&engine, &format!("v@{}", snapshots[0].0)));
        size = (size / MIB + 1) * MIB;
        engine.grow_volume(spec(&scratch, size, &snapshots)).unwrap();
        assert_eq!(attach(&engine, "v").size(), size);
        assert!(read(&attach(&engine, &format!("v@{}", snapshots[0].0))) == before);
    }
    done.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    for (epoch, size) in snapshots {
        assert_eq!(attach(&engine, &format!("v@{epoch}")).size(), size);
    }
    assert_eq!(engine.partitions(1, 0..u32::MAX).unwrap().len() as u64, LARGE / MIB);
    engine.stop().unwrap();
}

#[test]
fn an_invalid_growth_is_refused_and_changes_nothing() {
    let scratch = scratch();
    let engine = engine(&scratch);
    engine.add_volume(spec(&scratch, SMALL, &[])).unwrap();
    engine.export("v", "", 1, None).unwrap();
    let mut moved = spec(&scratch, LARGE, &[]);
    moved.partitions[0].1[0].device = 3;
    let mut elsewhere = spec(&scratch, LARGE, &[]);
    elsewhere.partitions[1].0 = 3;
    let mut without_device = spec(&scratch, LARGE, &[]);
    without_device.partitions[7].1[0].device = 9;
    for (wrong, kind) in [
        (spec(&scratch, SMALL, &[]), ErrorKind::Invalid),
        (spec(&scratch, 2 * MIB, &[]), ErrorKind::Invalid),
        (moved, ErrorKind::Invalid),
        (elsewhere, ErrorKind::Invalid),
        (without_device, ErrorKind::NotFound),
        (VolumeSpec { id: 2, ..spec(&scratch, LARGE, &[]) }, ErrorKind::NotFound),
    ] {
        assert_eq!(engine.grow_volume(wrong).unwrap_err().kind, kind);
        assert_eq!(attach(&engine, "v").size(), SMALL);
    }
    engine.grow_volume(spec(&scratch, LARGE, &[])).unwrap();
    assert_eq!(read(&attach(&engine, "v")), vec![0; LARGE as usize]);
    engine.stop().unwrap();
}

#[test]
fn a_volume_that_was_renamed_has_its_new_name_in_messages_also_when_it_has_grown() {
    let scratch = scratch();
    let engine = engine(&scratch);
    engine.add_volume(spec(&scratch, SMALL, &[])).unwrap();
    for (name, size) in [("w", LARGE), ("x", LARGE)] {
        engine.rename_volume(1, name).unwrap();
        if engine.grow_volume(spec(&scratch, size, &[])).is_ok() {
            engine.export("w", "", 1, None).unwrap();
        }
        let refused = engine.export("w@9", "", 1, Some(9)).unwrap_err().to_string();
        assert!(refused.contains(&format!("volume {name} ")), "{refused}");
    }
    assert_eq!(engine.rename_volume(2, "w").unwrap_err().kind, ErrorKind::NotFound);
    engine.stop().unwrap();
}
