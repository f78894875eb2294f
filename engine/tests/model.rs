//! The model test: random operations on a volume of several partitions and processors, compared with arrays.
//!
//! Strategy          Writes (aligned and not), trims, zeroes, flushes, cuts, drops, relocations and restarts, with two
//!                   devices and a small log area, so that slots are reused and run out. Rollbacks are forgotten as in
//!                   the daemon: checkpoints at one time, rollbacks that they cover at another, any operations between.
//!                   With `POLYVOL_BUG=EarlyForget` (and the feature `simulator`) this is wrong, and must be detected.
//! Invariants        after each change a part of it is read back; after each cut, drop and restart, everything is compared
//!                   completely, and all differences are reported as changes. A write may fail only with ENOSPC, and
//!                   then only its own blocks are unknown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{copied, counted, differences, relocated};
use polyvol_engine::block_map::history::Rollback;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::error::Errno;
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::Verb;
use polyvol_engine::volume::local_client::LocalClient;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const PARTITION: u64 = MIB;
const SIZE: u64 = 5 * MIB + 3 * 4096;
/// Sizes to which it grows: within its last partition, to the end of that, beyond it, with one more processor.
const SIZES: [u64; 5] = [SIZE, 5 * MIB + MIB / 2 + 4096, 6 * MIB, 7 * MIB + 9 * 4096, WIDEST];
const WIDEST: u64 = 9 * MIB;
const LOG: u64 = 12 * MIB;
const VOLUME: u64 = 7;
const GROWN: u64 = 4 * MIB;
const GROWN_MAX: u16 = 6;

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, length: u64, seed: u8, fua: bool },
    Zero { offset: u64, length: u64, no_hole: bool },
    Trim { offset: u64, length: u64 },
    Flush,
    Cut,
    Drop(usize),
    RollBack { nth: usize, safety: bool, killed: bool },
    Cover,
    Relocate { blocks: u64, away: bool },
    Forget { killed: bool },
    Grow,
    Extend,
    Restart { kill: bool },
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let any = (0..WIDEST, 1..200_000u64);
    let aligned = (0..WIDEST / 4096, 1..300u64).prop_map(|(o, n)| (o * 4096, n * 4096));
    let block = (0..WIDEST / 4096).prop_map(|o| (o * 4096, 4096));
    let whole = Just((0, WIDEST));
    prop_oneof![3 => any, 4 => aligned, 4 => block, 1 => whole]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (range(), 1..255u8, any::<bool>())
            .prop_map(|((offset, length), seed, fua)| Op::Write { offset, length, seed, fua }),
        2 => (range(), any::<bool>())
            .prop_map(|((offset, length), no_hole)| Op::Zero { offset, length, no_hole }),
        2 => range().prop_map(|(offset, length)| Op::Trim { offset, length }),
        1 => Just(Op::Flush),
        4 => Just(Op::Cut),
        3 => (0usize..6).prop_map(Op::Drop),
        3 => (0usize..6, any::<bool>(), prop::bool::weighted(0.3))
            .prop_map(|(nth, safety, killed)| Op::RollBack { nth, safety, killed }),
        1 => Just(Op::Cover),
        4 => (1..600u64, any::<bool>()).prop_map(|(blocks, away)| Op::Relocate { blocks, away }),
        3 => any::<bool>().prop_map(|killed| Op::Forget { killed }),
        1 => Just(Op::Grow),
        1 => Just(Op::Extend),
        1 => any::<bool>().prop_map(|kill| Op::Restart { kill }),
    ];
    prop::collection::vec(op, 1..50)
}

struct Twin {
    directory: PathBuf,
    engine: Option<Engine>,
    client: Option<LocalClient>,
    mode: Mode,
    live: Vec<u8>,
    snapshots: BTreeMap<u64, Vec<u8>>,
    next_epoch: u64,
    /// Rollbacks, with the sizes of the volume and of the snapshot.
    rollbacks: Vec<(Rollback, u64, u64)>,
    /// Logs that were added.
    grown: u16,
    /// Which of `SIZES` it has.
    size: usize,
    counted: counted::Counted,
}

impl Twin {
    fn new(mode: Mode) -> Twin {
        #[cfg(feature = "simulator")]
        if std::env::var("POLYVOL_BUG").is_ok_and(|bug| bug == "EarlyForget") {
            polyvol_engine::mutants::set(Some(polyvol_engine::mutants::Bug::EarlyForget));
        }
        let mut random = [0u8; 8];
        let mut origin = std::fs::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut origin, &mut random).unwrap();
        let directory = format!("polyvol-model-{:016x}", u64::from_le_bytes(random));
        let directory = std::env::temp_dir().join(directory);
        std::fs::create_dir(&directory).unwrap();
        let more = u64::from(GROWN_MAX) * GROWN;
        for (name, size) in
            [("a", 4 * MIB), ("b", 4 * MIB), ("log", LOG), ("more", more), ("wide", WIDEST)]
        {
            std::fs::File::create(directory.join(name)).unwrap().set_len(size).unwrap();
        }
        let mut twin = Twin {
            directory,
            engine: None,
            client: None,
            mode,
            live: vec![0; SIZE as usize],
            snapshots: BTreeMap::new(),
            next_epoch: 1,
            rollbacks: Vec::new(),
            grown: 0,
            size: 0,
            counted: counted::Counted::default(),
        };
        twin.start();
        twin
    }

    fn start(&mut self) {
        let engine = Engine::new(4).unwrap();
        for (id, name) in [(1, "a"), (2, "b"), (3, "log"), (4, "more"), (5, "wide")] {
            let path = self.directory.join(name);
            if engine.open_device(id, &path, self.mode).is_err() {
                // Not every file system supports O_DIRECT.
                engine.open_device(id, &path, Mode { direct: false, ..self.mode }).unwrap();
            }
        }
        engine.add_volume(self.spec(&self.directory)).unwrap();
        engine.export("v", "", VOLUME, None).unwrap();
        for epoch in self.snapshots.keys() {
            engine.export(&format!("v@{epoch}"), "", VOLUME, Some(*epoch)).unwrap();
        }
        self.client = Some(LocalClient::new(engine.exports.attach("v").unwrap()));
        self.engine = Some(engine);
    }

    /// Partition 1 is on two devices.
    fn spec(&self, directory: &Path) -> VolumeSpec {
        let extent = |device, offset, length| ExtentSpec { device, offset, length };
        let mut partitions = vec![
            (0, vec![extent(1, 0, MIB)]),
            (1, vec![extent(2, 0, MIB / 2), extent(1, MIB, MIB / 2)]),
            (2, vec![extent(2, MIB, MIB)]),
            (0, vec![extent(1, 2 * MIB, MIB)]),
            (1, vec![extent(2, 2 * MIB, MIB)]),
            (2, vec![extent(2, 3 * MIB, SIZE - 5 * MIB)]),
        ];
        for sizes in SIZES[..=self.size].windows(2) {
            let mut at = sizes[0];
            while at < sizes[1] {
                let end = (at / PARTITION * PARTITION + PARTITION).min(sizes[1]);
                let piece = extent(5, at - SIZE, end - at);
                match partitions.get_mut((at / PARTITION) as usize) {
                    Some((_, extents)) => extents.push(piece),
                    None => partitions.push((3 - partitions.len() as u32 % 4, vec![piece])),
                }
                at = end;
            }
        }
        let bound = |(epoch, contents): (&u64, &Vec<u8>)| (*epoch + 1, contents.len() as u64);
        let hidden = self.rollbacks.iter().map(|(rollback, _, size)| (rollback.to + 1, *size));
        VolumeSpec {
            id: VOLUME,
            uuid: [7; 16],
            name: "v".to_owned(),
            size: SIZES[self.size],
            partition_size: PARTITION,
            partitions,
            logs: (0..=self.grown).map(|n| (n + 1, vec![log_extent(n)])).collect(),
            log_rules: Default::default(),
            directory: directory.join("volume"),
            manifests: Manifests::new(directory.join("volume")),
            snapshots: self.snapshots.keys().map(|epoch| (*epoch, Default::default())).collect(),
            next_epoch: self.next_epoch,
            bounds: self.snapshots.iter().map(bound).chain(hidden).collect(),
            rollbacks: self.rollbacks.iter().map(|(one, size, _)| (*one, *size)).collect(),
            origin: None,
        }
    }

    fn grow(&mut self) {
        if self.grown < GROWN_MAX {
            self.grown += 1;
            let number = self.grown;
            self.engine()
                .add_log(VOLUME, number + 1, &[log_extent(number)], &Default::default())
                .unwrap();
        }
    }

    /// Grows the volume; connected clients continue with the size that they know.
    fn extend(&mut self) {
        if self.size + 1 == SIZES.len() {
            return;
        }
        let before = SIZES[self.size];
        self.size += 1;
        self.engine().grow_volume(self.spec(&self.directory)).unwrap();
        assert_eq!(self.client().size(), before);
        assert_eq!(self.client().write(before, &[1; 4096], false), Err(Errno::ENOSPC));
        assert_eq!(self.engine().exports.list()[0].connections(), 1);
        self.live.resize(SIZES[self.size] as usize, 0);
        self.client = Some(LocalClient::new(self.engine().exports.attach("v").unwrap()));
        self.check();
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn client(&self) -> &LocalClient {
        self.client.as_ref().unwrap()
    }

    /// A request may have been done in part if slots ran out; anything else is an error.
    fn ended(&mut self, result: Result<(), Errno>, offset: u64, length: u64, new: &[u8]) {
        let range = offset as usize..(offset + length) as usize;
        match result {
            Ok(()) => {
                self.live[range].copy_from_slice(new);
                self.counted.written(offset, length);
            }
            Err(errno) => {
                assert_eq!(errno, Errno::ENOSPC);
                let now = self.client().read(offset, length).unwrap();
                let now = now.data.as_slice().to_vec();
                for (i, byte) in now.iter().enumerate() {
                    let old = self.live[range.start + i];
                    assert!(*byte == old || *byte == new[i], "neither old nor new at {i}");
                }
                self.live[range].copy_from_slice(&now);
                self.counted.read_again(self.engine.as_ref().unwrap());
            }
        }
    }

    /// A range, limited to the volume's present size.
    fn within(&self, offset: u64, length: u64) -> (u64, u64) {
        let size = SIZES[self.size];
        (offset % size, length.min(size - offset % size))
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { offset, length, seed, fua } => {
                let (offset, length) = self.within(offset, length);
                let bytes: Vec<u8> = (0..length)
                    .map(|i| seed.wrapping_mul(((i >> 9) as u8) | 1).wrapping_add(i as u8))
                    .collect();
                let result = self.client().write(offset, &bytes, fua);
                self.ended(result, offset, length, &bytes);
                self.check_range(offset, length);
            }
            Op::Zero { offset, length, no_hole } => {
                let (offset, length) = self.within(offset, length);
                let verb = Verb::Zero { no_hole, fast: false };
                let result = self.client().range(verb, offset, length, false);
                self.ended(result, offset, length, &vec![0; length as usize]);
                self.check_range(offset, length);
            }
            Op::Trim { offset, length } => {
                let (offset, length) = self.within(offset, length);
                self.client().range(Verb::Trim, offset, length, false).unwrap();
                self.counted.written(offset, length);
                let now = self.client().read(offset, length).unwrap();
                let range = offset as usize..(offset + length) as usize;
                for (old, new) in self.live[range].iter_mut().zip(now.data.as_slice()) {
                    assert!(*new == 0 || new == old, "a trimmed byte is zero or as it was");
                    *old = *new;
                }
            }
            Op::Flush => self.client().flush().unwrap(),
            Op::Relocate { blocks, away } => self.relocate(blocks * 4096, away),
            Op::Cut => self.cut(),
            Op::Drop(nth) => {
                let Some(epoch) = self.snapshots.keys().nth(nth).copied() else { return };
                self.engine().exports.remove(&format!("v@{epoch}")).unwrap();
                self.snapshots.remove(&epoch);
                self.engine().drop_snapshot(VOLUME, epoch).unwrap();
                self.check();
            }
            Op::RollBack { nth, safety, killed } => {
                let Some(epoch) = self.snapshots.keys().nth(nth).copied() else { return };
                self.roll_back(epoch, safety, killed);
                self.check();
            }
            Op::Cover => self.engine().cover_rollbacks(VOLUME).unwrap(),
            Op::Forget { killed } => {
                self.forget_rollbacks(killed);
                self.check();
            }
            Op::Grow => self.grow(),
            Op::Extend => self.extend(),
            Op::Restart { kill } => {
                self.stop(kill);
                self.start();
                if kill {
                    self.counted.read_again(self.engine.as_ref().unwrap());
                }
                self.check();
            }
        }
    }

    fn cut(&mut self) {
        let report = self.engine().cut(&[(VOLUME, Default::default())]).unwrap();
        let epoch = report.epochs[0].1;
        assert!(epoch >= self.next_epoch);
        self.next_epoch = epoch + 1;
        self.engine().settle(VOLUME, epoch).unwrap();
        self.engine().flush(VOLUME).unwrap();
        self.engine().export(&format!("v@{epoch}"), "", VOLUME, Some(epoch)).unwrap();
        self.snapshots.insert(epoch, self.live.clone());
        self.counted.cut(self.engine.as_ref().unwrap(), epoch);
        self.check();
    }

    /// Rolls back as the catalog does, perhaps in the next engine.
    fn roll_back(&mut self, to: u64, safety: bool, killed: bool) {
        self.client = None;
        self.engine().exports.remove("v").unwrap();
        let epoch = self.engine().cut(&[(VOLUME, Default::default())]).unwrap().epochs[0].1;
        self.engine().settle(VOLUME, epoch).unwrap();
        self.engine().flush(VOLUME).unwrap();
        let rollback = Rollback { at: epoch + 1, to };
        self.next_epoch = epoch + 2;
        if safety {
            self.snapshots.insert(epoch, self.live.clone());
            self.counted.cut(self.engine.as_ref().unwrap(), epoch);
        }
        self.counted.roll_back(to);
        let mut shown = self.snapshots[&to].clone();
        self.rollbacks.push((rollback, SIZES[self.size], shown.len() as u64));
        shown.resize(self.live.len(), 0);
        self.live = shown;
        if killed {
            self.stop(true);
            return self.start();
        }
        let engine = self.engine();
        engine.roll_back(VOLUME, rollback).unwrap();
        match safety {
            true => engine.export(&format!("v@{epoch}"), "", VOLUME, Some(epoch)).unwrap(),
            false => drop(engine.drop_snapshot(VOLUME, epoch).unwrap()),
        }
        engine.export("v", "", VOLUME, None).unwrap();
        self.client = Some(LocalClient::new(self.engine().exports.attach("v").unwrap()));
    }

    /// Forgets rollbacks, perhaps with a kill between the catalog and the engine.
    fn forget_rollbacks(&mut self, killed: bool) {
        while let Some(at) = self.engine().unneeded_rollback(VOLUME).unwrap() {
            self.rollbacks.retain(|(rollback, _, _)| rollback.at != at);
            if killed {
                self.stop(true);
                self.start();
                return self.counted.read_again(self.engine.as_ref().unwrap());
            }
            self.engine().forget_rollback(VOLUME, at).unwrap();
        }
    }

    /// Brings blocks home, or moves away what snapshots see there: no difference of two versions changes.
    fn relocate(&mut self, bytes: u64, away: bool) {
        let changes = || differences::since_each(self.engine(), VOLUME, self.snapshots.keys());
        let before = changes();
        let done = relocated::relocate(self.engine(), VOLUME, bytes, away);
        let complete = done.failed == 0 && (done.at_end || done.bytes == bytes);
        assert!(complete && changes() == before, "moving is no change: {done:?}");
        self.check();
    }

    /// Stops; a killed engine gets its files back as they were before it could write checkpoints.
    fn stop(&mut self, kill: bool) {
        self.client = None;
        let engine = self.engine.take().unwrap();
        let saved = self.directory.join("saved");
        let volume = self.directory.join("volume");
        if kill {
            copied::copy_directory(&volume, &saved);
        }
        engine.stop().unwrap();
        if kill {
            std::fs::remove_dir_all(&volume).unwrap();
            std::fs::rename(&saved, &volume).unwrap();
        }
    }

    fn check_range(&self, offset: u64, length: u64) {
        let from = offset.saturating_sub(5000);
        let to = (offset + length + 5000).min(SIZES[self.size]);
        let read = self.client().read(from, to - from).unwrap();
        assert!(read.data.as_slice() == &self.live[from as usize..to as usize]);
    }

    fn check(&self) {
        let size = SIZES[self.size];
        let read = self.client().read(0, size).unwrap();
        same("the live volume", read.data.as_slice(), &self.live);
        for (epoch, contents) in &self.snapshots {
            let name = format!("v@{epoch}");
            let client = LocalClient::new(self.engine().exports.attach(&name).unwrap());
            assert_eq!(client.write(0, &[1], false), Err(Errno::EPERM));
            assert_eq!(client.size(), contents.len() as u64);
            let read = client.read(0, client.size()).unwrap();
            same(&name, read.data.as_slice(), contents);
            let odd = client.read(4097, 9000).unwrap();
            same(&name, odd.data.as_slice(), &contents[4097..13097]);
        }
        let statuses = self.client().block_status(0, size).unwrap();
        let mut at = 0;
        for status in statuses {
            assert_eq!(status.offset, at);
            at += status.length;
            let range = status.offset as usize..at as usize;
            assert!(!status.zero || self.live[range].iter().all(|byte| *byte == 0));
        }
        assert_eq!(at, size);
        differences::check(self.engine(), VOLUME, &self.snapshots, &self.live);
        self.counted.check(self.engine(), &self.snapshots.keys().copied().collect());
    }
}

/// The extent of the first log, or of the nth added one.
fn log_extent(n: u16) -> ExtentSpec {
    match n {
        0 => ExtentSpec { device: 3, offset: 0, length: LOG },
        _ => ExtentSpec { device: 4, offset: u64::from(n - 1) * GROWN, length: GROWN },
    }
}

fn same(what: &str, found: &[u8], expected: &[u8]) {
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} (block {}) is {} not {}", at / 4096, found[at], expected[at]);
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.client = None;
        if let Some(engine) = self.engine.take() {
            let _ = engine.stop();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_volume_and_its_snapshots_hold_what_was_written(
        sparse in any::<bool>(),
        direct in any::<bool>(),
        ops in ops(),
    ) {
        let mut twin = Twin::new(Mode { sparse, direct, ..Mode::default() });
        for op in &ops {
            twin.step(op);
        }
        twin.check();
    }
}

fn run(ops: &[Op]) {
    let mut twin = Twin::new(Mode::default());
    ops.iter().for_each(|op| twin.step(op));
}

const fn roll_back(safety: bool, killed: bool) -> Op {
    Op::RollBack { nth: 0, safety, killed }
}

#[test]
fn writes_to_new_blocks_after_a_rollback_and_growth_survive_a_kill() {
    let write = |offset, length| Op::Write { offset, length, seed: 1, fua: false };
    let restart = |kill| Op::Restart { kill };
    let first = [Op::Extend, Op::Cut, write(0, WIDEST), restart(false), roll_back(false, false)];
    run(&[&first[..], &[Op::Extend, write(SIZES[1], 4096), restart(true)]].concat());
}

#[test]
fn a_rollback_that_only_zeroes_added_blocks_is_known_after_a_kill() {
    run(&[Op::Cut, Op::Extend, roll_back(true, false), roll_back(true, true)]);
}
