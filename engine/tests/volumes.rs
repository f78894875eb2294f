//! Promises of served volumes, one by one: cases that the model of random operations does not cover.
//!
//! Strategy          A small engine over files in a scratch directory; large files are sparse. Each test states what
//!                   would be lost or wrong, and is bounded in time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::copied;
use polyvol_engine::checksum;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polyvol-core-{}-{number}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(name));
        std::fs::create_dir(&scratch.0).unwrap();
        scratch
    }

    /// An engine of 3 processors with device 1, `base`, and device 2, `log`.
    fn engine(&self, base: u64, log: u64, sparse: bool) -> Engine {
        let engine = Engine::new(3).unwrap();
        for (id, name, size) in [(1, "base", base), (2, "log", log)] {
            let path = self.0.join(name);
            if !path.exists() {
                std::fs::File::create(&path).unwrap().set_len(size).unwrap();
            }
            engine.open_device(id, &path, Mode { sparse, ..Mode::default() }).unwrap();
        }
        engine
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn extent(device: u64, offset: u64, length: u64) -> ExtentSpec {
    ExtentSpec { device, offset, length }
}

/// A volume at `at` of the base device whose partitions are spread over `processors`.
fn spec(
    scratch: &Scratch,
    id: u64,
    at: u64,
    size: u64,
    partition: u64,
    processors: u32,
) -> VolumeSpec {
    let count = size.div_ceil(partition);
    let length = |n: u64| (size - n * partition).min(partition);
    let one = |n| (n as u32 % processors, vec![extent(1, at + n * partition, length(n))]);
    let partitions = (0..count).map(one).collect();
    VolumeSpec {
        id,
        uuid: [id as u8; 16],
        name: format!("v{id}"),
        size,
        partition_size: partition,
        partitions,
        logs: Vec::new(),
        log_rules: Default::default(),
        directory: scratch.0.join(format!("volume{id}")),
        manifests: Manifests::new(scratch.0.join(format!("volume{id}"))),
        snapshots: Vec::new(),
        next_epoch: 1,
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
    }
}

fn with_log(mut spec: VolumeSpec, extents: Vec<ExtentSpec>) -> VolumeSpec {
    spec.logs = vec![(1, extents)];
    spec
}

fn export(engine: &Engine, id: u64) -> LocalClient {
    engine.export(&format!("v{id}"), "", id, Default::default()).unwrap();
    LocalClient::new(engine.exports.attach(&format!("v{id}")).unwrap())
}

fn cut(engine: &Engine, volumes: &[u64]) -> u64 {
    let chosen: Vec<_> = volumes.iter().map(|id| (*id, Default::default())).collect();
    let report = engine.cut(&chosen).unwrap();
    for (id, epoch) in &report.epochs {
        engine.settle(*id, *epoch).unwrap();
        engine.flush(*id).unwrap();
        engine.export(&format!("v{id}@{epoch}"), "", *id, Some(*epoch)).unwrap();
    }
    report.epochs[0].1
}

fn snapshot(engine: &Engine, id: u64, epoch: u64) -> LocalClient {
    LocalClient::new(engine.exports.attach(&format!("v{id}@{epoch}")).unwrap())
}

fn read(client: &LocalClient, offset: u64, length: u64) -> Vec<u8> {
    client.read(offset, length).unwrap().data.as_slice().to_vec()
}

fn pattern(length: u64, seed: u64) -> Vec<u8> {
    (0..length).map(|at| ((at / 4096 * 7 + at + seed) % 251) as u8).collect()
}

#[test]
fn slots_of_two_chunks_with_consecutive_numbers_on_different_extents_read_back() {
    let scratch = Scratch::new();
    let engine = scratch.engine(8 * MIB, 8 * MIB, true);
    let log = vec![extent(2, 4 * MIB, 4 * MIB), extent(2, 0, 4 * MIB)];
    engine.add_volume(with_log(spec(&scratch, 1, 0, 8 * MIB, 8 * MIB, 1), log)).unwrap();
    let client = export(&engine, 1);
    cut(&engine, &[1]);
    // The first chunk ends in the middle of a leaf.
    let bytes = pattern(6 * MIB, 3);
    client.write(4096, &bytes, false).unwrap();
    assert!(read(&client, 4096, 6 * MIB) == bytes);
    for block in 1020..1030 {
        assert!(read(&client, 4096 + block * 4096, 8192) == bytes[block as usize * 4096..][..8192]);
    }
    drop(client);
    engine.stop().unwrap();
}

#[test]
fn slots_that_wait_for_a_sync_are_allocated_by_the_write_that_needs_them() {
    let scratch = Scratch::new();
    let engine = scratch.engine(8 * MIB, 4 * MIB, true);
    let volume = spec(&scratch, 1, 0, 4 * MIB, 4 * MIB, 1);
    engine.add_volume(with_log(volume, vec![extent(2, 0, 4 * MIB)])).unwrap();
    let client = export(&engine, 1);
    cut(&engine, &[1]);
    for round in 0..20 {
        client.write(0, &pattern(4 * MIB, round), false).unwrap();
        client.range(Verb::Trim, 0, 4 * MIB, false).unwrap();
        if round % 3 == 2 {
            // The empty chunk may still be returning to the log.
            client.flush().unwrap();
        }
    }
    drop(client);
    engine.stop().unwrap();
}

#[test]
fn a_log_that_is_full_refuses_writes_until_a_snapshot_is_dropped() {
    let scratch = Scratch::new();
    let engine = scratch.engine(8 * MIB, 4 * MIB, true);
    let volume = spec(&scratch, 1, 0, 8 * MIB, MIB, 1);
    engine.add_volume(with_log(volume, vec![extent(2, 0, 4 * MIB)])).unwrap();
    let client = export(&engine, 1);
    let old = pattern(8 * MIB, 1);
    client.write(0, &old, false).unwrap();
    let epoch = cut(&engine, &[1]);
    let new = pattern(8 * MIB, 2);
    assert!(client.write(0, &new, false).is_err());
    assert!(client.write(0, &new[..4096], false).is_err() || read(&client, 0, 4096) == new[..4096]);
    assert!(read(&snapshot(&engine, 1, epoch), 0, 8 * MIB) == old);
    engine.exports.remove(&format!("v1@{epoch}")).unwrap();
    engine.drop_snapshot(1, epoch).unwrap();
    client.write(0, &new, true).unwrap();
    assert!(read(&client, 0, 8 * MIB) == new);
    drop(client);
    engine.stop().unwrap();
}

#[test]
fn dropping_a_snapshot_punches_what_only_it_saw_out_of_sparse_devices_and_no_others() {
    for sparse in [true, false] {
        let scratch = Scratch::new();
        let engine = scratch.engine(4 * MIB, 8 * MIB, sparse);
        let volume = spec(&scratch, 1, 0, 4 * MIB, MIB, 2);
        engine.add_volume(with_log(volume, vec![extent(2, 0, 8 * MIB)])).unwrap();
        let client = export(&engine, 1);
        client.write(0, &vec![1; 4 * MIB as usize], false).unwrap();
        let epoch = cut(&engine, &[1]);
        client.write(0, &vec![2; 2 * MIB as usize], false).unwrap();
        engine.exports.remove(&format!("v1@{epoch}")).unwrap();
        engine.drop_snapshot(1, epoch).unwrap();
        let base = || std::fs::read(scratch.0.join("base")).unwrap();
        let began = Instant::now();
        let limit = if sparse { Duration::from_secs(10) } else { Duration::from_millis(300) };
        while began.elapsed() < limit && base()[..2 * MIB as usize].contains(&1) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(base()[..2 * MIB as usize].contains(&1), !sparse);
        assert!(!base()[2 * MIB as usize..].contains(&0));
        assert!(read(&client, 0, 2 * MIB).iter().all(|byte| *byte == 2));
        drop(client);
        engine.stop().unwrap();
    }
}

#[test]
fn partitions_of_a_gibibyte_and_requests_beyond_four_are_served() {
    let scratch = Scratch::new();
    let size = 5 * GIB + 12 * KIB;
    let engine = scratch.engine(6 * GIB, 64 * MIB, true);
    let volume = spec(&scratch, 1, 0, size, GIB, 2);
    engine.add_volume(with_log(volume, vec![extent(2, 0, 64 * MIB)])).unwrap();
    let client = export(&engine, 1);
    let edges = [GIB - MIB, 4 * GIB - 3 * MIB, size - MIB];
    for edge in edges {
        client.write(edge, &pattern(MIB, edge), false).unwrap();
    }
    let epoch = cut(&engine, &[1]);
    for edge in edges {
        client.write(edge + 5, &pattern(MIB - 7, 9), false).unwrap();
    }
    client.range(Verb::Zero { no_hole: false, fast: false }, 100, size - 200, false).unwrap();
    let statuses = client.block_status(0, size).unwrap();
    let mut at = 0;
    for status in &statuses {
        assert_eq!(status.offset, at);
        at += status.length;
    }
    assert_eq!(at, size);
    for edge in edges {
        assert!(read(&snapshot(&engine, 1, epoch), edge, MIB) == pattern(MIB, edge));
        let zeroed = (MIB).min(size - 100 - edge) as usize;
        assert!(read(&client, edge, MIB)[..zeroed].iter().all(|byte| *byte == 0));
    }
    // The last two bytes were not overwritten after the cut.
    assert!(read(&client, size - 2, 2) == pattern(MIB, size - MIB)[MIB as usize - 2..]);
    drop(client);
    engine.stop().unwrap();
}

/// Waits until no checkpoint is being written or removes the files that it replaced.
fn quiet(directory: &Path) {
    let list = || {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        let before = list();
        std::thread::sleep(Duration::from_millis(150));
        let new = before.iter().any(|name| name.to_string_lossy().ends_with(".new"));
        if !new && list() == before {
            return;
        }
    }
    panic!("{} is never quiet", directory.display());
}

/// The files of volumes as they were at a kill: the engine's last checkpoints are removed.
fn kill(engine: Engine, directories: &[PathBuf]) {
    directories.iter().for_each(|directory| quiet(directory));
    let saved = |directory: &Path| directory.with_extension("saved");
    for directory in directories {
        copied::copy_directory(directory, &saved(directory));
    }
    engine.stop().unwrap();
    for directory in directories {
        std::fs::remove_dir_all(directory).unwrap();
        std::fs::rename(saved(directory), directory).unwrap();
    }
}

#[test]
fn records_of_a_killed_run_are_made_durable_when_the_volume_is_served_again() {
    let scratch = Scratch::new();
    let volume = || with_log(spec(&scratch, 1, 0, 4 * MIB, MIB, 2), vec![extent(2, 0, 16 * MIB)]);
    let engine = scratch.engine(4 * MIB, 16 * MIB, true);
    engine.add_volume(volume()).unwrap();
    let client = export(&engine, 1);
    let epoch = cut(&engine, &[1]);
    client.write(0, &pattern(4 * MIB, 1), false).unwrap();
    drop(client);
    kill(engine, &[scratch.0.join("volume1")]);
    let engine = scratch.engine(4 * MIB, 16 * MIB, true);
    let snapshots = vec![(epoch, Default::default())];
    engine.add_volume(VolumeSpec { snapshots, next_epoch: epoch + 1, ..volume() }).unwrap();
    let served = engine.volume(1).unwrap();
    // Nobody has to ask: slots that no map refers to wait for it.
    let begun = std::time::Instant::now();
    while served.durable.watermarks().iter().any(|(appended, committed)| committed < appended) {
        assert!(begun.elapsed().as_secs() < 30, "it does not become durable");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(served.durable.watermarks().iter().all(|(appended, _)| *appended > 0));
    engine.stop().unwrap();
}

/// The region of each writer: large writes of one number to volume 1, then a small one to volume 2.
const LARGE: u64 = 640 * KIB;
const WRITERS: u64 = 3;

fn numbers(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(4096)
        .map(|block| u64::from_le_bytes(block[..8].try_into().unwrap()))
        .collect()
}

fn numbered(length: u64, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    bytes
        .chunks_exact_mut(4096)
        .for_each(|block| block[..8].copy_from_slice(&number.to_le_bytes()));
    bytes
}

/// Writes until `stop` is set, each write after the one before was acknowledged.
fn writer(number: u64, both: [&LocalClient; 2], stop: &AtomicBool, start: u64) -> u64 {
    let [first, second] = both;
    let mut round = start;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        first.write(number * LARGE + 4096, &numbered(LARGE, round), false).unwrap();
        second.write(number * MIB + 4096 * (round % 5), &numbered(4096, round), false).unwrap();
    }
    round
}

/// Checks that no later write is in a snapshot without the one before; returns the snapshot's contents.
fn check_order(first: &LocalClient, second: &LocalClient) -> (Vec<u8>, Vec<u8>) {
    let (one, two) = (read(first, 0, 4 * MIB), read(second, 0, 4 * MIB));
    for number in 0..WRITERS {
        let at = (number * LARGE + 4096) as usize;
        let large = numbers(&one[at..at + LARGE as usize]);
        let small = numbers(&two[(number * MIB) as usize..][..5 * 4096]);
        let newest = *small.iter().max().unwrap();
        assert!(large.iter().all(|n| *n == newest || *n == newest + 1), "{large:?} {newest}");
    }
    (one, two)
}

fn two_volumes(scratch: &Scratch, epochs: &[u64]) -> (Engine, LocalClient, LocalClient) {
    let engine = scratch.engine(16 * MIB, 512 * MIB, true);
    for id in [1, 2] {
        let volume = spec(scratch, id, (id - 1) * 8 * MIB, 4 * MIB, MIB, 3);
        let log = vec![extent(2, (id - 1) * 256 * MIB, 256 * MIB)];
        let snapshots = epochs.iter().map(|epoch| (*epoch, Default::default())).collect();
        let next_epoch = epochs.last().map_or(1, |last| last + 1);
        let volume = VolumeSpec { snapshots, next_epoch, ..with_log(volume, log) };
        engine.add_volume(volume).unwrap();
        for epoch in epochs {
            engine.export(&format!("v{id}@{epoch}"), "", id, Some(*epoch)).unwrap();
        }
    }
    let callers = (export(&engine, 1), export(&engine, 2));
    (engine, callers.0, callers.1)
}

#[test]
fn cuts_of_two_volumes_under_load_are_one_instant_and_do_not_change_after_kills() {
    // Checkpoints are written the whole time.
    polyvol_engine::limits::CHECKPOINT_BYTES_MIN.store(20_000, Ordering::Relaxed);
    let scratch = Scratch::new();
    let mut kept: BTreeMap<u64, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
    let mut rounds = [0; WRITERS as usize];
    for run in 0..4 {
        let (engine, first, second) = two_volumes(&scratch, &Vec::from_iter(kept.keys().copied()));
        for (epoch, contents) in &kept {
            let found = check_order(&snapshot(&engine, 1, *epoch), &snapshot(&engine, 2, *epoch));
            assert!(found == *contents, "snapshot {epoch} has changed in run {run}");
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let spawn = |number| {
                let (first, second, stop) = (&first, &second, &stop);
                let start = rounds[number as usize];
                scope.spawn(move || writer(number, [first, second], stop, start))
            };
            let threads: Vec<_> = (0..WRITERS).map(spawn).collect();
            for turn in 0..6 {
                let epoch = cut(&engine, &[1, 2]);
                let found = check_order(&snapshot(&engine, 1, epoch), &snapshot(&engine, 2, epoch));
                kept.insert(epoch, found);
                if turn % 2 == 1 {
                    let oldest = *kept.keys().next().unwrap();
                    kept.remove(&oldest);
                    for id in [1, 2] {
                        engine.exports.remove(&format!("v{id}@{oldest}")).unwrap();
                        engine.drop_snapshot(id, oldest).unwrap();
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            for (round, thread) in rounds.iter_mut().zip(threads) {
                *round = thread.join().unwrap();
            }
        });
        let live = check_order(&first, &second);
        for (epoch, contents) in &kept {
            let found = check_order(&snapshot(&engine, 1, *epoch), &snapshot(&engine, 2, *epoch));
            assert!(found == *contents, "snapshot {epoch} has changed");
        }
        drop((first, second));
        let checkpoints = |id: u64| {
            let directory = scratch.0.join(format!("volume{id}"));
            let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
            names.filter(|path| path.extension().is_some_and(|e| e == "checkpoint")).count()
        };
        assert!(checkpoints(1) > 0, "no checkpoint was written in run {run}");
        kill(engine, &[scratch.0.join("volume1"), scratch.0.join("volume2")]);
        let (engine, first, second) = two_volumes(&scratch, &Vec::from_iter(kept.keys().copied()));
        assert!(check_order(&first, &second) == live, "the live volumes have changed");
        drop((first, second));
        kill(engine, &[scratch.0.join("volume1"), scratch.0.join("volume2")]);
    }
}

/// Makes the files look as if another boot had written them: records after the newest mark do not count.
fn lose_power(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let used = match path.extension().and_then(|ending| ending.to_str()) {
            Some("journal") => vec![(0, 88)],
            Some("manifest") => vec![(0, 128), (512, 640)],
            _ => continue,
        };
        let mut bytes = std::fs::read(&path).unwrap();
        for (start, end) in used {
            let structure = &mut bytes[start..end];
            structure[32..48].fill(0xee);
            let crc = checksum::crc32c(&structure[16..]);
            structure[12..16].copy_from_slice(&crc.to_le_bytes());
        }
        std::fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn after_a_power_loss_snapshots_are_complete_and_flushed_writes_are_there() {
    let scratch = Scratch::new();
    let (mut kept, mut number): (BTreeMap<u64, _>, u64) = (BTreeMap::new(), 0);
    for run in 0..6u64 {
        let (engine, first, second) = two_volumes(&scratch, &Vec::from_iter(kept.keys().copied()));
        let mut flushed = 0;
        for turn in 0..8 {
            for block in 0..1000u64 {
                number += 1;
                let at = (block * (7 + run) + turn) % 1024 * 4096;
                first.write(at, &numbered(4096, number), false).unwrap();
            }
            number += 1;
            first.write(turn * 300 * KIB, &numbered(600 * KIB, number), turn == 3).unwrap();
            if turn % 3 == 0 {
                first.flush().unwrap();
                flushed = number;
            }
            if turn % 3 == 1 {
                let epoch = cut(&engine, &[1, 2]);
                flushed = number;
                kept.insert(epoch, read(&first, 0, 4 * MIB));
            }
            if turn == 6 && kept.len() > 2 {
                let oldest = *kept.keys().nth(1).unwrap();
                kept.remove(&oldest);
                for id in [1, 2] {
                    engine.exports.remove(&format!("v{id}@{oldest}")).unwrap();
                    engine.drop_snapshot(id, oldest).unwrap();
                }
            }
        }
        let live = numbers(&read(&first, 0, 4 * MIB));
        drop((first, second));
        let directories = [scratch.0.join("volume1"), scratch.0.join("volume2")];
        kill(engine, &directories);
        directories.iter().for_each(|directory| lose_power(directory));
        let (engine, first, second) = two_volumes(&scratch, &Vec::from_iter(kept.keys().copied()));
        for (epoch, contents) in &kept {
            let found = read(&snapshot(&engine, 1, *epoch), 0, 4 * MIB);
            assert!(found == *contents, "snapshot {epoch} has changed in run {run}");
        }
        for (now, last) in numbers(&read(&first, 0, 4 * MIB)).iter().zip(&live) {
            assert!(*now == *last || *last > flushed, "{last} was flushed, {now} is there");
        }
        drop((first, second));
        kill(engine, &directories);
    }
}
